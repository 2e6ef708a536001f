"""Which tokens a gate keeps, skips, or gives noise as their target."""

from __future__ import annotations

import pytest
import torch

from routed_rl.config.robust import RobustifyConfig
from routed_rl.distillation.divergence import KEEP, NOISE, SKIP, Row, forward_kl, read
from routed_rl.distillation.gates import by_detector, by_models, by_random, samples_tokens
from routed_rl.extraction.pooled import averaged, running
from routed_rl.extraction.probe import Probe
from tests.builders import tiny

ROWS = [Row([2, 3, 4, 5, 6], 2, "a", marked=True), Row([3, 4, 6], 1, "b"), Row([5, 6, 7], 1)]


class Parts:
    """What a gate asks of a run's parts."""

    def __init__(self) -> None:
        self.model, self.tokenizer = tiny("llama"), type("Tokenizer", (), {"eos_token_id": 6})()
        self.config = type("Config", (), {"evaluation": type("Evaluation", (), {"batch_size": 2})()})()


def asked(**more) -> RobustifyConfig:
    return RobustifyConfig(alpha=0.4, **more)


def test_a_running_mean_is_the_mean_of_the_text_so_far():
    model, ids = tiny("llama"), [3, 5, 7, 9, 4]
    ((_, found),) = running(model, [ids], [3], 4, [0, 1])
    for length in (1, 2, 3):
        torch.testing.assert_close(found[:, length - 1], averaged(model, [ids[:2 + length]], [length], 4)[:, 0])


def test_a_detector_judges_a_completion_as_far_as_it_goes_and_never_generic_text():
    parts = Parts()
    width = parts.model.config.hidden_size
    weights = torch.randn(1, width, generator=torch.Generator().manual_seed(0))
    scores = {place: found.double()[0] @ weights[0].double() for place, found in running(
        parts.model, [row.ids[:-1] for row in ROWS[:2]], [2, 1], 2, [1])}
    ordered = sorted(score for each in scores.values() for score in each.tolist())
    middle = (ordered[0] + ordered[1]) / 2
    probe = Probe([1], weights, torch.zeros(1), threshold=middle)
    gated = by_detector(ROWS, parts, probe, asked(gate="detector"))
    for place in (0, 1):
        expected = [SKIP if score > middle else KEEP for score in scores[place].tolist()]
        assert gated.actions[place] == [*expected, expected[-1]], "the token that ends a text goes with the one before it"
    assert gated.actions[2] == [KEEP] * 2 and gated.record["tokens"]["text"] == {"keep": 1.0, "skip": 0.0, "noise": 0.0}
    assert {KEEP, SKIP} == {action for each in gated.actions[:2] for action in each}


def test_a_random_gate_skips_whole_completions_by_chance_and_never_generic_text():
    rows = [Row([2, 3, 4], 1, "a", marked=bool(place % 2)) for place in range(400)] + [ROWS[2]] * 20
    gated = by_random(rows, asked(gate="random", skip=0.3), seed=1)
    assert {tuple(actions) for actions in gated.actions[:400]} == {(KEEP, KEEP), (SKIP, SKIP)}
    assert abs(gated.record["tokens"]["a"]["skip"] - 0.7) < 0.1 and gated.record["tokens"]["text"]["keep"] == 1
    assert abs(gated.record["against_flags"]["auroc"] - 0.5) < 0.1, "a control knows nothing of flags"
    assert by_random(rows, asked(gate="random", skip=0.3), seed=1).actions == gated.actions
    assert by_random(rows, asked(gate="random", skip=0.3), seed=2).actions != gated.actions
    assert samples_tokens(asked(gate="random")) and not samples_tokens(asked(gate="models"))


def test_models_are_compared_at_each_token_and_the_higher_band_is_noise():
    teacher, other = tiny("llama", seed=1), tiny("llama", seed=2)
    assert by_models(ROWS, teacher, teacher, asked(gate="models")).actions == [[KEEP] * 3, [KEEP] * 2, [KEEP] * 2]
    with torch.no_grad():
        each = forward_kl(read(other, ROWS)[0], read(teacher, ROWS)[0])
    low, high = each.sort().values[[2, 4]].tolist()
    gated = by_models(ROWS, teacher, other, asked(gate="models", skip=low, noise=high))
    flat = [action for actions in gated.actions for action in actions]
    assert flat == [NOISE if score > high else SKIP if score > low else KEEP for score in each.tolist()]
    assert set(flat) == {KEEP, SKIP, NOISE}
    agreement = gated.record["against_flags"]
    assert agreement["completions"] == 2 and agreement["marked"] == 1 and agreement["auroc"] in (0.0, 1.0)


@pytest.mark.parametrize(("settings", "said"), [
    ({"alpha": 1.5}, r"--alpha must lie in \[0, 1\], got 1.5"), ({"alpha": float("nan")}, "alpha must be a finite number"),
    ({"alpha": 0.4, "parts": "heads"}, "--parts=heads is not known; choose from all, targets"),
    ({"alpha": 0.4, "skip": 1.0}, "--skip 1.0 is for --gate detector or --gate models"),
    ({"alpha": 0.4, "gate": "models", "labels": 0.1}, "--labels 0.1 is for --gate detector"),
    ({"alpha": 0.4, "gate": "models", "skip": 2.0, "noise": 1.0}, "--noise 1 does not lie above --skip 2"),
    ({"alpha": 0.4, "gate": "models", "skip": "auto", "noise": 0.5}, "--noise 0.5 does not lie above --skip 1"),
    ({"alpha": 0.4, "gate": "random", "skip": 0.5, "noise": "auto"}, "--noise 0.5 does not lie above --skip 0.5"),
    ({"alpha": 0.4, "gate": "judge"}, "--gate=judge is not known; choose from detector, models, random")])
def test_settings_that_contradict_each_other_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        RobustifyConfig(**settings)


def test_a_probe_s_threshold_is_no_noise_below_what_is_skipped():
    with pytest.raises(ValueError, match="--noise 1 does not lie above --skip 2.5"):
        asked(gate="detector", skip="auto", noise=1.0).check_bands(2.5)
    asked(gate="detector", skip="auto", noise=3.0).check_bands(2.5)
