import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from routed_rl.errors import SubspaceError
from routed_rl.linalg import orthonormal, orthonormality_error, principal_cosines, random_basis
from routed_rl.subspace import METHODS, Provenance, Samples, Size, Subspace, find
from routed_rl.subspace.methods import rotated, top_directions
from routed_rl.subspace.samples import Reservoir

WIDTH, LAYERS, PAIRS = 24, 3, 40


def planted(seed: int, *, noise: float = 0.1, shift: float = 3.0, positions: int = 2,
            kinds: int | None = None) -> tuple[Samples, Tensor]:
    """Samples whose personas differ by a multiple of one direction per layer (L, D), and that direction."""
    generator = torch.Generator().manual_seed(seed)
    pair = torch.arange(PAIRS).repeat_interleave(positions)
    direction = torch.nn.functional.normalize(torch.randn(LAYERS, WIDTH, generator=generator), dim=1)
    negative = torch.randn(LAYERS, len(pair), WIDTH, generator=generator)
    strength = shift * (1 + torch.rand(len(pair), 1, generator=generator))
    positive = negative + strength * direction.unsqueeze(1) + noise * torch.randn(negative.shape, generator=generator)
    kind = pair if kinds is None else pair % kinds
    return Samples(positive, negative, pair, kind, torch.arange(len(pair)) % positions, 3.0), direction


def swap(samples: Samples) -> Samples:
    return Samples(samples.negative, samples.positive, samples.pair_R, samples.kind_R, samples.offset_R,
                   samples.last_weight)


def same_span(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(a.shape == b.shape and principal_cosines(a, b).min() > 1 - 1e-5 for a, b in zip(one, other, strict=True))


@given(seed=st.integers(0, 1000))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_mean_difference_finds_a_planted_direction_and_a_random_basis_does_not(seed):
    samples, direction = planted(seed)
    real, drawn = find("mean_difference", samples, Size(1), seed), find("random", samples, Size(1), seed)
    for layer in range(LAYERS):
        assert (real.directions[layer][:, 0] @ direction[layer]) > 0.99
        assert (real.axes[layer][:, 0] @ direction[layer]) > 0.99
    assert max(abs(drawn.directions[layer][:, 0] @ direction[layer]) for layer in range(LAYERS)) < 0.99


@pytest.mark.parametrize(("weakest", "rank"), [(0.9, 1), (0.35, 1), (0.25, 2), (0.06, 2), (0.04, 3), (1e-3, 3)])
def test_without_a_rank_a_layer_keeps_the_directions_that_are_not_weaker_than_a_share_of_its_strongest(weakest, rank):
    rows = torch.diag(torch.tensor([100.0, 30.0, 5.0, 0.0]))
    kept = top_directions(rows, torch.ones(4, dtype=torch.float64), Size(None, weakest))
    torch.testing.assert_close(kept.abs(), torch.eye(4)[:, :rank])
    both = top_directions(torch.cat([rows, torch.zeros(9, 4)]), torch.ones(13, dtype=torch.float64), Size(None, weakest))
    assert both.shape == kept.shape, "more rows than columns take the other Gram matrix"


def test_each_layer_has_the_rank_that_its_own_difference_needs():
    samples, _ = planted(0, noise=0.01)
    generator = torch.Generator().manual_seed(1)
    for kind in samples.kind_R.unique():
        samples.positive[1, samples.kind_R == kind] += 3 * torch.randn(WIDTH, generator=generator)
    ranks = [basis.shape[1] for basis in find("mean_difference", samples, Size(None, 0.15), 0).directions]
    assert ranks[0] == ranks[2] == 1 < ranks[1]


def test_pca_finds_the_direction_along_which_the_stream_varies_most_with_its_deviation_as_the_scale():
    samples, direction = planted(0, shift=20.0)
    found = find("pca", samples, Size(1), 0)
    assert (found.directions[0][:, 0] @ direction[0]) > 0.99
    everything = torch.cat([samples.positive[0], samples.negative[0]]) @ found.directions[0][:, 0]
    deviation = torch.stack([everything[samples.offset_R.repeat(2) == offset].var(correction=0) for offset in (0, 1)])
    expected = (deviation @ torch.tensor([3.0, 1.0]) / 4).sqrt()
    torch.testing.assert_close(found.scales[0, 1], expected, rtol=1e-4, atol=0)


def test_pca_ignores_what_all_prompts_have_in_common_at_a_position():
    samples, _ = planted(1)
    constant = 100 * torch.randn(LAYERS, 2, WIDTH, generator=torch.Generator().manual_seed(7))[:, samples.offset_R]
    moved = Samples(samples.positive + constant, samples.negative + constant, samples.pair_R, samples.kind_R,
                    samples.offset_R, samples.last_weight)
    assert same_span(find("pca", samples, Size(2), 0).directions, find("pca", moved, Size(2), 0).directions)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_axis_points_to_the_positive_persona(method):
    samples, _ = planted(2)
    weights_R = torch.where(samples.offset_R == 0, 3.0, 1.0)
    for layer, axes in enumerate(find(method, samples, Size(3), 0).axes):
        along = weights_R @ (samples.positive - samples.negative)[layer] @ axes
        assert (along >= -1e-4).all()
        assert along[0] > 0


@pytest.mark.parametrize("method", ["mean_difference", "pca"])
def test_swapping_the_personas_flips_the_axes_and_keeps_the_span(method):
    samples, _ = planted(3)
    found, swapped = find(method, samples, Size(3), 0), find(method, swap(samples), Size(3), 0)
    assert same_span(found.directions, swapped.directions)
    torch.testing.assert_close(torch.stack(found.axes), -torch.stack(swapped.axes), rtol=0, atol=1e-4)
    torch.testing.assert_close(found.scales, swapped.scales)


def test_the_unit_is_the_weighted_gap_between_the_personas_whatever_the_last_weight():
    samples, _ = planted(4, positions=1)
    found = find("mean_difference", samples, Size(1), 0)
    gap = (samples.positive - samples.negative).mean(1).norm(dim=1)
    torch.testing.assert_close(found.units, gap)
    torch.testing.assert_close(found.scales[:, 0], gap)


def test_kinds_are_averaged_and_pairs_without_one_stand_for_themselves():
    for kinds, rank in ((2, 2), (None, 8)):
        samples, _ = planted(5, positions=1, kinds=kinds)
        assert [basis.shape[1] for basis in find("mean_difference", samples, Size(8), 0).directions] == [rank] * LAYERS


def test_every_kind_counts_alike_however_many_pairs_it_has():
    kind = torch.tensor([0] * 9 + [1])
    difference = torch.eye(WIDTH)[kind].unsqueeze(0)
    samples = Samples(difference, torch.zeros_like(difference), torch.arange(10), kind,
                      torch.zeros(10, dtype=torch.long))
    found = find("mean_difference", samples, Size(2), 0)
    torch.testing.assert_close(found.axes[0][:, 0], (torch.eye(WIDTH)[0] + torch.eye(WIDTH)[1]) / 2**0.5)
    assert found.units.item() == pytest.approx(0.5**0.5)


def test_a_component_has_a_positive_scale_even_where_the_rows_have_nothing_along_it():
    rank_one = torch.zeros(1, 4, WIDTH)
    rank_one[..., 0] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    samples = Samples(rank_one, torch.zeros_like(rank_one), torch.arange(4), torch.arange(4),
                      torch.zeros(4, dtype=torch.long))
    found = find("mean_difference", samples, Size(3), 0)
    assert found.directions[0].shape == (WIDTH, 1)
    assert (found.scales > 0).all()


def test_a_layer_with_fewer_components_gets_zero_columns_so_that_every_layer_has_the_same_axes():
    generator = torch.Generator().manual_seed(0)
    difference = torch.randn(2, 6, WIDTH, generator=generator)
    difference[0] = torch.arange(1.0, 7).unsqueeze(1) * difference[0, :1]
    samples = Samples(difference, torch.zeros_like(difference), torch.arange(6), torch.arange(6),
                      torch.zeros(6, dtype=torch.long))
    found = find("mean_difference", samples, Size(3), 0)
    assert [basis.shape[1] for basis in found.directions] == [1, 3]
    assert found.axis_names == ["persona", "component_1", "component_2", "component_3"]
    assert [axes.shape for axes in found.axes] == [(WIDTH, 4)] * 2
    assert found.axes[0][:, 2:].abs().max() == 0


def test_rank_zero_has_empty_bases_and_still_the_persona_axis():
    found = find("mean_difference", planted(6)[0], Size(0), 0)
    assert [basis.shape for basis in found.directions] == [(WIDTH, 0)] * LAYERS
    assert found.axis_names == ["persona"]
    assert find("random", planted(6)[0], Size(0), 0).directions[0].shape == (WIDTH, 0)


def test_the_full_width_is_reached_and_is_orthonormal():
    found = find("mean_difference", planted(7, noise=1.0)[0], Size(WIDTH), 0)
    assert found.directions[0].shape == (WIDTH, WIDTH)
    assert max(map(orthonormality_error, found.directions)) < 1e-5


def test_random_keeps_ranks_axes_scales_and_units_and_changes_only_the_span():
    samples, _ = planted(8)
    real, drawn, again, other = (find(method, samples, Size(3), seed) for method, seed in
                                 (("mean_difference", 0), ("random", 0), ("random", 0), ("random", 1)))
    for name in ("axes", "scales", "units"):
        torch.testing.assert_close(getattr(real, name), getattr(drawn, name), rtol=0, atol=0)
    assert [basis.shape for basis in real.directions] == [basis.shape for basis in drawn.directions]
    assert same_span(drawn.directions, again.directions)
    for basis, theirs in [*zip(drawn.directions, real.directions, strict=True),
                          *zip(drawn.directions, other.directions, strict=True)]:
        assert principal_cosines(basis, theirs).square().mean() < 0.6  # 3 / 24 by chance
        assert orthonormality_error(basis) < 1e-5


@given(seed=st.integers(0, 1000), share=st.floats(0, 1))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_the_random_control_has_the_rank_of_the_real_subspace_in_every_layout(seed, share):
    generator = torch.Generator().manual_seed(seed)
    common = random_basis(WIDTH, 3, generator)
    real = [orthonormal(share * common + (1 - share) * random_basis(WIDTH, 3, generator)) for _ in range(LAYERS)]
    drawn = rotated(real, seed)
    for first in range(LAYERS):
        spectra = [torch.linalg.svdvals(torch.cat(bases[first:], dim=1).double()) for bases in (real, drawn)]
        torch.testing.assert_close(*spectra, rtol=0, atol=1e-5)


def test_rotated_bases_are_isotropic():
    basis = [random_basis(6, 1, torch.Generator().manual_seed(0))]
    moment = torch.stack([turned @ turned.mT for turned in (rotated(basis, seed)[0] for seed in range(2000))]).mean(0)
    # Standard error of a diagonal entry of 2,000 draws in 6 dimensions: .004.
    torch.testing.assert_close(moment, torch.eye(6) / 6, rtol=0, atol=0.02)


@given(rows=st.integers(1, 40), rank=st.integers(0, 30), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_top_directions_are_those_of_the_singular_value_decomposition(rows, rank, seed):
    matrix = torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed))
    basis = top_directions(matrix, torch.ones(rows, dtype=torch.float64), Size(rank))
    assert basis.shape == (WIDTH, min(rank, rows, WIDTH))
    if basis.shape[1]:
        reference = torch.linalg.svd(matrix.double(), full_matrices=False)[2][: basis.shape[1]].mT
        energy, best = ((matrix.double() @ v.double()).square().sum() for v in (basis, reference))
        torch.testing.assert_close(energy, best, rtol=1e-6, atol=0)


def test_personas_that_do_not_differ_are_refused():
    samples, _ = planted(9)
    same = Samples(samples.positive, samples.positive * (1 + 1e-8), samples.pair_R, samples.kind_R, samples.offset_R)
    with pytest.raises(SubspaceError, match="do not differ at the output of layer 0"):
        find("mean_difference", same, Size(1), 0)


def test_a_last_weight_of_zero_is_refused_where_only_the_last_position_is_shared():
    samples, _ = planted(10, positions=1)
    none = Samples(samples.positive, samples.negative, samples.pair_R, samples.kind_R, samples.offset_R, 0.0)
    with pytest.raises(SubspaceError, match="last_weight=0"):
        find("mean_difference", none, Size(1), 0)


def stream_sample(samples: Samples, most: int = 64) -> Tensor:
    reservoir = Reservoir(samples.pair_R[:0], len(samples.pair_R), 0, most)
    reservoir.add(samples)
    return reservoir.stream()


def test_the_stream_sample_is_centred_small_and_the_same_every_time():
    samples, _ = planted(11)
    sample = stream_sample(samples, 20)
    assert sample.shape == (LAYERS, 20, WIDTH)
    assert sample.mean(1).abs().max() < 1e-5
    torch.testing.assert_close(sample, stream_sample(samples, 20), rtol=0, atol=0)
    assert stream_sample(samples, 1000).shape[1] == 2 * len(samples.pair_R)


def subspace_of(samples: Samples, method: str = "mean_difference", rank: int = 3) -> Subspace:
    found = find(method, samples, Size(rank), 0)
    return Subspace(found.directions, found.axes, found.axis_names, found.scales, found.units, stream_sample(samples),
                    Provenance(method, "m", "h", WIDTH, LAYERS, rank))


@pytest.mark.parametrize("method", ["mean_difference", "random"])
def test_spanning_bases_nest_and_bases_per_layer_do_not(method):
    subspace = subspace_of(planted(12)[0], method)
    spanning, own = subspace.writer_bases("spanning", 0.0), subspace.writer_bases("per_layer", 0.0)
    for layer in range(LAYERS - 1):
        assert principal_cosines(spanning[layer], spanning[layer + 1]).min() > 1 - 1e-5
        assert principal_cosines(spanning[layer], own[layer + 1]).min() > 1 - 1e-5
        assert principal_cosines(own[layer], own[layer + 1]).min() < 0.9


def test_a_shared_basis_is_one_for_all_layers_cut_at_its_rank():
    bases = subspace_of(planted(13)[0]).writer_bases("shared", 0.0, 5)
    assert all(basis is bases[0] for basis in bases)
    assert bases[0].shape == (WIDTH, 5)
