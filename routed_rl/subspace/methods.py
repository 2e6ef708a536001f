"""The methods that turn activations under two personas into directions and named axes. They work on tensors and need no model.
Each method is one row of `METHODS`.

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
"""Smallest scale of a component, as a share of the gap, so that no shift is divided by almost nothing."""


@dataclass(frozen=True)
class Size:
    """How many directions a layer gets: `rank` of them, or, if `rank` is None, all whose singular value is at least `weakest`
    times the largest. With a rank, a layer in which the personas differ along fewer directions gets noise for the rest."""

    rank: int | None
    weakest: float = 1.0
    components: int = 3
    """For the assistant axis without a rank: largest number of leading components of the roles beside the axis."""


@dataclass(frozen=True, eq=False)
class Found:
    """The result of a method: the fields of `Subspace` that are computed from samples."""

    directions: list[Tensor]
    axes: list[Tensor]
    axis_names: list[str]
    scales: Tensor
    units: Tensor
    spreads: list[Tensor] | None = None
    """For each layer (K,): the length that counts as 1 along each direction. None if `scales[:, 1:]` holds these lengths."""
    kind_of_axis: dict[int, int] = field(default_factory=dict)
    """For axes that stand for the pairs of only one kind: index of the axis -> index of the kind."""

    def subspace(self, stream: Tensor, provenance: Provenance, quality: dict[str, Any]) -> Subspace:
        return Subspace(self.directions, self.axes, self.axis_names, self.scales, self.units, stream, provenance, quality,
                        self.spreads)

    def behind_an_empty_layer(self) -> "Found":
        """The same result with all layers moved up by one. The new first layer has an empty basis and zero axes."""
        spreads = None if self.spreads is None else [self.spreads[0][:0], *self.spreads]
        return replace(self, directions=[self.directions[0][:, :0], *self.directions], spreads=spreads,
                       axes=[torch.zeros_like(self.axes[0]), *self.axes], scales=torch.cat([self.scales[:1], self.scales]),
                       units=torch.cat([self.units[:1], self.units]))


@dataclass(frozen=True)
class Method:
    """A row of the table of methods. `gather` is the class to which blocks of samples are added; `name` is the function that
    turns its rows into directions and axes."""

    gather: type[DifferenceRows]
    name: Callable[[Rows, Size, Sequence[str], int], Found]
    """Function of (rows, size, names of the kinds, seed)."""


def gathered(method: str, samples: Samples) -> Rows:
    """The rows that `method` fits, from samples that are all in memory."""
    gathering = METHODS[method].gather(None)
    gathering.add(samples)
    return gathering.rows()


def top_directions(rows_GD: Tensor, weights_G: Tensor, size: Size) -> Tensor:
    """The strongest right singular vectors of the weighted rows, uncentred, strongest first: (D, K), float32.

    Only vectors whose singular value is above `NULL` times the largest are kept. They are computed from the smaller Gram matrix,
    in float64.
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
    """For each layer, the `top_directions`, with signs so that each points to the positive persona, and the weighted root mean
    square of all rows along each, (K,) float64."""
    directions, spreads = [], []
    for layer, gap, unit in zip(rows.rows_LGD, rows.gap_LD, units_L, strict=True):
        basis = top_directions(layer, rows.weights_G, size)
        basis = basis * torch.where(gap @ basis.double() < 0, -1.0, 1.0).float()
        energy = ((layer.double() @ basis.double()).square() * rows.weights_G.unsqueeze(1)).sum(0)
        directions.append(basis)
        spreads.append((energy / rows.total_weight).sqrt().clamp(min=SMALLEST_SCALE * unit.item()))
    return directions, spreads


def find(method: str, samples: Samples, size: Size, seed: int, kinds: Sequence[str] = ()) -> Found:
    """Find directions, signed axes, scales and units of every layer, from samples that are all in memory."""
    return METHODS[method].name(gathered(method, samples), size, kinds, seed)


def components(rows: Rows, size: Size, _kinds: Sequence[str] = (), _seed: int = 0) -> Found:
    """The strongest directions of the rows. This fits method mean_difference and, with centred rows, method pca.

    The axis "persona" is the unit mean difference, and its scale is the gap; "component_k" is the k-th direction. If a layer has
    fewer components than another, it has zero columns (with the gap as their scale) in their place, along which every shift is 0.
    """
    units = checked_units(rows.gap_LD.norm(dim=1), rows.norm_L)
    directions, spreads = strongest(rows, size, units)
    gaps = (rows.gap_LD / units.unsqueeze(1)).float().unsqueeze(2)
    axes = [torch.cat([gap, basis], dim=1) for gap, basis in zip(gaps, directions, strict=True)]
    scales = [torch.cat([unit.unsqueeze(0), spread]) for unit, spread in zip(units, spreads, strict=True)]
    return padded(directions, axes, "persona", "component", scales, units)


def turned(rows: Rows, size: Size, kinds: Sequence[str], seed: int) -> Found:
    """The random control: the result of `components`, with rotated directions. Axes, scales and units are not changed."""
    real = components(rows, size, kinds, seed)
    return replace(real, directions=rotated(real.directions, seed))


def away_from_assistant(rows: Rows, size: Size, _kinds: Sequence[str], _seed: int) -> Found:
    """The assistant axis and, orthogonal to it, the leading components of the roles' means about their common mean.

    The published axis is default minus roles. Here every axis points to what must not grow, which is leaving the assistant, so
    "away_from_assistant" is roles minus default, the published axis negated; its scale is the gap. The scale of a component is
    the root mean square over roles along it, and it points to the side of the roles' longer tail.
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
    """One axis per trait: the trait's unit mean difference, with the trait's gap as scale. The directions are the strongest over
    all traits.

    The first axis, "persona", is the mean over the traits. The unit is the root mean square of the traits' gaps, because traits
    may point against each other, which makes their mean short.
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
"""The methods that fit rows of contrast prompts."""


def rotated(directions: list[Tensor], seed: int) -> list[Tensor]:
    """All bases, turned by the same Haar-distributed rotation of the stream.

    Each basis is then Haar-distributed, and directions that layers share stay shared, so a spanning or shared union keeps its
    rank. Independent draws would give the control a wider union than the real subspace.
    """
    union = orthonormal(torch.cat(directions, dim=1).double())
    image = random_basis(union.shape[0], union.shape[1], torch.Generator().manual_seed(seed)).double()
    return [(image @ (union.mT @ basis.double())).float() for basis in directions]


def padded(directions: list[Tensor], axes: list[Tensor], first: str, others: str, scales: list[Tensor], units: Tensor,
           spreads: list[Tensor] | None = None) -> Found:
    """The result, with zero columns for the axes that a layer lacks, whose scale is the unit. The axes are named `first`,
    `others`_1, `others`_2, ..."""
    most = max(axis.shape[1] for axis in axes)
    axes = [torch.nn.functional.pad(axis, (0, most - axis.shape[1])) for axis in axes]
    scales = [torch.cat([scale, unit.repeat(most - len(scale))]) for scale, unit in zip(scales, units, strict=True)]
    names = [first, *(f"{others}_{k}" for k in range(1, most))]
    return Found(directions, axes, names, torch.stack(scales).float(), units.float(), spreads)


def checked_units(lengths_L: Tensor, norm_L: Tensor) -> Tensor:
    """The lengths of the gaps. SubspaceError for a layer whose gap is only rounding of the stream."""
    for layer, (length, norm) in enumerate(zip(lengths_L, norm_L, strict=True)):
        if length <= NULL * norm:
            raise SubspaceError(f"the two personas do not differ at the output of layer {layer} (gap {length:.1e}, "
                                f"stream {norm:.1e}); use prompts that differ")
    return lengths_L
