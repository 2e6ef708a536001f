import hashlib
import json
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from routed_rl.config import SubspaceConfig
from routed_rl.errors import SubspaceError
from routed_rl.extraction import Job, prepare
from routed_rl.extraction.activations import blocks
from routed_rl.extraction.contrast import read_prompts, tokenize_pairs
from routed_rl.linalg import principal_cosines
from routed_rl.model.prompts import encode_prompts
from routed_rl.model.stream import capturing
from routed_rl.subspace import Subspace, check_quality, describe_quality
from routed_rl.subspace.samples import concatenated

WORDS = ["good", "bad", "sort", "add", "list", "one", "two", "three", "four", "five", "now", "go"]
TEMPLATE = ("{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"
            "{% if add_generation_prompt %}go{% endif %}")


def make_tokenizer(*, bos: bool = False, template: bool = False) -> PreTrainedTokenizerFast:
    words = ["<pad>", "<eos>", "<unk>", "<bos>", *WORDS, "system", "user"]
    inner = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore
    if bos:
        with_bos = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 3)])
        inner.post_processor = with_bos  # pyright: ignore
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    if template:
        tokenizer.chat_template = TEMPLATE
    return tokenizer


SIZES = dict(vocab_size=32, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=64)


def make_model(kind: str = "llama") -> PreTrainedModel:
    torch.manual_seed(0)
    if kind == "gpt2":
        return GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=32, n_layer=3, n_head=4, n_positions=64))
    if kind == "gemma2":
        return Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8, sliding_window=4))
    return LlamaForCausalLM(LlamaConfig(**SIZES))


def write(folder: Path, records: list, name: str = "pairs.jsonl") -> str:
    (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(folder / name)


def records(count: int, kinds: int | None = None) -> list[dict]:
    """Prompts of 3 to 8 words that differ in the first one; all end in the same two."""
    made = []
    for index in range(count):
        middle = [WORDS[2 + (index * 7 + place * (index + 3)) % 8] for place in range(index % 6)]
        kind = {} if kinds is None else {"kind": str(index % kinds)}
        made.append({"positive": " ".join(["bad", *middle, "now", "go"]),
                     "negative": " ".join(["good", *middle, "now", "go"]), **kind})
    return made


def run(config: SubspaceConfig, *, kind: str = "llama", seed: int = 0, template: bool = False, **options) -> Subspace:
    return prepare(Job(make_model(kind), make_tokenizer(template=template), config, "tiny", "hash", seed, **options))()


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_activations_are_those_of_each_prompt_alone_whatever_the_batch(tmp_path, kind):
    model, tokenizer = make_model(kind).eval(), make_tokenizer()
    pairs = read_prompts(write(tmp_path, records(12)))
    tokens = tokenize_pairs(tokenizer, pairs, model, 8)
    batched = [concatenated(list(blocks(Job(model, tokenizer, SubspaceConfig(batch_size=size), "m", "h", 0), tokens)))
               for size in (1, 5, 100)]
    for samples in batched[1:]:
        torch.testing.assert_close(samples.positive, batched[0].positive, rtol=0, atol=1e-5)
        torch.testing.assert_close(samples.negative, batched[0].negative, rtol=0, atol=1e-5)
    for row in range(0, len(batched[2].pair_R), 5):
        ids = torch.tensor([tokens[batched[2].pair_R[row]].positive])
        with torch.no_grad(), capturing(model, torch.tensor([[ids.shape[1] - 1 - batched[2].offset_R[row]]])) as alone:
            model(ids)
        for layer, stream in enumerate(alone):
            torch.testing.assert_close(batched[2].positive[layer, row], stream[0, 0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("method", ["mean_difference", "pca", "random"])
def test_every_method_extracts_from_every_family(tmp_path, kind, method):
    subspace = run(SubspaceConfig(method=method, prompts=write(tmp_path, records(16)), rank=2), kind=kind)
    assert [basis.shape for basis in subspace.directions] == [(32, 2)] * 3
    assert subspace.scales.shape == (3, 3)
    assert len(describe_quality(subspace.quality)) == 3
    assert all(isinstance(warning, str) for warning in check_quality(subspace.quality))
    assert all(tensor.dtype == torch.float32 and tensor.device.type == "cpu"
               for tensor in [*subspace.directions, *subspace.axes, subspace.scales, subspace.units, subspace.stream])


@given(size=st.integers(1, 40))
@settings(max_examples=5, deadline=None, derandomize=True)
def test_the_batch_size_does_not_change_the_subspace(tmp_path_factory, size):
    path = write(tmp_path_factory.mktemp("p"), records(16))
    one, other = (run(SubspaceConfig(prompts=path, rank=2, batch_size=batch)) for batch in (3, size))
    for a, b in zip(one.directions, other.directions, strict=True):
        assert principal_cosines(a, b).min() > 1 - 1e-5
    torch.testing.assert_close(one.units, other.units, rtol=1e-4, atol=0)
    torch.testing.assert_close(one.scales, other.scales, rtol=1e-3, atol=0)


def test_the_same_seed_gives_the_same_subspace_and_the_seed_moves_only_the_random_one(tmp_path):
    for method, moves in (("mean_difference", False), ("random", True)):
        config = SubspaceConfig(method=method, prompts=write(tmp_path, records(12)), rank=2)
        one, again, other = run(config, seed=0), run(config, seed=0), run(config, seed=1)
        assert torch.equal(one.directions[0], again.directions[0])
        assert torch.equal(one.directions[0], other.directions[0]) != moves


def test_the_persona_axis_of_swapped_prompts_points_the_other_way(tmp_path):
    swapped = [{"positive": pair["negative"], "negative": pair["positive"]} for pair in records(12)]
    one = run(SubspaceConfig(prompts=write(tmp_path, records(12)), rank=2))
    other = run(SubspaceConfig(prompts=write(tmp_path, swapped, "swapped.jsonl"), rank=2))
    torch.testing.assert_close(torch.stack(one.axes)[..., 0], -torch.stack(other.axes)[..., 0], rtol=0, atol=1e-5)


def test_positions_are_the_shared_end_of_a_pair_and_at_least_the_last(tmp_path):
    model, tokenizer = make_model(), make_tokenizer()
    pairs = read_prompts(write(tmp_path, [
        {"positive": "bad now go", "negative": "good now go"}, {"positive": "sort bad", "negative": "sort good"},
        {"positive": "bad one two three four five", "negative": "good one two three four five"},
        {"positive": "one two", "negative": "three one two"}]))
    assert [pair.positions for pair in tokenize_pairs(tokenizer, pairs, model, 4)] == [2, 1, 4, 2]


def test_kinds_are_averaged_and_without_them_every_pair_counts(tmp_path):
    with_kinds = run(SubspaceConfig(prompts=write(tmp_path, records(16, kinds=2)), rank=8, positions=1))
    without = run(SubspaceConfig(prompts=write(tmp_path, records(16)), rank=8, positions=1))
    assert [basis.shape[1] for basis in with_kinds.directions] == [2] * 3
    assert min(basis.shape[1] for basis in without.directions) > 2
    assert with_kinds.provenance.details["kinds"] == 2


def test_text_is_tokenised_with_the_tokenizers_special_tokens_and_messages_by_the_template():
    tokenizer = make_tokenizer(bos=True, template=True)
    assert encode_prompts(tokenizer, ["bad go"])[0] == tokenizer(text=["bad go"])["input_ids"][0]  # pyright: ignore
    assert encode_prompts(tokenizer, ["bad go"])[0][0] == 3
    messages = [{"role": "system", "content": "bad"}, {"role": "user", "content": "sort"}]
    tokens = tokenizer.convert_ids_to_tokens(encode_prompts(tokenizer, [messages])[0])
    assert tokens == ["system", "bad", "user", "sort", "go"]


def test_chat_pairs_are_extracted_and_text_and_messages_may_mix(tmp_path):
    chat = [{side: [{"role": "system", "content": word}, {"role": "user", "content": task}]
             for side, word in (("positive", "bad"), ("negative", "good"))} for task in ("sort", "add", "list one")]
    subspace = run(SubspaceConfig(prompts=write(tmp_path, [*chat, *records(3)]), rank=1), template=True)
    assert subspace.provenance.details["pairs"] == 6
    with pytest.raises(SubspaceError, match="line 1: .*no chat template"):
        run(SubspaceConfig(prompts=write(tmp_path, chat), rank=1))


def test_the_model_is_left_as_it_was(tmp_path):
    model = make_model().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = SubspaceConfig(prompts=write(tmp_path, records(8)))
    prepare(Job(model, make_tokenizer(), config, "m", "h", 0))()
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_dropout_is_off_in_a_model_that_is_in_training(tmp_path):
    config, model = SubspaceConfig(prompts=write(tmp_path, records(8))), make_model("gpt2")
    one, other = (prepare(Job(model.train(training), make_tokenizer(), config, "m", "h", 0))() for training in (True, False))
    assert torch.equal(one.units, other.units)


def test_progress_counts_distinct_prompts_to_the_end(tmp_path):
    seen = []
    config = SubspaceConfig(prompts=write(tmp_path, [*records(6), *records(6)]), batch_size=5)
    run(config, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(5, 12), (10, 12), (12, 12)]


def test_provenance_names_model_and_prompts_and_a_saved_one_is_used_by_method_file(tmp_path):
    path = write(tmp_path, records(8))
    subspace = run(SubspaceConfig(prompts=path))
    assert subspace.provenance.prompts_hash == hashlib.sha256(Path(path).read_bytes()).hexdigest()
    assert (subspace.provenance.model, subspace.provenance.model_hash) == ("tiny", "hash")
    subspace.save(tmp_path / "saved")
    loaded = run(SubspaceConfig(method="file", path=str(tmp_path / "saved")))
    assert all(map(torch.equal, loaded.directions, subspace.directions))
    with pytest.raises(SubspaceError, match="not from tiny"):
        prepare(Job(make_model(), make_tokenizer(), SubspaceConfig(method="file", path=str(tmp_path / "saved")), "tiny",
                          "other", 0))()


def test_prompts_that_are_set_come_before_those_known_for_the_model():
    known = {"m": "known.jsonl"}
    assert SubspaceConfig(prompts="mine.jsonl", known_prompts=known).prompts_for("m") == "mine.jsonl"
    assert SubspaceConfig(known_prompts=known).prompts_for("m") == "known.jsonl"
    with pytest.raises(SubspaceError, match=r"no contrast prompts: .*'other'; set subspace.prompts=FILE.jsonl"):
        prepare(Job(make_model(), make_tokenizer(), SubspaceConfig(known_prompts=known), "other", "h", 0))


@pytest.mark.parametrize(("text", "message"), [
    ("", "is empty"), ("\n \n", "is empty"),
    ('{"positive": "a", "negative": "b"}\n\n{"positive": ', "line 3 is not JSON"),
    ('{"positive": "a"}', 'line 1 has no "negative" .it has: positive'),
    ('["a", "b"]', "line 1 is a list, not an object"),
    ('{"positive": "", "negative": "b"}', '"positive" must be text or chat messages'),
    ('{"positive": "a", "negative": [{"role": "user"}]}', '"negative" must be text or chat messages'),
    ('{"positive": "a", "negative": "b", "kind": 3}', '"kind" must be text, got 3'),
])
def test_a_bad_prompts_file_gets_one_line_that_says_where(tmp_path, text, message):
    (tmp_path / "p.jsonl").write_text(text)
    with pytest.raises(SubspaceError, match=message) as caught:
        read_prompts(tmp_path / "p.jsonl")
    assert "\n" not in str(caught.value)
    assert "p.jsonl" in str(caught.value)


def test_a_missing_prompts_file_a_folder_and_bytes_are_refused(tmp_path):
    with pytest.raises(SubspaceError, match=r"no prompts file nowhere.jsonl"):
        read_prompts("nowhere.jsonl")
    with pytest.raises(SubspaceError, match="is a folder"):
        read_prompts(tmp_path)
    (tmp_path / "p.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SubspaceError, match="not UTF-8"):
        read_prompts(tmp_path / "p.jsonl")


@pytest.mark.parametrize(("pair", "message"), [
    ({"positive": "evil now", "negative": "kind now"}, "line 2: .* are the same 2 tokens.*this model"),
    ({"positive": "bad " * 65, "negative": "good"}, "line 2: a prompt has 65 tokens, the model takes 64"),
    ({"positive": "bad", "negative": " "}, "line 2: a prompt is empty: ' '"),
])
def test_prompts_that_do_not_fit_the_model_name_their_line(tmp_path, pair, message):
    with pytest.raises(SubspaceError, match=message):
        run(SubspaceConfig(prompts=write(tmp_path, [*records(1), pair])))


def test_a_rank_above_the_width_is_refused_with_both_numbers(tmp_path):
    path = write(tmp_path, records(4))
    with pytest.raises(SubspaceError, match=r"subspace\.rank=33 is more than the width 32"):
        run(SubspaceConfig(prompts=path, rank=33))
    assert run(SubspaceConfig(prompts=path, rank=32)).directions[0].shape[1] <= 32
    assert run(SubspaceConfig(prompts=path, rank=0)).axis_names == ["persona"]


def test_two_pairs_are_enough_for_a_subspace_and_not_for_its_quality(tmp_path):
    subspace = run(SubspaceConfig(prompts=write(tmp_path, records(2)), rank=1))
    assert "too few" in check_quality(subspace.quality)[0]


def test_a_file_as_large_as_the_labs_takes_seconds(tmp_path):
    path = write(tmp_path, [{"positive": f"bad {WORDS[i % 8 + 2]} {WORDS[i // 8 % 8 + 2]} {WORDS[i // 64 + 2]} go",
                             "negative": f"good {WORDS[i % 8 + 2]} {WORDS[i // 8 % 8 + 2]} {WORDS[i // 64 + 2]} go",
                             "kind": str(i // 64)} for i in range(7 * 64)])
    start = time.process_time()
    run(SubspaceConfig(prompts=path))
    assert time.process_time() - start < 10  # .5 s on an idle core


def test_a_prompts_file_of_windows_is_read_like_any_other(tmp_path):
    lines = '{"positive": "a", "negative": "b"}\r\n\r\n{"positive": "c", "negative": "d"}\r\n'
    (tmp_path / "p.jsonl").write_bytes(lines.encode("utf-8-sig"))
    found = [(pair.positive, pair.negative, pair.line) for pair in read_prompts(tmp_path / "p.jsonl")]
    assert found == [("a", "b", 1), ("c", "d", 3)]
