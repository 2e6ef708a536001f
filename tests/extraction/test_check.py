"""`extract --check`: figures, verdict, exit code, files; and the causal check tells a planted axis from random ones."""

import dataclasses
import json

import pytest
import torch
from transformers import AutoModelForCausalLM, CohereConfig, GraniteConfig, LlamaConfig, RecurrentGemmaConfig

from routed_rl.config import SubspaceCheckConfig
from routed_rl.errors import CheckFailed, SubspaceError
from routed_rl.extraction.answers import Answers, reference_answers
from routed_rl.extraction.causal import causal_check
from routed_rl.extraction.check import verdicts
from routed_rl.extraction.job import Job
from routed_rl.extraction.likelihood import Likelihood
from routed_rl.extraction.persona import layers_to_read
from routed_rl.model.families import FAMILIES
from routed_rl.model.load import load_model, load_tokenizer
from routed_rl.model.targets import FOUND
from routed_rl.model.weights import model_hash
from routed_rl.subspace import Provenance, Subspace
from tests import pipeline
from tests.chat import chat_config

WIDTH, LAYERS = 32, 2


@pytest.fixture(scope="module")
def job(tiny, settings):
    path = str(tiny / "model")
    return Job(load_model(path), load_tokenizer(path), settings(), path, model_hash(load_model(path)), 0)


def along(axis: torch.Tensor, model_hash: str, unit: float = 1.0) -> Subspace:
    axis = (axis / axis.norm()).unsqueeze(1)
    return Subspace([axis] * LAYERS, [axis] * LAYERS, ["axis"], torch.full((LAYERS, 1), unit), torch.full((LAYERS,), unit),
                    torch.zeros(LAYERS, 2, WIDTH), Provenance("file", "m", model_hash, WIDTH, LAYERS, 1))


def test_what_the_unembedding_reads_is_told_from_random_directions_with_its_sign_and_a_random_one_is_not(job):
    answers, _ = reference_answers(job, "mean_difference")
    embedding = job.model.get_output_embeddings().weight.detach()
    mean = [torch.stack([embedding[list(getattr(pair, side))].mean(0) for pair in answers]).mean(0)
            for side in ("positive", "negative")]
    job = dataclasses.replace(job, config=dataclasses.replace(job.config, check=SubspaceCheckConfig(layer=1)))
    real = causal_check(job, along(mean[0] - mean[1], job.model_hash))["axes"][0]
    assert real["p"] == pytest.approx(1 / 65) and real["as_signed"] and real["more"] > 0 > real["less"]
    turned = causal_check(job, along(mean[1] - mean[0], job.model_hash))["axes"][0]
    assert turned["p"] == pytest.approx(1 / 65) and not turned["as_signed"]
    others = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(100))
    drawn = [causal_check(job, along(other, job.model_hash))["axes"][0] for other in others]
    assert max(axis["p"] for axis in drawn) > 0.2


def test_without_a_push_nothing_changes_and_the_model_is_left_as_it_was(job):
    weights = {name: value.clone() for name, value in job.model.state_dict().items()}
    check = SubspaceCheckConfig(layer=0, strength=0, random=2)
    job = dataclasses.replace(job, config=dataclasses.replace(job.config, check=check))
    found = causal_check(job, along(torch.ones(WIDTH), job.model_hash))
    assert found["axes"][0]["more"] == found["axes"][0]["less"] == 0 != found["axes"][0]["ablated"]
    assert all(torch.equal(weights[name], value) for name, value in job.model.state_dict().items())
    assert not any("forward" in vars(module) or module._forward_hooks for module in job.model.modules())


def test_so_many_directions_are_drawn_that_the_correction_can_be_passed(job):
    check = SubspaceCheckConfig(layer=1, axes=4, random=3, p=0.5)
    subspace = along(torch.ones(WIDTH), job.model_hash)
    axes = torch.linalg.qr(torch.randn(WIDTH, 4, generator=torch.Generator().manual_seed(0))).Q
    subspace = dataclasses.replace(subspace, axes=[axes] * LAYERS, axis_names=list("abcd"), scales=torch.ones(LAYERS, 4))
    found = causal_check(dataclasses.replace(job, config=dataclasses.replace(job.config, check=check)), subspace)
    assert len(found["axes"]) == 4 and len(found["random"]["steering"]) == 8


def test_roles_are_judged_by_the_models_own_answers_to_questions_that_no_axis_has_seen(job, settings, tiny):
    own = dataclasses.replace(job, config=settings(method="assistant_axis", answers=None))
    answers, source = reference_answers(own, "assistant_axis")
    assert "own answers" in source and len(answers) == 8  # 16 questions, 8 of them used
    assert all(1 <= len(side) <= 3 for pair in answers for side in (pair.positive, pair.negative))
    none = dataclasses.replace(job, config=settings(answers=None))
    assert reference_answers(none, "mean_difference") == ([], "")
    assert "set subspace.answers" in causal_check(none, along(torch.ones(WIDTH), job.model_hash))["missing"]


def config_of(tiny, settings, out, **changes):
    mapping = dataclasses.asdict(settings(rank=1, **changes))
    mapping["check"] = changes.get("check", {})
    return chat_config(tiny, out, {}, subspace=mapping)


def test_a_check_writes_figures_and_a_plot_and_fails_by_the_users_thresholds_alone(tiny, settings, tmp_path, capsys):
    easy = {"auroc": 0.0, "stability": 0.0, "p": 1.0, "random": 8, "axes": 1}
    first = tmp_path / "first"
    pipeline.extract(config_of(tiny, settings, first, check=easy), [], True)
    found = json.loads((first / "check.json").read_text())
    assert set(found) == {"quality", "axes", "causal", "cosines"} and len(found["causal"]["random"]["steering"]) == 8
    assert (first / "check.png").read_bytes()[:4] == b"\x89PNG"
    Subspace.load(first)
    second = tmp_path / "second"
    with pytest.raises(CheckFailed, match="steering changes answers.*at most 0.01"):
        pipeline.extract(config_of(tiny, settings, second, check=easy | {"p": 0.01}, compare_to=[str(first)]), [], True)
    said = capsys.readouterr().out
    assert "NOT GOOD" in said and "cosine to the axes of" in said and (second / "check.json").exists()
    cosine = json.loads((second / "check.json").read_text())["cosines"][str(first)][0]
    assert cosine["nearest"] in ("persona", "component_1") and cosine["cosine"] == pytest.approx(1, abs=1e-4)


def test_what_was_not_measured_fails_nothing_and_is_said():
    found = {"quality": {"pairs": None, "draws": 0, "layers": [{"layer": 0, "rank": 1}]}, "axes": None,
             "causal": {"missing": "no answers"}, "cosines": {}}
    said = verdicts(found, SubspaceCheckConfig())
    assert [verdict.good for verdict in said] == [None] * 4 and all("not measured" in verdict.answer for verdict in said)


@pytest.mark.parametrize(("kind", "changes"), [
    (GraniteConfig, {"logits_scaling": 4.0}), (CohereConfig, {"logit_scale": 0.25}), (LlamaConfig, {"logit_scale": None}),
    (RecurrentGemmaConfig, {"logits_soft_cap": 0.5, "block_types": ["recurrent", "attention"]})])
def test_likelihoods_are_those_of_the_models_own_logits_or_are_refused(kind, changes):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(kind(
        vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        pad_token_id=0, bos_token_id=0, eos_token_id=0, **changes)).eval()
    object.__setattr__(model, FOUND, FAMILIES["llama"])
    answers = [Answers((3, 4, 5), (6, 7), (8,))]
    with torch.no_grad():
        own = model(torch.tensor([[3, 4, 5, 6, 7]])).logits[0].log_softmax(-1)
        found = Likelihood(model, answers, 0).sums(lambda stream: stream)
    torch.testing.assert_close(found, torch.stack([own[2, 6] + own[3, 7], own[2, 8]]))
    model.register_forward_hook(lambda _module, _inputs, output: setattr(output, "logits", 3 * output.logits))
    with pytest.raises(SubspaceError, match=f"a {model.config.model_type} model scales its logits in a way that is not known"):
        Likelihood(model, answers, 0)


def test_completions_are_read_at_a_layer_that_has_the_axis():
    """A vector of a file may stand at one layer alone; at another every coordinate would be 0."""
    subspace = along(torch.ones(WIDTH), "h")
    subspace = dataclasses.replace(subspace, axes=[torch.zeros(WIDTH, 1), subspace.axes[1]])
    assert layers_to_read(subspace) == [1] == layers_to_read(subspace, [1])
    with pytest.raises(SubspaceError, match="has no axis axis at layer 0, so nothing can be read there; it has one at 1"):
        layers_to_read(subspace, [0, 1])
