"""A LoRA put on a model: what it is put on, that it begins at the base model, and settings that are refused in one line."""

from contextlib import nullcontext

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from routed_rl.artifacts import data_root
from routed_rl.cli.compose import compose
from routed_rl.cli.settings_file import overrides_of
from routed_rl.cli.space import split
from routed_rl.config import AdapterConfig
from routed_rl.errors import ConfigError, ModelError
from routed_rl.model.adapter import attach, factors, is_adapted, merge, put_on
from routed_rl.model.base import adapted_modules
from routed_rl.model.lora import check_lora
from routed_rl.model.targets import decoder_layers, find_writers
from routed_rl.multirun.compare import plan_runs
from routed_rl.multirun.trials import Plan
from tests.causal_models import tiny_causal
from tests.families import FAMILIES, tiny


def put(family: str = "llama", seed: int = 0, **settings) -> tuple[PeftModel, dict[str, torch.Tensor]]:
    model = tiny(family)
    wrapped = attach(model, AdapterConfig(kind="lora", **settings), find_writers(model), seed)
    assert wrapped.get_base_model() is model
    return wrapped, {name: parameter.detach().clone() for name, parameter in factors(model).items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_factors_are_trained_and_the_model_stays_one_that_is_known(family):
    wrapped, found = put(family)
    model = wrapped.get_base_model()
    assert found and is_adapted(model) and not is_adapted(tiny(family))
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == {
        name.removeprefix("base_model.model.").replace(".weight", ".default.weight") for name in found}
    assert not any("lm_head" in name or ".experts." in name for name in found)
    assert len(find_writers(model)) == len(find_writers(tiny(family))) and len(decoder_layers(model)) == 2
    assert not any(tensor.any() for name, tensor in found.items() if ".lora_B." in name)


def test_a_seed_gives_one_adapter_and_random_numbers_are_left_as_they_were():
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    (_, one), (_, same), (_, other) = put(seed=1), put(seed=1), put(seed=2)
    tiny("llama")  # draws from the state, too
    torch.random.set_rng_state(before)
    assert all(one[name].equal(same[name]) for name in one) and not all(one[name].equal(other[name]) for name in one)


def test_settings_reach_peft():
    wrapped, found = put(r=3, alpha=6, rslora=True, target_modules=["q_proj", "layers.1.mlp.down_proj"],
                         options={"init_lora_weights": "gaussian"})
    config = wrapped.peft_config["default"]
    assert config.use_rslora and (config.r, config.lora_alpha) == (3, 6) and config.init_lora_weights == "gaussian"
    assert {name.split(".lora_")[0].removeprefix("base_model.model.model.") for name in found} == {
        "layers.0.self_attn.q_proj", "layers.1.self_attn.q_proj", "layers.1.mlp.down_proj"}


@pytest.mark.parametrize(("settings", "said"), [
    ({"r": 17}, "model.adapter.r=17 is more than the smallest width .* 16"),
    ({"target_modules": ["o_proj", "w_out"]}, "target_modules=w_out is no linear layer .*; there is down_proj, gate_proj"),
    ({"target_modules": ["lm_head"]}, "target_modules=lm_head is no linear layer"),
    ({"target_modules": ["embed_tokens"]}, "target_modules=embed_tokens is no linear layer"),
    ({"options": {"use_dora": True}}, "options.use_dora is refused: its magnitudes rescale .*; leave it out"),
    ({"options": {"lora_dropout": 0.1}}, "lora_dropout=0.1 would drop out inputs of the writer model.layers.0.self_attn.o_proj"),
    ({"options": {"modules_to_save": ["embed_tokens"]}}, "options.modules_to_save is refused"),
    ({"options": {"lora_bias": True}}, "options.lora_bias is refused"),
    ({"options": {"bias": "all"}}, "options.bias is refused"),
    ({"options": {"init_lora_weights": "pissa"}}, "init_lora_weights=pissa is refused: it changes the frozen weights"),
    ({"options": {"init_lora_weights": False}}, "init_lora_weights=False is refused"),
    ({"options": {"r": 4}}, "options.r is refused: it is a setting of its own"),
    ({"options": {"layers_to_transform": [0]}}, "options.layers_to_transform is refused: it is not supported; leave it out"),
    ({"options": {"rank_pattern": {"o_proj": 2}}}, "options.rank_pattern is refused: it is not supported"),
    ({"options": {"lora_dropot": 0}}, "options.lora_dropot is no field of peft.LoraConfig; did you mean lora_dropout"),
])
def test_what_cannot_be_routed_is_refused_with_the_reason(settings, said):
    with pytest.raises(ConfigError, match=said) as refusal:
        put(**settings)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("lora", "family", "said"), [
    ({"r": 17, "target_modules": "all-linear"}, "llama", "peft_config.r=17 is more than the smallest width"),
    ({"r": 0, "target_modules": "all-linear"}, "llama", "peft_config.r must be a whole number >= 1, got 0"),
    ({"r": 2.5}, "llama", "peft_config.r must be a whole number >= 1, got 2.5"),
    ({"lora_alpha": 0}, "llama", "peft_config.lora_alpha must be > 0, got 0"),
    ({"lora_dropout": 1}, "llama", "peft_config.lora_dropout must be from 0 to below 1, got 1"),
    ({"lora_dropout": 0.1, "target_modules": ".*proj"}, "llama", "lora_dropout=0.1 would .* the writers out of peft_config"),
    ({"target_modules": ["w_out"]}, "llama", "peft_config.target_modules=w_out is no linear layer"),
    ({"target_modules": ".*self_attn"}, "llama", r"target_modules=.\*self_attn is no linear layer"),
    ({"target_modules": "("}, "llama", r"peft_config.target_modules=\(: "),
    ({"target_modules": ["lm_head"]}, "gpt2", "target_modules=lm_head is no linear layer"),
    ({"target_modules": None}, "olmo2", "target_modules is not set, and PEFT has no default for .* type olmo2; set it"),
    ({"target_modules": "all-linear"}, "mixtral", "all-linear would put a LoRA on the experts .* a list of k_proj, o"),
    ({"exclude_modules": ".*"}, "llama", r"peft_config.exclude_modules=\.\* leaves no layer for a LoRA"),
    ({"target_modules": []}, "llama", r"peft_config.target_modules=set\(\) names no layer, so nothing would be trained; set it"),
    ({"layers_to_transform": 0, "target_modules": ["o_proj"]}, "llama", "peft_config.layers_to_transform is refused: it is not"),
    ({"use_dora": True}, "llama", "peft_config.use_dora is refused: its magnitudes"),
    ({"target_parameters": ["mlp.experts.down_proj"]}, "mixtral", "peft_config.target_parameters is refused: experts"),
    ({"rank_pattern": {"o_proj": 2}}, "llama", "peft_config.rank_pattern is refused: it is not supported"),
    ({"task_type": "SEQ_CLS"}, "llama", "peft_config.task_type=SEQ_CLS is refused: the model is a causal"),
    ({"inference_mode": True}, "llama", "peft_config.inference_mode=True is refused: nothing would be trained"),
    ({"init_lora_weights": "olora"}, "llama", "peft_config.init_lora_weights=olora is refused"),
])
def test_a_lora_config_is_refused_by_the_same_rules_and_by_its_own_names(lora, family, said):
    model = tiny(family)
    with pytest.raises(ConfigError, match=said) as refusal:
        check_lora(LoraConfig(**lora), model, find_writers(model), "peft_config.{}".format)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("lora", "family"), [
    ({}, "llama"), ({"modules_to_save": [], "layers_to_transform": None, "rank_pattern": {}, "use_dora": None}, "llama"),
    ({"target_modules": r".*layers\.1\..*_proj"}, "llama"),
    ({"lora_dropout": 0.1, "target_modules": ["q_proj"]}, "llama"), ({}, "gpt2"), ({"target_modules": ["o_proj"]}, "mixtral"),
    ({"target_modules": "all-linear", "exclude_modules": ["o_proj"]}, "gemma2")])
def test_a_lora_config_that_is_not_refused_is_put_where_the_rules_say(lora, family):
    """Whatever PEFT understands by it."""
    settings, model = LoraConfig(**lora), tiny(family)
    writers = find_writers(model)
    found = check_lora(settings, model, writers, str)
    wrapped = put_on(model, settings)
    assert sorted(found) == sorted({name.split(".lora_")[0].removeprefix("base_model.model.") for name in factors(wrapped)})
    check_lora(wrapped.peft_config["default"], model, writers, str)  # with what PEFT has written into it


def test_dropout_is_fine_where_no_writer_has_it():
    assert put(target_modules=["q_proj"], options={"lora_dropout": 0.1})[0].peft_config["default"].lora_dropout == 0.1


def test_a_mixture_of_experts_has_its_lora_on_the_attention():
    with pytest.raises(ConfigError, match="target_modules=down_proj is no linear layer .*; there is k_proj, o_proj"):
        put("qwen3_moe", target_modules=["down_proj"])


@pytest.mark.slow
def reads_images() -> LlavaForConditionalGeneration:
    text = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4)
    vision = CLIPVisionConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=8,
                              patch_size=4)
    return LlavaForConditionalGeneration(LlavaConfig(text_config=text, vision_config=vision, image_token_index=63))


@pytest.mark.parametrize(("wanted", "count"), [("all-linear", 21), (["q_proj", "mlp.down_proj"], 6)])
def test_in_a_model_that_reads_images_too_all_of_a_lora_learns_from_texts(wanted, count):
    """Its layers for images have modules of the same names."""
    model = reads_images()
    attach(model, AdapterConfig(kind="lora", r=2, target_modules=wanted), [], 0)
    learned = factors(model)
    model(input_ids=torch.tensor([[5, 6, 7]])).logits.sum().backward()
    assert len(learned) == 2 * count and all(parameter.grad is not None for parameter in learned.values())


@pytest.mark.parametrize(("settings", "said"), [
    ({"target_modules": "all-linear"}, r"all-linear would put a LoRA on model\.multi_modal_projector\.linear_1, outside"),
    ({"target_modules": ["v_proj"]}, r"v_proj would put a LoRA on model\.vision_tower\..*; set it to r'model\\.language_model"),
    ({"target_modules": ["v_proj"], "exclude_modules": r".*vision.*"}, None),
    ({"target_modules": r"model\.language_model\..*\.(v_proj|down_proj)"}, None)])
def test_a_lora_config_for_layers_that_no_text_goes_through_is_refused(settings, said):
    model, lora = reads_images(), LoraConfig(r=2, **settings)
    with pytest.raises(ConfigError, match=said) if said else nullcontext():
        found = check_lora(lora, model, [], lambda key: f"peft_config.{key}")
        assert len(found) in (3, 6) and all(name.startswith("model.language_model.") for name in found)


def test_what_peft_refuses_in_a_mamba_has_no_lora_and_the_rest_has_one():
    model = tiny_causal("mamba")
    wrapped = attach(model, AdapterConfig(kind="lora", r=2), find_writers(model), 0)
    names = {name.rpartition(".")[2] for name in adapted_modules(wrapped)}
    assert names >= {"in_proj", "x_proj"} and "out_proj" not in names
    with pytest.raises(ConfigError, match="all-linear would put a LoRA on out_proj, which PEFT refuses for .* type mamba; se"):
        check_lora(LoraConfig(target_modules="all-linear"), model, find_writers(model), str)


@pytest.mark.parametrize(("overrides", "said"), [
    (["model.adapter=qlor"], "did you mean model.adapter=qlora"),
    (["model.adapter.kind=dora"], "model.adapter.kind=dora is not known; choose from none, lora, qlora"),
    (["model.dtype=bfloat16"], "or train a LoRA on frozen weights: model.adapter=lora"),
    (["model.adapter=lora", "model.dtype=float16"], "model.dtype=float16 is not supported"),
    (["model.adapter=lora", "model.adapter.r=0"], "model.adapter.r must be a whole number >= 1, got 0"),
    (["model.adapter=lora", "model.adapter.alpha=-1"], "model.adapter.alpha must be > 0 or null"),
    (["model.adapter=lora", "model.adapter.target_modules=[]"], "must be all-linear or a list of names"),
    (["model.adapter.path=lora"], "model.adapter.path=lora does nothing with model.adapter.kind=none; .*: model.adapter=lora"),
    (["model.adapter=lora", "model.adapter.rank=3"], "unknown setting model.adapter.rank"),
])
def test_settings_that_cannot_be_are_refused_before_a_model_is_loaded(overrides, said):
    with pytest.raises(ConfigError, match=said):
        compose(overrides)


def test_the_group_and_single_settings_are_composed_together():
    config = compose(["model.adapter.r=32", "model.adapter=lora", "model.dtype=bfloat16"])
    assert (config.model.adapter.kind, config.model.adapter.r, config.model.dtype) == ("lora", 32, "bfloat16")
    assert not compose([]).model.adapter.trains


EXPERIMENTS = sorted(path.stem for path in (data_root() / "configs/experiment").glob("*.yaml"))


def rate(overrides: list[str]) -> float:
    return compose(overrides).trainer["learning_rate"]


def test_a_lora_has_its_own_rate_unless_the_user_sets_one():
    lora = ["experiment=smollm2", "model.adapter=lora"]
    assert rate(lora) == 5e-5 and rate(["model.adapter.kind=lora"]) == 5e-4
    assert rate([*lora, "trainer.learning_rate=1e-4"]) == 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_lora_learns_at_five_times_the_rate_of_the_experiments_weights_however_it_is_chosen(tmp_path, experiment):
    (tmp_path / "mine.yaml").write_text("defaults: [model/adapter: lora]")
    chosen = [f"experiment={experiment}"]
    for lora in (["model.adapter=lora"], ["model.adapter.kind=lora"], overrides_of(str(tmp_path / "mine.yaml"))):
        assert rate([*chosen, *lora]) == rate([*lora, *chosen]) == pytest.approx(5 * rate(chosen), rel=1e-12)
    assert rate(["model.adapter=lora"]) == 5e-4
    planned = plan_runs([*chosen, "model.adapter=lora"], ["none", "route"], 1, tmp_path, compose)
    assert {run.config.trainer["learning_rate"] for run in planned} == {rate([*chosen, "model.adapter=lora"])}
    fixed, (dimension,) = split([*chosen, "model.adapter=none,lora"])
    trials = [Plan(fixed, tmp_path, compose).trial(0, {dimension.key: value}).config for value in dimension.values]
    assert trials[1].trainer["learning_rate"] / trials[0].trainer["learning_rate"] == pytest.approx(5)


@pytest.mark.slow
def test_a_rate_that_the_user_sets_is_the_loras_wherever_it_is_set(tmp_path):
    (tmp_path / "mine.yaml").write_text("defaults: [model/adapter: lora]\ntrainer: {learning_rate: 3e-5}")
    assert rate(["experiment=smollm2", *overrides_of(str(tmp_path / "mine.yaml"))]) == 3e-5
    for typed in ("trainer.learning_rate=1e-4", "++trainer.learning_rate=1e-4"):
        assert rate(["experiment=smollm2", "model.adapter=qlora", typed]) == 1e-4


IDS = torch.arange(3, 9).unsqueeze(0)


def foreign(folder, tied: bool, **settings) -> torch.Tensor:
    """Write an adapter, as other programs make it, and return the logits that it gives a model."""
    wrapped = get_peft_model(tiny("qwen2", tie_word_embeddings=tied), LoraConfig(r=2, **settings))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if ".lora_" in name or ".modules_to_save." in name:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
        wrapped.save_pretrained(str(folder))
        return wrapped.eval()(IDS).logits


@pytest.mark.slow
@pytest.mark.parametrize("settings", [
    {"target_modules": ["q_proj", "lm_head"]}, {"target_modules": ["q_proj", "down_proj"], "use_dora": True},
    {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]}, {"target_modules": ["embed_tokens"]}])
def test_an_adapter_of_another_program_is_merged_into_what_it_is(tmp_path, settings):
    expected = foreign(tmp_path / "adapter", False, **settings)
    model = merge(tiny("qwen2", tie_word_embeddings=False), tmp_path / "adapter")
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("settings", "said"), [
    ({"target_modules": ["lm_head"]}, r"adapter changes lm_head, which shares its weight with model\.embed_tokens, .*tie_word"),
    pytest.param({"target_modules": ["embed_tokens"]}, r"changes model\.embed_tokens, which shares its weight with lm_head",
                 marks=pytest.mark.slow),
    pytest.param({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, "changes lm_head, which shares its weight",
                 marks=pytest.mark.slow)])
def test_an_adapter_on_a_tied_head_is_not_merged_into_the_embedding(tmp_path, settings, said):
    foreign(tmp_path / "adapter", True, **settings)
    with pytest.raises(ModelError, match=said) as refusal:
        merge(tiny("qwen2", tie_word_embeddings=True), tmp_path / "adapter")
    assert "\n" not in str(refusal.value)
