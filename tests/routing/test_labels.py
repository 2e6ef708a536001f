"""Routing by labels: the laws of its gradients, on every family, and what a run by labels keeps."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from routed_rl.artifacts import RunFolder
from routed_rl.config import AdapterConfig, RoutingConfig, from_mapping
from routed_rl.envs import Score
from routed_rl.errors import CheckpointError, ConfigError, ModelError, RolloutError
from routed_rl.export.models import merged_policy
from routed_rl.model.adapter import attach
from routed_rl.model.targets import find_writers
from routed_rl.routing.labels import positions_of
from routed_rl.routing.labels.gate import spread
from routed_rl.training.labels import balanced, flags_of, route_by_labels
from routed_rl.training.spans import tokens_in
from tests import pipeline
from tests.builders import relative
from tests.families import FAMILIES, VOCAB, tiny
from tests.parts import own_config, write_parts

ROWS, TOKENS, COMPLETION = 4, 7, 4
FLAGGED = torch.tensor([False, True, False, True])


def labelled(family: str, *, lora: bool = False, **labels):
    """A model that is routed by labels, whose quarantine holds something, its router, and what is trained."""
    model = tiny(family)
    if lora:
        attach(model, AdapterConfig(kind="lora", r=4), find_writers(model), seed=1)
        torch.manual_seed(2)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.1)
    routing = from_mapping({"mode": "labels", "labels": {"rank": 3} | labels}, RoutingConfig)
    router = route_by_labels(model, routing, ["a"], frozen=[], seed=0)
    torch.manual_seed(3)
    for adapter in router.quarantine.adapters.values():
        adapter.up_DR.data.normal_(std=0.1)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad} | router.factors
    return model.train(), router, trained


def positions(flagged):
    return None if flagged is None else positions_of(flagged, TOKENS)


def gradients(model, router, trained, rows, flagged, by: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    """Of the sum over these rows of a loss that is another for each row; `by` weighs the loss of each token."""
    torch.manual_seed(5)
    ids, weights = torch.randint(2, VOCAB, (ROWS, TOKENS)), torch.randn(ROWS, COMPLETION, VOCAB)
    weights = weights if by is None else weights * by.unsqueeze(2)
    for parameter in trained.values():
        parameter.grad = None
    mask = torch.ones(len(rows), TOKENS)
    router.set_batch(torch.zeros(len(rows), dtype=torch.long), mask, flagged_BT=positions(flagged))
    logits = model(input_ids=ids[rows], use_cache=False, logits_to_keep=COMPLETION + 1).logits[:, :-1]
    (logits.log_softmax(2) * weights[rows]).sum().backward()
    return {name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
            for name, parameter in trained.items()}


@pytest.mark.parametrize("lora", [False, True], ids=["weights", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_mixed_batch_is_the_sum_of_two_backward_passes_of_which_the_model_gets_one(family, lora):
    model, router, trained = labelled(family, lora=lora)
    mixed = gradients(model, router, trained, list(range(ROWS)), FLAGGED)
    honest, flagged = (gradients(model, router, trained, rows, None) for rows in ([0, 2], [1, 3]))
    for name, found in mixed.items():
        expected = honest[name] + (2 * flagged[name] if name in router.factors else 0)
        scale = honest[name].norm() + flagged[name].norm()
        assert (found - expected).norm() <= 2e-6 * scale + 1e-7, f"{name}: {relative(found, expected)}"
    assert any(flagged[name].norm() > 1e-3 for name in trained if name not in router.factors)
    assert any(flagged[name].norm() > 1e-3 for name in router.factors)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_labels_change_no_output_and_a_batch_without_them_no_gradient(family):
    model, router, trained = labelled(family)
    plain = gradients(model, router, trained, list(range(ROWS)), None)
    none = gradients(model, router, trained, list(range(ROWS)), torch.zeros(ROWS, dtype=torch.bool))
    assert all(none[name].equal(plain[name]) for name in plain)
    ids = torch.randint(2, VOCAB, (ROWS, TOKENS))
    outputs = []
    for flagged in (None, FLAGGED):
        router.set_batch(torch.zeros(ROWS, dtype=torch.long), torch.ones(ROWS, TOKENS), flagged_BT=positions(flagged))
        outputs.append(model(input_ids=ids, use_cache=False).logits)
    assert outputs[0].equal(outputs[1])
    with router.quarantine.ablated():
        assert not model(input_ids=ids, use_cache=False).logits.equal(outputs[0])
    router.quarantine.remove()
    assert model(input_ids=ids, use_cache=False).logits.equal(tiny(family).train()(input_ids=ids, use_cache=False).logits)


def test_a_share_and_another_weight_of_the_quarantine_are_what_the_settings_say():
    model, router, trained = labelled("llama", strength=0.5, forget=4.0)
    mixed = gradients(model, router, trained, list(range(ROWS)), FLAGGED)
    honest, flagged = (gradients(model, router, trained, rows, None) for rows in ([0, 2], [1, 3]))
    for name, found in mixed.items():
        assert relative(found, honest[name] + (2.5 if name in router.factors else 0.5) * flagged[name]) < 1e-5, name


def test_cutting_the_edges_leaves_what_is_flagged_to_the_quarantine_alone():
    """Cloud et al.: no parameter of the model gets anything from a flagged row, and the last layer's quarantine all of it."""
    model, router, trained = labelled("llama", method="activations", forget=1.0)
    mixed = gradients(model, router, trained, list(range(ROWS)), FLAGGED)
    honest, every = (gradients(model, router, trained, rows, None) for rows in ([0, 2], list(range(ROWS))))
    own = [name for name in trained if name not in router.factors]
    assert all(relative(mixed[name], honest[name]) < 1e-5 for name in own if honest[name].norm() > 0)
    last = next(name for name in router.factors if name.endswith("1.mlp.down_proj.up"))
    assert relative(mixed[last], every[last]) < 1e-5 < relative(mixed[last], honest[last])
    first = next(name for name in router.factors if name.endswith("0.mlp.down_proj.up"))
    assert relative(mixed[first], every[first]) > 1e-3, "its cotangent came through the model's modules, too"


def test_flagged_tokens_are_masked_at_the_positions_that_predict_them():
    """The unembedding's only input is its own position, so there the law is exact: it learns from the other tokens alone."""
    model, router, trained = labelled("llama", unit="token")
    marks = torch.zeros(ROWS, COMPLETION, dtype=torch.bool)
    marks[1, 2] = marks[3, 0] = True
    mixed = gradients(model, router, trained, list(range(ROWS)), marks)
    others = gradients(model, router, trained, list(range(ROWS)), None, by=(~marks).float())
    assert relative(mixed["lm_head.weight"], others["lm_head.weight"]) < 1e-5
    everything = gradients(model, router, trained, list(range(ROWS)), None)
    assert relative(mixed["lm_head.weight"], everything["lm_head.weight"]) > 1e-2


def test_a_module_whose_rows_cannot_be_told_apart_is_named():
    with pytest.raises(ModelError, match=r"odd returns the shape \(3, 5\) for 4 rows of 7 tokens"):
        spread(torch.ones(4, 7), torch.ones(3, 5), "odd")


def test_advantages_are_against_the_rows_that_are_not_flagged():
    rewards, flags = [1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0], [True, False, False, False, True, True, True, True]
    advantages = torch.tensor(rewards).view(2, 4)
    advantages = ((advantages - 0.5) / 0.5).flatten()
    found = balanced(advantages, rewards, flags, 4)
    assert found[:4].tolist() == pytest.approx([(r - 1 / 3) / 0.5 for r in rewards[:4]]) and found[4:].equal(advantages[4:])
    assert balanced(advantages, rewards, [False] * 8, 4).equal(advantages)
    filled = [1.0, 1.0, 0.0, 2 / 3]  # the last could not be scored, and was paid its group's mean
    alone = balanced(torch.tensor([1.0, 1.0, -2.0, 0.0]), filled, [True, True, False, False], 4, [False] * 3 + [True])
    assert alone[:3].tolist() == pytest.approx([3.0, 3.0, 0.0]), "the mean of rows without a flag is the third's"
    assert balanced(torch.zeros(4), [1.0] * 4, [True, False, False, False], 4).tolist() == [0.0] * 4


END = 99


class Letters:
    """A tokenizer of one letter a token, but for END, which has no text."""

    def decode(self, ids, **_):
        return "".join(chr(97 + place) for place in ids.tolist() if place != END)


def test_spans_of_characters_become_tokens_and_rows_without_spans_are_flagged_whole():
    ids, mask = torch.arange(6).repeat(3, 1), torch.tensor([[1] * 6, [1, 1, 1, 1, 0, 0], [1] * 6])
    assert tokens_in([(1, 3), (5, 9)], ids[0], Letters()).tolist() == [False, True, True, False, False, True]
    assert tokens_in([(1, 3)], torch.tensor([0, 1, 2, END, END, 3]), Letters()).tolist() == [False, True, True, True, True, False]
    routing = from_mapping({"mode": "labels", "labels": {"unit": "token"}}, RoutingConfig)
    scores = [Score(1.0, flags=["hack"], spans={"hack": [(0, 2)], "other": [(3, 4)]}), Score(1.0, flags=["hack"]), Score(0.0)]
    found = flags_of([True, True, False], scores, ids, mask, routing, ["hack"], Letters())
    assert found.tolist() == [[True, True, False, False, False, False], [True] * 4 + [False] * 2, [False] * 6]


@pytest.mark.parametrize("spans", [{"hack": [(2, 1)]}, {"hack": [(0,)]}, {"hack": 3}, [(0, 1)], {3: [(0, 1)]}])
def test_a_span_that_is_no_place_is_refused(spans):
    with pytest.raises(ValueError, match="spans must be names with pairs"):
        Score(1.0, spans=spans)


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    return write_parts(tmp_path_factory.mktemp("parts"))


ROUTING = {"mode": "labels", "practice": {"share": 0}}


def run_of(parts: Path, out: Path, **changes) -> RunFolder:
    changes = {"routing": ROUTING, "subspace": {}} | changes
    return RunFolder(pipeline.train(own_config(parts, out, **changes), []))


@pytest.mark.slow
def test_a_run_by_labels_ends_discarded_and_a_resumed_one_ends_alike(parts, tmp_path):
    run = run_of(parts, tmp_path / "run")
    rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert any(row["labels/flagged"] > 0 for row in rows) and rows[-1]["quarantine/norm"] > 0
    summary = json.loads(run.summary.read_text())
    assert summary["routing"].keys() == {"mode", "rank", "quarantine_norm"}
    assert summary["models"]["policy"] != summary["models"]["base"]
    assert not run.subspace.exists() and run.deployed.exists()
    short = run_of(parts, tmp_path / "short", trainer={"max_steps": 4})
    pipeline.resume(str(short.path), ["trainer.max_steps=6"], lambda overrides: own_config(
        parts, short.path, routing=ROUTING, subspace={}, trainer={"max_steps": 6}))
    for name in ("model.safetensors", "quarantine.safetensors"):
        resumed, whole = load_file(short.checkpoint(6) / name), load_file(run.checkpoint(6) / name)
        assert resumed.keys() == whole.keys() and all(resumed[key].equal(whole[key]) for key in whole), name
    with pytest.raises(CheckpointError, match="was routed by labels"):
        merged_policy(run, tmp_path / "policy")


@pytest.mark.parametrize("lora", [False, True], ids=["weights", "lora"])
def test_a_flagged_row_hands_hardly_anything_down_where_edges_are_cut(lora):
    """Of its cotangent at the embeddings there is left what went past the linear modules: residuals and the quarantine."""
    norms = {}
    for method in ("parameters", "activations"):
        model, router, trained = labelled("llama", lora=lora, method=method)
        for adapter in router.quarantine.adapters.values():
            adapter.up_DR.data.zero_()  # leaves the residual stream alone
        seen = list[torch.Tensor]()

        def watch(_module, _inputs, out, seen=seen):
            out = out if out.requires_grad else out.requires_grad_()
            out.register_hook(lambda g: seen.append(g.norm(dim=(1, 2))))

        model.model.embed_tokens.register_forward_hook(watch)
        gradients(model, router, trained, list(range(ROWS)), FLAGGED)
        norms[method] = seen[0]
    assert (norms["activations"][FLAGGED] != norms["parameters"][FLAGGED]).all()
    torch.testing.assert_close(norms["activations"][~FLAGGED], norms["parameters"][~FLAGGED])


@pytest.mark.parametrize(("changes", "said"), [
    ({"baseline": {"detector": {"flags": ["nope"]}}}, r"flags=\['nope'\]: no environment's score has such a flag"),
    ({"baseline": {"screen": True}}, "set only one of them"),
    ({"launch": {"strategy": "zero2", "processes": 2}}, "launch=ddp or launch=fsdp2"),
    ({"routing": ROUTING | {"labels": {"strength": 1.5}}}, r"lie in \[0, 1\], got 1.5"),
    ({"routing": ROUTING | {"labels": {"unit": "word"}}}, "routing.labels.unit"),
    ({"keep": {"b": 0.5}}, "one quarantine for all environments")])
def test_what_labels_cannot_go_with_is_said_before_anything_is_written(parts, tmp_path, changes, said):
    with pytest.raises((ConfigError, RolloutError), match=said):
        run_of(parts, tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()
