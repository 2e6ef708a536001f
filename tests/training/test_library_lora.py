"""The library with a LoRA: TRL's own trajectory where nothing is routed, a stock adapter of the deployed model where something
is, and models that come with an adapter."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from routed_rl import RoutedGRPOTrainer, RoutedRLError, RoutedRLOOTrainer, RoutingConfig, extract_subspace
from routed_rl.checkpoint import save_loop
from routed_rl.model.adapter import factors
from routed_rl.training.library.origin import check_origin
from tests.builders import relative
from tests.library import PLAIN, arguments, load, right, rows, subspace_of, trainer

LORA: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]}
"""One writer has none."""
ROUNDS = {"max_steps": 6, "learning_rate": 1e-2, "beta": 0.1}
IDS = torch.arange(3, 9)[None]


def made(parts: Path, out: Path, **given: Any) -> Any:
    """A trainer of a LoRA."""
    return trainer(parts, out, **{"args": arguments(out, **ROUNDS), "peft_config": LoraConfig(**LORA)} | given)


def same(ours: Any, theirs: Any) -> bool:
    """Whether two models have the same LoRA, to the bit."""
    one, other = factors(ours), factors(theirs)
    return one.keys() == other.keys() and all(value.equal(other[name]) for name, value in one.items())


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(IDS).logits.float()


@pytest.mark.parametrize(("kind", "ours", "theirs"), [
    (GRPOConfig, RoutedGRPOTrainer, GRPOTrainer),
    pytest.param(RLOOConfig, RoutedRLOOTrainer, RLOOTrainer, marks=pytest.mark.slow)])
def test_mode_none_is_trl_with_the_same_peft_config_bit_for_bit(parts, tmp_path, kind, ours, theirs):
    found, lora = [], LoraConfig(**LORA, init_lora_weights="gaussian")
    before = copy.deepcopy(lora)
    for cls, own in ((ours, {"routing": PLAIN, "lean": False}), (theirs, {})):
        model, tokenizer = load(parts)
        args = arguments(tmp_path / cls.__name__, kind, beta=0.3, num_iterations=2, learning_rate=1e-2)
        found.append(cls(model, right, args, rows(), processing_class=tokenizer, peft_config=lora, **own))
        found[-1].train()
        assert lora == before or cls is theirs  # PEFT writes into it
    assert same(found[0].model, found[1].model)
    assert all(value.any() for name, value in factors(found[0].model).items() if ".lora_B." in name)
    assert found[0].state.log_history[-2]["kl"] == found[1].state.log_history[-2]["kl"] > 0


@pytest.fixture(scope="module")
def whole(parts, tmp_path_factory) -> Any:
    """A trainer that was not stopped."""
    trained = made(parts, tmp_path_factory.mktemp("whole") / "run")
    trained.train()
    return trained


def test_what_is_saved_is_a_stock_adapter_of_the_deployed_model_with_its_quarantine(parts, whole, tmp_path):
    other = Path(whole.args.output_dir, "base")  # a folder of the script's own, not the base of a command's run
    other.mkdir()
    whole.save_model(str(tmp_path / "saved"))
    other.rmdir()
    assert PeftConfig.from_pretrained(str(tmp_path / "saved")).base_model_name_or_path == str(parts / "model")
    stock = PeftModel.from_pretrained(load(parts)[0], str(tmp_path / "saved"))
    policy = logits(whole.model)
    with whole.quarantine.ablated():
        deployed = logits(whole.model)
    assert relative(logits(stock), deployed) < 1e-5 < 1e-3 < relative(policy, deployed)
    stored = load_file(tmp_path / "saved" / "quarantine.safetensors")
    assert all(value.equal(stored[key]) for key, value in whole.quarantine.state_dict().items())
    assert {path.name for path in (tmp_path / "saved").iterdir()} >= {"adapter_model.safetensors", "tokenizer.json"}
    assert not (tmp_path / "saved" / "model.safetensors").exists()
    assert all(row["routing/drift"] < 1e-6 for row in whole.rows)


def test_the_reference_is_the_model_without_adapter_and_quarantine(parts, whole):
    policy, base = logits(whole.model), logits(load(parts)[0])
    with whole.model.disable_adapter():
        assert logits(whole.model).equal(base)
    assert logits(whole.model).equal(policy) and relative(policy, base) > 1e-3
    assert whole.ref_model is None and whole.state.log_history[1]["kl"] > 0


@pytest.mark.parametrize("step", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_going_on_from_a_checkpoint_is_not_stopping_to_the_bit(parts, whole, tmp_path, step):
    shutil.copytree(whole.args.output_dir, tmp_path / "run")
    for later in range(step + 2, 7, 2):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / f"step-{later}")
    again = made(parts, tmp_path / "run", peft_config=LoraConfig(**LORA, init_lora_weights="gaussian"))  # begins elsewhere
    again.train(resume_from_checkpoint=True)
    assert same(again.model, whole.model)
    assert all(value.equal(whole.router.state_dict()[key]) for key, value in again.router.state_dict().items())


def test_a_model_that_comes_with_a_new_lora_trains_as_with_peft_config(parts, whole, tmp_path):
    """And what is left, without its quarantine, merges into the deployed model by PEFT's own means."""
    model, tokenizer = load(parts)
    subspace = extract_subspace(model, tokenizer, prompts=parts / "prompts.jsonl", rank=2)
    torch.manual_seed(whole.args.seed)
    wrapped = get_peft_model(model, LoraConfig(**LORA))
    ours = made(parts, tmp_path / "run", model=wrapped, peft_config=None, subspace=subspace)
    ours.train()
    assert ours.model is wrapped and same(ours.model, whole.model) and ours.quarantine.norm() == whole.quarantine.norm()
    with ours.quarantine.ablated():
        deployed = logits(ours.model)
    ours.quarantine.remove()
    assert logits(ours.model).equal(deployed)
    with pytest.raises(RoutedRLError, match="comes with a LoRA that is trained already, .*merge_and_unload.* give peft_config"):
        made(parts, tmp_path / "again", model=wrapped, peft_config=None, subspace=subspace)
    with pytest.raises(RoutedRLError, match="model has an adapter in it already; load the model again, or merge"):
        made(parts, tmp_path / "again", model=model, subspace=subspace)
    assert relative(logits(wrapped.merge_and_unload()), deployed) < 1e-5


@pytest.mark.parametrize("autocast", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_base_in_bf16_has_adapters_in_float32_that_stay_outside_the_subspace(parts, tmp_path, autocast):
    model = AutoModelForCausalLM.from_pretrained(parts / "model", dtype=torch.bfloat16)
    subspace = extract_subspace(model, load(parts)[1], prompts=parts / "prompts.jsonl", rank=2)
    args = arguments(tmp_path, learning_rate=1e-2, bf16=autocast)
    ours = made(parts, tmp_path, args=args, model=model, subspace=subspace)
    ours.train()
    assert {value.dtype for value in factors(ours.model).values()} == {torch.float32} and ours.quarantine.norm() > 0
    assert all(row["routing/drift"] < 1e-6 for row in ours.rows)
    assert {value.dtype for name, value in ours.model.named_parameters() if ".lora_" not in name} == {torch.bfloat16}


def test_no_subspace_is_extracted_through_a_lora_that_has_learned(parts, whole):
    """It would have the hash of the weights below the LoRA, and pass for one of theirs."""
    model, tokenizer = whole.model.get_base_model(), load(parts)[1]
    with pytest.raises(RoutedRLError, match=r"has a LoRA that is trained already, .*or merge the LoRA first \(merge_and_unload"):
        extract_subspace(model, tokenizer, prompts=parts / "prompts.jsonl", rank=2)
    with whole.model.disable_adapter():
        found = extract_subspace(model, tokenizer, prompts=parts / "prompts.jsonl", rank=2)
    assert all(map(torch.equal, found.directions, subspace_of(parts).directions))


@pytest.mark.slow
def test_lora_plus_trains_and_its_groups_go_on_from_a_checkpoint(parts, tmp_path):
    """Also those that have no parameters."""
    found = []
    for last in (4, 6):
        model, tokenizer = load(parts)
        subspace = extract_subspace(model, tokenizer, prompts=parts / "prompts.jsonl", rank=2)
        wrapped = get_peft_model(model, LoraConfig(**LORA))
        optimizer = create_loraplus_optimizer(wrapped, torch.optim.AdamW, lr=1e-4, loraplus_lr_ratio=16)
        ours = made(parts, tmp_path, model=wrapped, peft_config=None, subspace=subspace, optimizers=(optimizer, None),
                    args=arguments(tmp_path / "run", **ROUNDS | {"max_steps": last}))
        ours.train(resume_from_checkpoint=last == 6)
        found.append(ours)
    assert [row["step"] for row in found[1].rows] == [*range(1, 7)] and found[1].quarantine.norm() > 0
    assert [group["initial_lr"] for group in found[1].optimizer.param_groups] == [1e-4, 1e-6, 16e-4, 16e-4]


def another(parts: Path) -> dict[str, Any]:
    """A model of the same shapes, with a subspace of its own."""
    model, tokenizer = load(parts)
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight.mul_(1.5)
    return {"model": model, "subspace": extract_subspace(model, tokenizer, prompts=parts / "prompts.jsonl", rank=2)}


def drawn(parts: Path) -> Any:
    """A random subspace of the same rank."""
    return extract_subspace(*load(parts), prompts=parts / "prompts.jsonl", rank=2, method="random")


@pytest.mark.slow
@pytest.mark.parametrize(("given", "message"), [
    (another, r"step-6 is of a run that began from another model \(weights .*, here .*\); give that model, or se"),
    (lambda parts: {"subspace": drawn(parts)}, "step-6 is of a run with another subspace, in which .* of this one lies; give th"),
    (lambda _: {"routing": PLAIN, "subspace": None}, "with routing.mode=route, and this trainer has routing.mode=none; "),
    (lambda _: {"routing": RoutingConfig(mode="observe")}, "routing.mode=route, and this trainer has routing.mode=observe; "),
    (lambda _: {"peft_config": LoraConfig(**LORA | {"lora_alpha": 64})}, "lora_alpha=8, and the LoRA here has lora_alpha=64"),
    (lambda _: {"peft_config": LoraConfig(**LORA, use_rslora=True)}, "use_rslora=False, and the LoRA here has use_rslora=True;"),
    (lambda _: {"peft_config": LoraConfig(**LORA | {"r": 8})}, "with r=4, and the LoRA here has r=8; give the same one"),
    (lambda _: {"peft_config": LoraConfig(**LORA | {"target_modules": ["q_proj"]})},
     r"with target_modules=\['down_proj', 'q_proj'\], and the LoRA here has target_modules=\['q_proj'\]"),
    (lambda _: {"peft_config": None}, "step-6 is of a run that trained a LoRA, and this trainer trains the weights; give")])
def test_a_checkpoint_of_another_origin_is_refused_and_nothing_removed(parts, whole, tmp_path, given, message):
    """Its files fit all of them."""
    shutil.copytree(whole.args.output_dir, tmp_path / "run")
    written = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    again = made(parts, tmp_path / "run", **{"args": arguments(tmp_path / "run", **ROUNDS | {"max_steps": 8})} | given(parts))
    with pytest.raises(RoutedRLError, match=message):
        again.train(resume_from_checkpoint=True)
    assert written == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("given", [{"peft_config": LoraConfig(**LORA)}, {"beta": 0.1}])
def test_in_mode_none_too_the_model_that_stays_must_be_the_one_with_which_the_run_began(parts, tmp_path, given):
    """Below a LoRA, or as the reference; no checkpoint has its weights."""
    def again(last: int, **model: Any) -> Any:
        args = arguments(tmp_path / "run", max_steps=last, save_steps=1, beta=given.get("beta", 0.0))
        lora = {"peft_config": given.get("peft_config")}
        return trainer(parts, tmp_path, args=args, routing=PLAIN, subspace=None, **lora, **model)

    again(1).train()
    with pytest.raises(RoutedRLError, match=r"step-1 is of a run that began from another model \(weights .*; give that model"):
        again(2, model=another(parts)["model"]).train(resume_from_checkpoint=True)
    ours = again(2)
    ours.train(resume_from_checkpoint=True)
    assert [row["step"] for row in ours.rows] == [1, 2]


def test_a_checkpoint_says_from_which_model_its_run_began_also_without_a_quarantine(tmp_path):
    loop = {"micro_step": 1, "buffered": None, "shape": [1, 1, 1], "scored": {}, "failed": {}, "completions": {}}
    for origin in ({"model_hash": "a" * 64}, None):
        save_loop(tmp_path, loop | {"origin": origin})
        check_origin(tmp_path, None, "a" * 64, None)
        check_origin(tmp_path, None, None, None)
        if origin:
            with pytest.raises(RoutedRLError, match=r"began from another model \(weights aaaaaaaaaaaa, here bbbbbbbbbbbb\)"):
                check_origin(tmp_path, None, "b" * 64, None)
    save_loop(tmp_path, loop)  # an older version's
    check_origin(tmp_path, None, "b" * 64, None)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["observe", "route"])
def test_nothing_is_saved_inside_a_block_that_holds_a_part_of_the_quarantine(parts, tmp_path, mode):
    """With mode observe it would be the policy, and with each mode another quarantine."""
    ours = made(parts, tmp_path / "run", routing=RoutingConfig(mode=mode))
    for block in (ours.quarantine.scaled(0.5), ours.quarantine.scaled(0.0), ours.quarantine.kept({"a": 1.0})):
        with block, pytest.raises(RoutedRLError, match=r"inside quarantine.scaled\(\) or kept\(\), .*; leave that block first"):
            ours.save_model(str(tmp_path / "saved"))
    assert not (tmp_path / "saved").exists()
    with ours.quarantine.ablated():
        ours.save_model(str(tmp_path / "saved"))


def frozen(model: Any) -> Any:
    return get_peft_model(model, LoraConfig(**LORA, inference_mode=True))


def two(model: Any) -> Any:
    wrapped = get_peft_model(model, LoraConfig(**LORA))
    wrapped.add_adapter("more", LoraConfig(**LORA))
    return wrapped


def norms(model: Any) -> Any:
    wrapped = get_peft_model(model, LoraConfig(**LORA))
    for layer in model.model.layers:
        layer.input_layernorm.weight.requires_grad_(True)
    return wrapped


@pytest.mark.parametrize(("wrap", "given", "message"), [
    pytest.param(norms, {}, r"a LoRA, and model\.layers\.0\.input_layernorm\.weight and 1 more .* which no adapter holds",
                 marks=pytest.mark.slow),
    (frozen, {}, "comes with a LoRA that is frozen; give the plain model and peft_config"),
    (two, {}, "comes with the adapters default, more, and one that is called default is trained; merge it first"),
    (lambda model: get_peft_model(model, LoraConfig(**LORA), adapter_name="mine"), {}, "comes with the adapters mine, and one"),
    (lambda model: get_peft_model(model, IA3Config(target_modules=["q_proj"], feedforward_modules=[])), {},
     "comes with an adapter of the kind IA3, and only LoRAs are trained; merge it first"),
    (lambda model: get_peft_model(model, LoraConfig()).bfloat16(), {}, "comes with a LoRA that is in bfloat16, not in float32"),
    (lambda model: get_peft_model(model, LoraConfig(r=33)), {}, r"model.peft_config\['default'\].r=33 is more than the"),
    (lambda model: get_peft_model(model, LoraConfig(use_dora=True)), {}, r"peft_config\['default'\].use_dora is refused"),
    (lambda model: get_peft_model(model, LoraConfig()), {"peft_config": LoraConfig()}, "and there is a peft_config as well"),
    (lambda model: model.half(), {"peft_config": LoraConfig()}, "weights in float16 are refused")])
def test_models_whose_adapter_cannot_be_trained_are_refused_in_one_line(parts, tmp_path, wrap, given, message):
    for routing in ({}, {"routing": PLAIN})[:1 if "float16 are" in message else 2]:
        with pytest.raises(RoutedRLError, match=message) as caught:
            trainer(parts, tmp_path, model=wrap(load(parts)[0]), **given, **routing)
        assert "\n" not in str(caught.value)
