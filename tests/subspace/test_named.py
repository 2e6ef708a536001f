"""Named axes: directions in the stated order, scales that were given or the stream's deviation, unions."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from routed_rl.errors import SubspaceError
from routed_rl.linalg import orthonormal, orthonormality_error, principal_cosines, random_basis
from routed_rl.subspace import Provenance, Size, Subspace
from routed_rl.subspace.named import NamedVector, find_named, in_order, union

LAYERS, WIDTH = 3, 16


def stream(seed: int = 0) -> torch.Tensor:
    return torch.randn(LAYERS, 400, WIDTH, generator=torch.Generator().manual_seed(seed)) * torch.arange(1, WIDTH + 1)


def unit(place: int) -> torch.Tensor:
    return torch.eye(WIDTH)[place]


@given(count=st.integers(1, 10), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_in_order_each_direction_lies_in_the_span_of_the_vectors_so_far(count, seed):
    vectors = torch.randn(WIDTH, count, generator=torch.Generator().manual_seed(seed))
    basis = in_order(vectors)
    assert orthonormality_error(basis) < 1e-5
    for place in range(count):
        assert principal_cosines(basis[:, : place + 1], orthonormal(vectors[:, : place + 1])).min() > 1 - 1e-5
        assert basis[:, place] @ vectors[:, place] > 0


def test_in_order_is_not_the_same_in_another_order_and_drops_what_is_spanned_already():
    vectors = torch.stack([unit(0), unit(0) + unit(1), unit(0) - 2 * unit(1)], dim=1)
    torch.testing.assert_close(in_order(vectors), torch.stack([unit(0), unit(1)], dim=1))
    assert (in_order(vectors.flip(1))[:, 0] @ unit(0)).abs() < 0.9


def test_a_scale_that_is_not_given_is_the_streams_deviation_along_the_vector():
    found = find_named([NamedVector("a", {1: 7 * unit(3)}, {}), NamedVector("b", {1: unit(5)}, {1: 2.5})], stream(), Size(None))
    assert found.scales[1, 0].item() == pytest.approx(4.0, rel=0.15)  # 400 draws
    assert found.scales[1, 1].item() == 2.5
    torch.testing.assert_close(found.axes[1], torch.stack([unit(3), unit(5)], dim=1))
    assert found.units[1].item() == pytest.approx((found.scales[1, 0].item() ** 2 + 2.5**2) ** 0.5)


def test_a_layer_without_a_vector_has_an_empty_basis_and_zero_axes_of_a_positive_scale():
    found = find_named([NamedVector("a", {1: unit(0)}, {})], stream(), Size(None))
    assert [basis.shape[1] for basis in found.directions] == [0, 1, 0]
    assert not found.axes[0].any() and (found.scales > 0).all() and (found.units > 0).all()
    subspace = as_subspace(found)
    assert [basis.shape[1] for basis in subspace.writer_bases("spanning", 0.1)] == [1, 1, 0]


def test_a_rank_keeps_the_first_axes_directions():
    vectors = [NamedVector(str(place), {0: unit(place), 1: unit(place), 2: unit(place)}, {}) for place in range(4)]
    found = find_named(vectors, stream(), Size(2))
    torch.testing.assert_close(found.directions[0], torch.eye(WIDTH)[:, :2])
    assert len(found.axis_names) == 4


def test_a_zero_vector_is_refused_by_name():
    with pytest.raises(SubspaceError, match="axis nil is zero at layer 2"):
        find_named([NamedVector("nil", {2: torch.zeros(WIDTH)}, {})], stream(), Size(None))


def as_subspace(found, model_hash: str = "h") -> Subspace:
    return Subspace(found.directions, found.axes, found.axis_names, found.scales, found.units, stream()[:, :8],
                    Provenance("file", "m", model_hash, WIDTH, LAYERS, None), {}, found.spreads)


def drawn(seed: int, rank: int = 2) -> Subspace:
    generator = torch.Generator().manual_seed(seed)
    vectors = [NamedVector(f"axis{place}", {layer: random_basis(WIDTH, 1, generator)[:, 0] for layer in range(LAYERS)}, {})
               for place in range(rank)]
    return as_subspace(find_named(vectors, stream(), Size(None)))


def test_a_union_spans_its_parts_names_every_axis_and_keeps_the_first_parts_directions_first():
    one, other = drawn(0), drawn(1)
    both = union([("one", one), ("other", other)], Size(None))
    assert both.axis_names == ["one.axis0", "one.axis1", "other.axis0", "other.axis1"]
    for layer in range(LAYERS):
        torch.testing.assert_close(both.directions[layer][:, :2], one.directions[layer], rtol=0, atol=1e-5)
        assert both.directions[layer].shape[1] == 4
        for part in (one, other):
            assert principal_cosines(both.directions[layer], part.directions[layer]).min() > 1 - 1e-5
        torch.testing.assert_close(both.axes[layer][:, 2:], other.axes[layer])
    torch.testing.assert_close(both.units, one.units)
    assert not torch.equal(union([("other", other), ("one", one)], Size(None)).directions[0], both.directions[0])


def test_a_union_with_itself_adds_axes_and_no_direction():
    one = drawn(0)
    both = union([("a", one), ("b", one)], Size(None))
    assert both.directions[0].shape == one.directions[0].shape and len(both.axis_names) == 4


def test_an_axis_of_a_union_weighs_the_layers_as_it_does_in_its_part():
    def measured(seed, *aurocs, **axes):
        rows = [{"auroc": {name: values[layer] for name, values in axes.items()}, "stability": {}, "random": 0.5,
                 "random_best": 0.6} for layer in range(LAYERS)]
        quality = {"layers": [{"auroc": value} for value in aurocs]}
        return replace(drawn(seed), quality=quality | ({"axes": {"names": [*axes], "layers": rows}} if axes else {}))

    one = measured(0, 0.5, 0.75, 1.0)
    other = measured(1, 0.9, 0.9, 0.9, axis0=(1.0, 0.5, 0.7), axis1=(0.6, 0.6, None))
    for parts in ([("one", one), ("a.b", other)], [("a.b", other), ("one", one)]):
        both = union(parts, Size(None))
        for name, part in (("a.b.axis0", other), ("a.b.axis1", other), ("one.axis0", one)):
            assert both.layer_weights(name).equal(part.layer_weights(name.rpartition(".")[2]))
            assert both.measures(name)
        assert not both.measures("one.axis1") and both.layer_weights("one.axis1").equal(both.layer_weights())
        axes = both.quality["axes"]
        assert axes["names"] == both.axis_names and [row["random"] for row in axes["layers"]] == [0.5] * LAYERS
    assert union([("a", drawn(0)), ("b", drawn(1))], Size(None)).layer_weights().tolist() == [1.0] * LAYERS


def test_a_union_of_two_models_is_refused():
    found = find_named([NamedVector("a", {0: unit(0)}, {})], stream(), Size(None))
    with pytest.raises(SubspaceError, match="was extracted from m"):
        union([("a", as_subspace(found)), ("b", as_subspace(found, "other"))], Size(None))


def test_spreads_survive_the_disk_and_weigh_the_writers_bases(tmp_path):
    subspace = drawn(3)
    subspace.save(tmp_path / "s")
    loaded = Subspace.load(tmp_path / "s")
    assert loaded.spreads is not None and subspace.spreads is not None
    assert all(map(torch.equal, loaded.spreads, subspace.spreads))
    torch.testing.assert_close(loaded.strengths(1), subspace.spreads[1] / subspace.units[1])
