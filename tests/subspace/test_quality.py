import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from routed_rl.linalg import random_basis
from routed_rl.subspace import Samples, check_quality, describe_quality, measure_quality
from routed_rl.subspace.methods import Size, find
from routed_rl.subspace.quality import auroc, halves
from routed_rl.subspace.separation import measure_axes

WIDTH, LAYERS = 32, 2


def mean_difference(samples: Samples, size: Size) -> list[torch.Tensor]:
    return find("mean_difference", samples, size, 0).directions


def samples_of(pairs: int, shift: float, seed: int = 0, *, kinds: int | None = None, positions: int = 2) -> Samples:
    """Unit Gaussian activations; the positive persona stands `shift` along one fixed direction per layer."""
    generator = torch.Generator().manual_seed(seed)
    pair = torch.arange(pairs).repeat_interleave(positions)
    direction = torch.nn.functional.normalize(torch.randn(LAYERS, 1, WIDTH, generator=generator), dim=2)
    positive, negative = torch.randn(2, LAYERS, len(pair), WIDTH, generator=generator)
    kind = pair if kinds is None else pair % kinds
    return Samples(positive + shift * direction, negative, pair, kind, torch.arange(len(pair)) % positions)


def quality_of(samples: Samples, rank: int = 1) -> dict:
    return measure_quality(samples, mean_difference(samples, Size(rank)), partial(mean_difference, size=Size(rank)), rank)


def test_personas_that_are_far_apart_pass_on_every_count():
    quality = quality_of(samples_of(64, 6.0))
    for row in quality["layers"]:
        assert row["auroc"] > 0.99
        assert row["ordered"] > 0.99
        assert row["stability"] > 0.9
        assert row["captured"] > 0.3
        assert row["captured_ratio"] > 5
        assert row["captured_place"] == 1
    assert check_quality(quality) == []


def test_personas_that_do_not_differ_look_like_chance_and_are_warned_of():
    rows = [row for seed in range(20) for row in quality_of(samples_of(64, 0.0, seed))["layers"]]
    # 40 layers of 64 independent prompts a side: the standard error of the mean is about .01.
    assert sum(row["auroc"] for row in rows) / len(rows) == pytest.approx(0.5, abs=0.05)
    assert sum(row["stability"] for row in rows) / len(rows) < 0.2
    assert sum(row["captured_ratio"] for row in rows) / len(rows) == pytest.approx(1, abs=0.3)
    warnings = check_quality(quality_of(samples_of(64, 0.0)))
    assert len(warnings) == 3
    assert all(warning.startswith("every layer: ") for warning in warnings)


def test_a_random_basis_is_told_from_a_planted_one():
    samples = samples_of(64, 6.0)
    warned, ratios = 0, []
    for seed in range(20):
        drawn = [random_basis(WIDTH, 3, torch.Generator().manual_seed(seed))] * LAYERS
        quality = measure_quality(samples, drawn, lambda _half, drawn=drawn: drawn, 3)
        ratios += [row["captured_ratio"] for row in quality["layers"]]
        warned += any("hardly better than random" in warning for warning in check_quality(quality))
    assert warned >= 19
    assert sum(ratios) / len(ratios) == pytest.approx(1, abs=0.3)
    assert min(row["captured_ratio"] for row in quality_of(samples, 3)["layers"]) > max(ratios)


@given(shift=st.floats(0.5, 4))
@settings(max_examples=10, deadline=None, derandomize=True)
def test_separation_grows_with_the_gap(shift):
    near, far = (quality_of(samples_of(64, gap))["layers"][0]["auroc"] for gap in (shift, 2 * shift))
    assert far >= near


def test_pairs_can_be_in_order_where_the_task_hides_the_persona_from_an_unpaired_look():
    samples = samples_of(64, 0.0)
    tasks = 20 * samples.negative
    noise = 0.1 * torch.randn(tasks.shape, generator=torch.Generator().manual_seed(1))
    moved = Samples(tasks + noise + 2.0 / WIDTH**0.5, tasks, samples.pair_R, samples.kind_R,
                    samples.offset_R)
    row = quality_of(moved)["layers"][0]
    assert row["auroc"] < 0.7
    assert row["ordered"] > 0.99


def test_auroc_counts_the_pairs_in_the_right_order_and_ties_half():
    assert auroc(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 0.0])) == 0.75
    assert auroc(torch.tensor([1.0]), torch.tensor([1.0])) == 0.5
    assert auroc(torch.tensor([0.0]), torch.tensor([1.0])) == 0.0


@given(pairs=st.integers(2, 40), kinds=st.integers(1, 8), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_halves_part_the_pairs_and_every_kind_of_two_pairs_is_in_both(pairs, kinds, seed):
    samples = samples_of(pairs, 1.0, kinds=kinds)
    one, other = halves(samples, torch.Generator().manual_seed(seed))
    assert sorted(torch.cat([one, other]).tolist()) == list(range(pairs))
    assert abs(len(one) - len(other)) <= 1
    for kind in range(kinds):
        members = {pair for pair in range(pairs) if pair % kinds == kind}
        if len(members) > 1:
            assert members & set(one.tolist()) and members & set(other.tolist())


def test_neighbours_in_the_file_do_not_decide_the_halves():
    samples = samples_of(20, 1.0)
    one, _ = halves(samples, torch.Generator().manual_seed(0))
    assert len({pair % 2 for pair in one.tolist()}) == 2


def test_held_out_figures_do_not_come_from_the_pairs_that_were_fitted():
    # In 32 dimensions an axis fitted on 8 pairs separates those same pairs perfectly, and others not at all.
    rows = [row for seed in range(20) for row in quality_of(samples_of(8, 0.0, seed, positions=1))["layers"]]
    assert sum(row["auroc"] for row in rows) / len(rows) < 0.65


@pytest.mark.parametrize("pairs", [1, 2, 3])
def test_too_few_pairs_are_said_and_not_guessed(pairs):
    quality = quality_of(samples_of(pairs, 3.0))
    assert [row["auroc"] for row in quality["layers"]] == [None] * LAYERS
    assert check_quality(quality) == [f"{pairs} contrast pairs are too few to say whether the subspace is good; "
                                      "4 are the least, 50 are better"]
    assert describe_quality(quality)[0]["stability"] == "-"


def test_rank_zero_has_a_separation_and_nothing_else():
    row = quality_of(samples_of(16, 6.0), 0)["layers"][0]
    assert row["auroc"] > 0.9
    assert row["captured"] is row["stability"] is None


def test_the_full_width_captures_everything_and_is_not_warned_of():
    quality = quality_of(samples_of(64, 6.0), WIDTH)
    assert quality["layers"][0]["captured"] == pytest.approx(1, abs=1e-4)
    assert not any("random" in warning for warning in check_quality(quality))


def test_fewer_directions_than_asked_for_are_warned_of():
    assert any("subspace.rank=5" in warning for warning in check_quality(quality_of(samples_of(16, 6.0, kinds=1), 5)))


def test_quality_is_plain_json_the_same_every_time_and_a_table():
    quality = quality_of(samples_of(16, 3.0))
    assert json.loads(json.dumps(quality, allow_nan=False)) == quality == quality_of(samples_of(16, 3.0))
    table = describe_quality(quality)
    assert [row["layer"] for row in table] == ["0", "1"]
    assert all(isinstance(value, str) for row in table for value in row.values())


def test_pairs_that_are_all_in_one_half_have_no_figures():
    """Personas that are asked one question: the halves are the even and the odd questions."""
    samples = replace(samples_of(8, 6.0), fold_R=torch.zeros(16, dtype=torch.long))
    assert [row["auroc"] for row in quality_of(samples)["layers"]] == [None] * LAYERS
    axes = measure_axes(samples, partial(find, "mean_difference", size=Size(1), seed=0),
                        find("mean_difference", samples, Size(1), 0))
    assert [row["auroc"] for row in axes["layers"]] == [{}] * LAYERS
