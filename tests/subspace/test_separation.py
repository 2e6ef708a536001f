from functools import partial

import torch

from routed_rl.linalg import random_basis
from routed_rl.subspace import Provenance, Samples, Size, Subspace, find
from routed_rl.subspace.separation import best_layer, cosines, measure_axes

WIDTH, LAYERS, PAIRS = 24, 5, 60


def samples_of(shifts: list[float], fold: bool = False, kinds: int = 2) -> Samples:
    """Unit Gaussians; kind k of the positive persona stands `shifts[layer]` along a direction of its own."""
    generator = torch.Generator().manual_seed(0)
    positive, negative = torch.randn(2, LAYERS, PAIRS, WIDTH, generator=generator)
    pair, kind = torch.arange(PAIRS), torch.arange(PAIRS) % kinds
    directions = random_basis(WIDTH, kinds, generator).mT
    positive = positive + torch.tensor(shifts).view(-1, 1, 1) * directions[kind]
    return Samples(positive, negative, pair, kind, torch.zeros(PAIRS, dtype=torch.long), 1.0, pair // 2 % 2 if fold else None)


def measured(method: str, samples: Samples, kinds: tuple[str, ...] = ("a", "b")):
    fit = partial(find, method, size=Size(2), seed=0, kinds=kinds)
    return measure_axes(samples, fit, fit(samples))


def test_an_axis_separates_where_the_personas_are_apart_and_random_directions_do_not():
    axes = measured("mean_difference", samples_of([0, 1, 4, 4, 4]))
    by_layer = [row["auroc"]["persona"] for row in axes["layers"]]
    assert by_layer[0] < 0.65 and by_layer[2] > 0.97
    assert axes["layers"][0]["random"] < 0.65 and axes["layers"][2]["random"] < by_layer[2] - 0.1
    assert axes["layers"][2]["stability"]["persona"] > 0.8 > axes["layers"][0]["stability"]["persona"]


def test_the_best_layer_is_the_middle_of_those_that_tie_and_unknown_where_nothing_was_measured():
    axes = measured("mean_difference", samples_of([0, 9, 9, 9, 9]))
    assert best_layer(axes, "persona") == 2
    axes = measured("mean_difference", samples_of([0, 0, 0, 0, 9]))
    assert best_layer(axes, "persona") == 4
    assert best_layer({"names": ["a"], "layers": [{"layer": 0, "auroc": {"a": None}}]}, "a") is None


def test_a_traits_axis_is_judged_on_the_pairs_of_its_trait_alone():
    samples = samples_of([4] * LAYERS)
    samples.positive[:, samples.kind_R == 1] = samples.negative[:, samples.kind_R == 1].flip(1) + 0.3
    row = measured("persona_vectors", samples)["layers"][2]
    assert row["auroc"]["a"] > 0.97 and row["auroc"]["b"] < 0.85


def test_folds_that_are_given_are_the_halves():
    from routed_rl.subspace.quality import halves

    samples = samples_of([1] * LAYERS, fold=True)
    one, other = halves(samples, torch.Generator())
    assert set((one // 2 % 2).tolist()) == {0} and set((other // 2 % 2).tolist()) == {1}
    left_out = Samples(samples.positive, samples.negative, samples.pair_R, samples.kind_R, samples.offset_R, 1.0,
                       torch.where(samples.pair_R < 20, -1, samples.pair_R % 2))
    assert min(torch.cat(halves(left_out, torch.Generator())).tolist()) == 20


def test_cosines_name_the_nearest_axis_with_its_sign_and_what_chance_gives():
    def subspace(seed: int, flip: float = 1.0) -> Subspace:
        bases = [random_basis(WIDTH, 2, torch.Generator().manual_seed(seed))] * LAYERS
        return Subspace(bases, [flip * basis for basis in bases], ["x", "y"], torch.ones(LAYERS, 2), torch.ones(LAYERS),
                        torch.zeros(LAYERS, 1, WIDTH), Provenance("file", "m", "h", WIDTH, LAYERS, 2))

    same, other = cosines(subspace(0), subspace(0, -1.0)), cosines(subspace(0), subspace(1))
    assert [(row["nearest"], round(row["cosine"], 4)) for row in same] == [("x", -1.0), ("y", -1.0)]
    assert all(abs(row["cosine"]) < 0.7 and row["chance"] == WIDTH**-0.5 for row in other)
