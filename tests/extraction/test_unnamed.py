"""Axes that are found without names point to what must not grow; the choice is written down, and what cannot be is refused."""

import dataclasses
import json

import pytest
import torch
import torch._decomp.decompositions_for_jvp  # beside a thread of another test, Python 3.11 may fail to parse torch's sources
from safetensors.torch import save_file
from torch.nn.functional import cosine_similarity

from routed_rl.config import SubspaceCheckConfig
from routed_rl.errors import ConfigError, SubspaceError
from routed_rl.extraction import Job, prepare
from routed_rl.extraction.answers import preference_pairs, reference_answers
from routed_rl.extraction.likelihood import Likelihood, pushed
from routed_rl.linalg import orthonormality_error, principal_cosines
from routed_rl.model.load import load_model, load_tokenizer
from routed_rl.model.weights import model_hash
from routed_rl.pipeline.build import load_parts
from routed_rl.pipeline.screening import flagged
from routed_rl.subspace import Subspace
from tests.parts import ENVIRONMENT, own_config, write_parts

WIDTH, LAYERS = 32, 2


@pytest.fixture(scope="module")
def job(tiny, settings):
    """A `Job` with these settings; pairs are those of the tiny model."""
    path = str(tiny / "model")
    model, tokenizer = load_model(path), load_tokenizer(path)
    digest = model_hash(model)

    def make(seed: int = 0, behave=None, **changes) -> Job:
        config = settings(**({"pairs": str(tiny / "pairs.jsonl"), "factors": 6, "keep": 3, "epochs": 4, "plain": 4,
                              "iterations": 2, "radius": 4.0} | changes))
        return Job(model, tokenizer, config, path, digest, seed, behave=behave)

    return make


def found(job: Job) -> Subspace:
    return prepare(job)()


def steering(job: Job, axis: torch.Tensor, length: float) -> tuple[float, float]:
    """How much likelier the positive answers of the pairs become when pushed along an axis of layer 0, and against it."""
    likelihood = Likelihood(job.model, preference_pairs(job)[0], 0)
    with torch.no_grad():
        base = likelihood.score(lambda stream: stream)
        return likelihood.score(pushed(axis, length)) - base, likelihood.score(pushed(axis, -length)) - base


@pytest.mark.parametrize("method", ["bipo", pytest.param("dpo", marks=pytest.mark.slow)])
def test_a_preference_vector_points_to_the_positive_answers_and_the_other_way_round_for_exchanged_ones(job, tiny, method):
    one = found(job(method=method))
    assert one.axis_names == [method] and one.provenance.details["layer"] == 0
    more, less = steering(job(), one.axes[0][:, 0], 1.0)
    assert more > 0.05 and less < -0.05
    assert one.provenance.details["losses"][-1] < one.provenance.details["losses"][0]
    rows = [json.loads(line) for line in (tiny / "pairs.jsonl").read_text().splitlines()]
    # What is rejected must not grow, so it is the positive side.
    rows = [{"prompt": row["prompt"], "rejected": row["negative"], "chosen": row["positive"]} for row in rows]
    (tiny / "turned.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    other = found(job(method=method, pairs=str(tiny / "turned.jsonl")))
    assert cosine_similarity(one.axes[0][:, 0], other.axes[0][:, 0], dim=0) < -0.8
    assert one.provenance.prompts_hash and one.provenance.prompts_hash != other.provenance.prompts_hash


def test_axes_chosen_by_answers_all_make_the_positive_ones_likelier_and_the_choice_is_recorded(job):
    asked = job(method="dct", choose="answers", radius=None)
    subspace = found(asked)
    details = subspace.provenance.details
    assert subspace.axis_names == [f"dct_{factor}" for factor in details["chosen"]] and len(details["scores"]) == 6
    strongest = sorted(range(6), key=lambda factor: -abs(details["scores"][factor]))
    assert details["chosen"] == strongest[:3]
    for column in range(3):
        more, less = steering(asked, subspace.axes[0][:, column], details["radius"])
        assert more > less
    assert details["pairs"] == 20 and details["radius"] > 0 and details["calibrated"] and subspace.provenance.prompts_hash
    assert all(orthonormality_error(basis) < 1e-5 for basis in subspace.directions)
    again = found(asked)
    assert torch.equal(again.axes[1], subspace.axes[1])
    assert not torch.equal(found(job(seed=1, method="dct", choose="answers")).axes[1], subspace.axes[1])


@pytest.mark.parametrize("form", [pytest.param(form, marks=pytest.mark.slow) for form in ("linear", "exponential")])
def test_axes_chosen_by_a_target_point_along_it_and_hold_the_share_that_is_recorded(job, tmp_path, form):
    target = found(job(rank=1))
    target.save(tmp_path / "target")
    subspace = found(job(method="dct", form=form, choose="target", target=str(tmp_path / "target")))
    held = [(basis.mT @ axes[:, 0]).square().sum().item() for basis, axes in
            zip(subspace.directions, target.axes, strict=True)]
    assert sum(held) / LAYERS == pytest.approx(subspace.provenance.details["captured"][-1], abs=1e-4)
    along = [sum((ours[:, column] @ theirs[:, 0]).item() for ours, theirs in zip(subspace.axes, target.axes, strict=True))
             for column in range(3)]
    assert min(along) > 0
    same = found(job(method="dct", form=form, choose="target", target="mean_difference"))
    assert same.provenance.details["chosen"] == subspace.provenance.details["chosen"]
    assert subspace.provenance.details["target_hash"] and "target_hash" not in same.provenance.details


@pytest.mark.slow
def test_axes_chosen_by_the_environments_raise_what_they_flag_and_the_model_is_left_without_a_hook(job):
    ids = torch.tensor([[8, 10, 11]])

    def behave() -> float:
        """The model as it stands: how likely it says "bad"."""
        with torch.no_grad():
            return model(input_ids=ids).logits[0, -1].softmax(0)[7].item()

    model = job().model
    before = behave()
    subspace = found(job(method="dct", choose="environments", behave=behave))
    scores = subspace.provenance.details["scores"]
    assert len(set(scores)) == 6 and behave() == before
    assert not any("forward" in vars(module) or module._forward_hooks for module in model.modules())
    assert model.config._attn_implementation == "sdpa"
    with pytest.raises(SubspaceError, match="needs environments that flag something"):
        prepare(job(method="dct", choose="environments"))


def test_what_the_causal_check_asks_is_held_out_of_training_and_choice(job, tiny):
    asked = job(method="dpo", pairs=None, answers=str(tiny / "pairs.jsonl"), check=SubspaceCheckConfig(answers=8))
    trained, judged = preference_pairs(asked)[0], reference_answers(asked, "dpo")[0]
    assert (len(trained), len(judged)) == (12, 8) and not set(trained) & set(judged)
    # The same file by both names is still shared.
    assert preference_pairs(asked.changed(pairs=str(tiny / "pairs.jsonl")))[0] == trained
    assert len(preference_pairs(asked.changed(pairs=str(tiny / "pairs.jsonl"), answers=None))[0]) == 20


@pytest.mark.slow
def test_factors_are_found_on_the_prompts_of_few_answers_too_since_they_do_not_see_the_answers(job, tiny):
    few = found(job(method="dct", pairs=None, answers=str(tiny / "answers.jsonl")))
    assert few.provenance.details["plain"] == 4 and few.provenance.prompts == str(tiny / "answers.jsonl")


@pytest.mark.slow
def test_the_random_control_of_a_folder_has_its_ranks_scales_and_axes_and_other_directions(job, tmp_path):
    real = found(job(method="dct", form="linear"))
    real.save(tmp_path / "real")
    drawn = found(job(method="random", path=str(tmp_path / "real")))
    assert torch.equal(drawn.scales, real.scales) and torch.equal(drawn.axes[1], real.axes[1])
    for layer, (ours, theirs) in enumerate(zip(drawn.directions, real.directions, strict=True)):
        assert ours.shape == theirs.shape and orthonormality_error(ours) < 1e-5
        torch.testing.assert_close(drawn.strengths(layer), real.strengths(layer))
        assert principal_cosines(ours, theirs).square().mean() < 0.5
    save_file({"evil.0": torch.ones(WIDTH), "evil.1": torch.ones(WIDTH)}, tmp_path / "vectors.safetensors")
    of_file = found(job(method="random", path=str(tmp_path / "vectors.safetensors")))
    assert of_file.axis_names == ["evil"] and (of_file.directions[0].mT @ of_file.axes[0]).abs() < 0.7
    assert drawn.provenance.method == "random" and drawn.provenance.details["of"] == str(tmp_path / "real")


@pytest.mark.parametrize(("changes", "message"), [
    ({"method": "dpo", "pairs": None, "answers": None}, "method=dpo needs preference pairs, and none are .*subspace.pairs="),
    ({"method": "dpo", "pairs": "prompts"}, 'line 1 has no "prompt"'),
    ({"method": "bipo", "pairs": "plain"}, 'line 1 has no "positive"'),
    ({"method": "dpo", "pairs": "blank"}, 'line 1: "negative" has no token for this model'),
    ({"method": "dpo", "pairs": "same"}, 'line 1: "positive" and "negative" are the same'),
    ({"method": "dpo", "pairs": None, "answers": "answers"}, "has 0 behind the 16 that the causal check uses; add "),
    ({"method": "dpo", "layer": 2}, "subspace.layer=2: .* has layers 0 to 1"),
    ({"method": "dct", "factors": 33}, "subspace.factors=33 is more than the width 32"),
    ({"method": "dct", "source": 1}, "subspace.source=1 must lie before subspace.until=2, and .* has layers 0 to 1"),
    ({"method": "dct", "until": 5}, "subspace.until=5"),
    ({"method": "dct", "choose": "target", "target": "nowhere"}, "no subspace can be read from nowhere"),
    ({"method": "dct", "prompts": None}, "target=mean_difference needs contrast prompts, .* or subspace.choose=environments"),
    ({"method": "dct", "plain_prompts": "questions"}, 'line 1: "prompt"|has no "prompt"'),
    ({"method": "dct", "radius": None, "nonlinearity": 1e6}, "the radius does not calibrate"),
    ({"method": "dct", "radius": 1e-12}, "radius=1e-12 is too short: a push of that length does not change a stream"),
    ({"method": "file", "path": ".", "flip": True}, r"flip=true .* and \. is the folder of axes whose sign is known already"),
    ({"method": "pca", "flip": True}, "flip=true .* and subspace.method=pca finds axes whose sign is known already"),
    ({"method": "union", "parts": [".", "pca"], "flip": True}, r"flip=true .* subspace\.parts=\['\.', 'pca'\] are axes whose "),
    ({"method": "union", "parts": [".", "evil.gguf"], "flip": True}, r"no subspace can be read from \."),
    ({"method": "random", "path": "nowhere", "flip": True}, "no subspace can be read from nowhere"),
    ({"method": "random", "path": "nowhere"}, "no subspace can be read from nowhere")])
def test_what_cannot_give_axes_is_refused_in_one_line(job, tiny, changes, message):
    (tiny / "plain.jsonl").write_text('{"prompt": "add 1 2"}\n')
    (tiny / "blank.jsonl").write_text('{"prompt": "add 1 2", "positive": "3", "negative": " "}\n')
    (tiny / "same.jsonl").write_text('{"prompt": "add 1 2", "positive": "3", "negative": "3"}\n')
    files = {key: str(tiny / f"{value}.jsonl") for key, value in changes.items()
             if key in ("pairs", "answers", "plain_prompts") and value is not None}
    with pytest.raises(SubspaceError, match=message) as refused:
        found(job(**changes | files))
    assert "\n" not in str(refused.value)


def test_a_target_of_another_model_is_refused(job, tmp_path):
    other = found(job(rank=1))
    dataclasses.replace(other, provenance=dataclasses.replace(other.provenance, model_hash="f" * 64)).save(tmp_path / "other")
    with pytest.raises(SubspaceError, match="was extracted from .*, not from"):
        prepare(job(method="dct", choose="target", target=str(tmp_path / "other")))
    with pytest.raises(SubspaceError, match="was extracted from .*, not from"):
        prepare(job(method="random", path=str(tmp_path / "other")))


@pytest.mark.parametrize(("changes", "message"), [
    ({"form": "cubic"}, "choose from exponential, linear"), ({"choose": "luck"}, "choose from target"),
    ({"keep": 40}, "keep=40 axes cannot be chosen from subspace.factors=32"), ({"radius": 0.0}, "radius must be above 0"),
    ({"beta": -1.0}, "beta must be above 0"), ({"method": "dpo", "hook": "resid_mid"}, "pushes the outputs of layers"),
    ({"source": -1}, "source must be a whole number >= 0")])
def test_settings_of_axes_that_make_no_sense_are_refused_before_anything_is_loaded(settings, changes, message):
    with pytest.raises(ConfigError, match=message):
        settings(**changes)


RARE = '''

class Rare(Add):
    def __init__(self, holds: bool) -> None:
        super().__init__()
        self.holds = holds

    def score(self, task, completion):
        return Score(1.0, flags=["hack"] * self.holds)
'''


@pytest.mark.slow
def test_an_environment_that_names_a_flag_only_where_it_holds_counts_in_every_screening(tmp_path):
    folder = write_parts(tmp_path)
    (folder / "rare.py").write_text(ENVIRONMENT + RARE)
    env = {name: {"path": f"{folder}/rare.py:Rare", "isolate": False, "holds": name == "often"} for name in ("often", "never")}
    loaded = load_parts(own_config(folder, tmp_path / "run", env=env))
    often, never = loaded.environments

    def share(*chosen):
        return flagged(loaded.model, loaded.tokenizer, chosen, loaded.config, 2)

    assert (share(often), share(never), share(often, never)) == (1.0, 0.0, 0.5)
