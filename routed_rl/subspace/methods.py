"""The methods that turn activations under two personas into directions and named axes. They work on tensors and need no model.
Each method is one entry of `METHODS`; `config/subspace.py` names it.

Shape letters: L layers, R sample rows (one per pair and position), G rows of a fit, D stream width, K rank, J axes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from routed_rl.errors import SubspaceError
from routed_rl.linalg import orthonormal, random_basis
from routed_rl.subspace.artifact import Provenance, Subspace
from routed_rl.subspace.rows import NULL, CentredRows, DifferenceRows, Rows
from routed_rl.subspace.samples import Samples

SMALLEST_SCALE = 1e-3
"""The smallest scale that a direction may have, as a share of the gap, so that no shift is divided by almost nothing."""


@dataclass(frozen=True)
class Size:
    """The number of directions that a layer gets: `rank` of them, or, if `rank` is None, as many as have a singular value of at
    least `weakest` times the largest. If `rank` is set and the personas differ along fewer directions, the others are noise."""

    rank: int | None
    weakest: float = 1.0
    components: int = 3
    """For the method `assistant_axis` if `rank` is None: the largest number of components of the roles that are taken beside the
    axis itself."""


@dataclass(frozen=True, eq=False)
class Found:
    """The directions and axes that a method found. Fields without a text are those of `Subspace`."""

    directions: list[Tensor]
    axes: list[Tensor]
    axis_names: list[str]
    scales: Tensor
    units: Tensor
    spreads: list[Tensor] | None = None
    """For each layer (K,): the length in the stream that counts as a shift of 1 along each direction. None if `scales[:, 1:]` has
    these lengths."""
    kind_of_axis: dict[int, int] = field(default_factory=dict)
    """For each axis that stands for the pairs of one kind alone: index of the axis -> index of the kind."""

    def subspace(self, stream: Tensor, provenance: Provenance, quality: dict[str, Any]) -> Subspace:
        return Subspace(self.directions, self.axes, self.axis_names, self.scales, self.units, stream, provenance, quality,
                        self.spreads)

    def behind_an_empty_layer(self) -> "Found":
        """Return a copy in which every layer has moved up by one. The new first layer has no directions, and its axes are 0."""
        spreads = None if self.spreads is None else [self.spreads[0][:0], *self.spreads]
        return replace(self, directions=[self.directions[0][:, :0], *self.directions], spreads=spreads,
                       axes=[torch.zeros_like(self.axes[0]), *self.axes], scales=torch.cat([self.scales[:1], self.scales]),
                       units=torch.cat([self.units[:1], self.units]))


@dataclass(frozen=True)
class Method:
    """An entry of the table of methods."""

    gather: type[DifferenceRows]
    """The class that gathers the rows for the fit from blocks of samples."""
    name: Callable[[Rows, Size, Sequence[str], int], Found]
    """Function that turns these rows into directions and named axes. Its arguments are the rows, the number of directions, the
    names of the pairs' kinds, and a seed."""


def gathered(method: str, samples: Samples) -> Rows:
    """Summarise `samples`, which are all in memory at once, as the weighted rows of a matrix to which `method`, a key of
    `METHODS`, fits a subspace."""
    gathering = METHODS[method].gather(None)
    gathering.add(samples)
    return gathering.rows()


def top_directions(rows_GD: Tensor, weights_G: Tensor, size: Size) -> Tensor:
    """Return the strongest right singular vectors of the weighted rows, which are not centred, as columns (D, K), float32, the
    strongest first. `size` decides K, but vectors whose singular value is not above `NULL` times the largest are left out.

    They are computed in float64 from the smaller of the two Gram matrices.
    """
    weighted = rows_GD.double() * weights_G.unsqueeze(1)
    wide = weighted.shape[0] <= weighted.shape[1]
    squares, vectors = torch.linalg.eigh(weighted @ weighted.mT if wide else weighted.mT @ weighted)
    squares, vectors = squares.flip(0), vectors.flip(1)
    rank = int((squares >= size.weakest**2 * squares[:1]).sum()) if size.rank is None else size.rank
    squares, vectors = squares[:rank], vectors[:, :rank]
    # Squaring loses half of the digits: rounding leaves a null direction a few eps of the largest square.
    floor = max(NULL**2, 10 * vectors.shape[0] * torch.finfo(torch.float64).eps)
    vectors = vectors[:, squares > floor * squares[:1]]
    return torch.linalg.qr(weighted.mT @ vectors if wide else vectors).Q.float()


def strongest(rows: Rows, size: Size, units_L: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Return, for each layer, the `top_directions` (D, K), each with the sign that points to the positive persona, and the
    weighted root mean square of all rows along each, (K,) float64, at least `SMALLEST_SCALE` times the layer's entry of
    `units_L`."""
    directions, spreads = [], []
    for layer, gap, unit in zip(rows.rows_LGD, rows.gap_LD, units_L, strict=True):
        basis = top_directions(layer, rows.weights_G, size)
        basis = basis * torch.where(gap @ basis.double() < 0, -1.0, 1.0).float()
        energy = ((layer.double() @ basis.double()).square() * rows.weights_G.unsqueeze(1)).sum(0)
        directions.append(basis)
        spreads.append((energy / rows.total_weight).sqrt().clamp(min=SMALLEST_SCALE * unit.item()))
    return directions, spreads


def find(method: str, samples: Samples, size: Size, seed: int, kinds: Sequence[str] = ()) -> Found:
    """Find directions and named axes of every layer by the method of this name, from samples that are all in memory. `seed` is
    used only by the method `random`. `kinds`: the names of the pairs' kinds, by which `persona_vectors` names its axes."""
    return METHODS[method].name(gathered(method, samples), size, kinds, seed)


def components(rows: Rows, size: Size, _kinds: Sequence[str] = (), _seed: int = 0) -> Found:
    """Take the strongest directions of the rows. This is the method `mean_difference` and, for centred rows, the method `pca`.

    The axis "persona" is the mean difference, scaled to length 1, and its scale is the gap; "component_k" is the k-th direction.
    A layer with fewer directions than another has zeros as its missing axes, so that every shift along them is 0.
    """
    units = checked_units(rows.gap_LD.norm(dim=1), rows.norm_L)
    directions, spreads = strongest(rows, size, units)
    gaps = (rows.gap_LD / units.unsqueeze(1)).float().unsqueeze(2)
    axes = [torch.cat([gap, basis], dim=1) for gap, basis in zip(gaps, directions, strict=True)]
    scales = [torch.cat([unit.unsqueeze(0), spread]) for unit, spread in zip(units, spreads, strict=True)]
    return padded(directions, axes, "persona", "component", scales, units)


def turned(rows: Rows, size: Size, kinds: Sequence[str], seed: int) -> Found:
    """Make the random control: the result of `components`, except that the directions, at which changes are split, are rotated at
    random by `seed`. The axes, scales and units, by which shifts are measured, stay as they are."""
    real = components(rows, size, kinds, seed)
    return replace(real, directions=rotated(real.directions, seed))


def away_from_assistant(rows: Rows, size: Size, _kinds: Sequence[str], _seed: int) -> Found:
    """Take the assistant axis and, orthogonal to it, the leading principal components of the roles. Each role is a kind of pairs,
    and its row is the mean difference between the role and the default assistant.

    The published axis is default minus roles. Here every axis points to what must not grow, in this case a departure from the
    assistant. The axis "away_from_assistant" is therefore roles minus default, the published axis negated; its scale is the gap.
    The axis "role_component_k" is the k-th component. It points to the side of the roles' longer tail, and its scale is the root
    mean square of the roles along it.
    """
    units = checked_units(rows.gap_LD.norm(dim=1), rows.norm_L)
    total = size.components + 1 if size.rank is None else size.rank
    directions, axes, scales = [], [], []
    for layer, gap, unit in zip(rows.rows_LGD.double(), rows.gap_LD, units, strict=True):
        axis = (gap / unit).unsqueeze(1)
        about = layer - rows.weights_G @ layer / rows.weights_G.sum()
        about = about - about @ axis @ axis.mT
        _, singular, right = torch.linalg.svd(about, full_matrices=False)
        strengths = singular / len(layer) ** 0.5
        enough = strengths > (size.weakest * torch.maximum(unit, strengths[0]) if size.rank is None else NULL * unit)
        found = right.mT[:, enough][:, : max(total - 1, 0)]
        # The sign is that of the longer tail, so that it does not depend on the solver.
        found = found * torch.where((about @ found).pow(3).sum(0) < 0, -1.0, 1.0)
        basis = torch.cat([axis, found], dim=1)[:, :total].float()
        directions.append(basis)
        axes.append(basis if total else axis.float())
        scales.append(torch.cat([unit.unsqueeze(0), strengths[enough][: max(total - 1, 0)]]))
    spreads = [scale[: basis.shape[1]].float() for scale, basis in zip(scales, directions, strict=True)]
    return padded(directions, axes, "away_from_assistant", "role_component", scales, units, spreads)


def persona_vectors(rows: Rows, size: Size, kinds: Sequence[str], _seed: int) -> Found:
    """Take one axis for each trait, which is a kind of pairs: the trait's mean difference, scaled to length 1. Its scale is the
    length of that difference, the trait's gap. The directions are the strongest over all traits.

    The first axis, "persona", is the mean over the traits. The unit of a layer is the root mean square of the traits' gaps and
    not the length of their mean, which is short if traits point against each other.
    """
    gap_LJD = rows.rows_LGD.double()
    lengths = gap_LJD.norm(dim=2)
    units = lengths.square().mean(dim=1).sqrt()
    checked_units(lengths.min(dim=1).values, rows.norm_L)
    mean = rows.gap_LD.norm(dim=1, keepdim=True).clamp(min=SMALLEST_SCALE * units.unsqueeze(1))
    axes = torch.cat([(rows.gap_LD / mean).unsqueeze(1), gap_LJD / lengths.unsqueeze(2)], dim=1).mT.float()
    directions, spreads = strongest(rows, size, units)
    order: list[int] = rows.kinds_G.tolist()
    names = ["persona", *(str(kinds[kind]) if kinds else f"trait_{kind}" for kind in order)]
    kind_of_axis = {1 + place: kind for place, kind in enumerate(order)}
    return Found(directions, list(axes), names, torch.cat([mean, lengths], dim=1).float(), units.float(),
                 [spread.float() for spread in spreads], kind_of_axis)


METHODS: dict[str, Method] = {
    "mean_difference": Method(DifferenceRows, components),
    "pca": Method(CentredRows, components),
    "random": Method(DifferenceRows, turned),
    "assistant_axis": Method(DifferenceRows, away_from_assistant),
    "persona_vectors": Method(DifferenceRows, persona_vectors),
}
"""The methods that fit a subspace to contrast prompts, by their names in `subspace.method`."""


def rotated(directions: list[Tensor], seed: int) -> list[Tensor]:
    """Turn the bases of all layers by the same Haar-distributed rotation of the stream, drawn by `seed`.

    Each basis is then Haar-distributed, and layers that had a direction in common still have one in common. The union of all
    bases therefore keeps its rank. Independent draws would give the random control a wider union than the real subspace.
    """
    union = orthonormal(torch.cat(directions, dim=1).double())
    image = random_basis(union.shape[0], union.shape[1], torch.Generator().manual_seed(seed)).double()
    return [(image @ (union.mT @ basis.double())).float() for basis in directions]


def padded(directions: list[Tensor], axes: list[Tensor], first: str, others: str, scales: list[Tensor], units: Tensor,
           spreads: list[Tensor] | None = None) -> Found:
    """Make a `Found` from directions and axes of layers that may have different numbers of axes: a layer with fewer axes gets
    columns of zeros, whose scale is the layer's unit. The first axis is named `first`, and the others `others`_1, `others`_2, and
    so on. `directions`, `axes` and `scales` have one tensor per layer; `units` (L,) and `spreads` are those of `Found`."""
    most = max(axis.shape[1] for axis in axes)
    axes = [torch.nn.functional.pad(axis, (0, most - axis.shape[1])) for axis in axes]
    scales = [torch.cat([scale, unit.repeat(most - len(scale))]) for scale, unit in zip(scales, units, strict=True)]
    names = [first, *(f"{others}_{k}" for k in range(1, most))]
    return Found(directions, axes, names, torch.stack(scales).float(), units.float(), spreads)


def checked_units(lengths_L: Tensor, norm_L: Tensor) -> Tensor:
    """Return `lengths_L`, the length of the gap at each layer. SubspaceError if a gap is so short against the stream's length
    `norm_L` that it is only rounding."""
    for layer, (length, norm) in enumerate(zip(lengths_L, norm_L, strict=True)):
        if length <= NULL * norm:
            raise SubspaceError(f"the two personas do not differ at the output of layer {layer} (gap {length:.1e}, "
                                f"stream {norm:.1e}); use prompts that differ")
    return lengths_L
