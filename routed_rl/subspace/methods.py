"""From activations under two personas to directions and named axes, as pure tensors. Not covered: SAE rows.

Shape letters: L layers, R sample rows (one per pair and position), G rows of a fit, D stream width, K rank, J axes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from routed_rl.errors import SubspaceError
from routed_rl.linalg import orthonormal, random_basis

NULL = 1e-6
"""A singular value under this share of the largest is rounding, not a direction; so is such a gap beside the stream."""
SMALLEST_SCALE = 1e-3
"""A component's scale is at least this share of the gap, so that no shift is ever divided by almost nothing."""


@dataclass(frozen=True, eq=False)
class Samples:
    """The stream at layers' outputs under both personas, one row per (pair, position)."""

    positive: Tensor
    """(L, R, D), float32 on the CPU."""
    negative: Tensor
    """(L, R, D), row by row the counterpart of `positive`."""
    pair_R: Tensor
    """Index of the pair."""
    kind_R: Tensor
    """Index of the pair's kind; a pair without one is a kind of its own."""
    offset_R: Tensor
    """Position counted from the end, 0 is the last token."""
    last_weight: float = 1.0
    """Weight of the last position against 1 for the others."""

    def of_pairs(self, pairs: Tensor) -> Samples:
        """The rows of `pairs` (indices) only."""
        keep = torch.isin(self.pair_R, pairs)
        return Samples(self.positive[:, keep], self.negative[:, keep], self.pair_R[keep], self.kind_R[keep],
                       self.offset_R[keep], self.last_weight)

    def weights(self, offsets: Tensor) -> Tensor:
        return torch.where(offsets == 0, self.last_weight, 1.0).double()


Rows = tuple[Tensor, Tensor]
"""Rows (L, G, D) that a fit explains, and their weights (G,), float64."""


def difference_rows(samples: Samples) -> Rows:
    """positive - negative, averaged over the pairs of one kind at one position."""
    keys = torch.stack([samples.kind_R, samples.offset_R], dim=1)
    groups, group_R, counts = torch.unique(keys, dim=0, return_inverse=True, return_counts=True)
    differences = samples.positive - samples.negative
    sums = differences.new_zeros(differences.shape[0], len(groups), differences.shape[2])
    sums.index_add_(1, group_R, differences)
    return sums / counts.unsqueeze(1), samples.weights(groups[:, 1])


def centred_rows(samples: Samples) -> Rows:
    """Activations of both personas, each position from the end centred by itself; G = 2R."""
    rows = torch.cat([samples.positive, samples.negative], dim=1)
    offsets = samples.offset_R.repeat(2)
    for offset in offsets.unique():
        here = offsets == offset
        rows[:, here] -= rows[:, here].mean(dim=1, keepdim=True)
    return rows, samples.weights(offsets)


METHODS: dict[str, Callable[[Samples], Rows]] = {
    "mean_difference": difference_rows, "pca": centred_rows, "random": difference_rows}
"""The rows whose strongest directions a method takes. `random` then turns the directions, and keeps axes and scales."""


@dataclass(frozen=True)
class Size:
    """How many directions a layer gets: `rank`, or with None those of at least `weakest` of the largest singular value."""

    rank: int | None
    weakest: float = 1.0

    def of(self, squares: Tensor) -> int:
        """The number for these squared singular values, largest first."""
        return int((squares >= self.weakest**2 * squares[:1]).sum()) if self.rank is None else self.rank


def top_directions(rows_GD: Tensor, weights_G: Tensor, size: Size) -> Tensor:
    """The strongest right singular vectors of the weighted rows, uncentred, strongest first: (D, K), float32.

    Only those whose singular value is above `NULL` times the largest. By way of the smaller Gram matrix, float64.
    """
    weighted = rows_GD.double() * weights_G.unsqueeze(1)
    wide = weighted.shape[0] <= weighted.shape[1]
    squares, vectors = torch.linalg.eigh(weighted @ weighted.mT if wide else weighted.mT @ weighted)
    squares, vectors = squares.flip(0), vectors.flip(1)
    rank = size.of(squares)
    squares, vectors = squares[:rank], vectors[:, :rank]
    # Squaring costs half of the digits: what rounding leaves of a null direction is some eps of the largest square.
    floor = max(NULL**2, 10 * vectors.shape[0] * torch.finfo(torch.float64).eps)
    vectors = vectors[:, squares > floor * squares[:1]]
    return torch.linalg.qr(weighted.mT @ vectors if wide else vectors).Q.float()


def fit(method: str, samples: Samples, size: Size) -> list[Tensor]:
    """One basis (D, K_l) a layer from the rows of `method`."""
    rows, weights = METHODS[method](samples)
    return [top_directions(layer, weights, size) for layer in rows]


def gaps(samples: Samples) -> Tensor:
    """Weighted mean of the difference rows, (L, D) float64: from the negative persona to the positive one."""
    rows, weights = difference_rows(samples)
    if weights.sum() == 0:
        raise SubspaceError("subspace.last_weight=0 leaves nothing to fit: the prompts of each pair share their last "
                            "token only; set it above 0")
    return torch.einsum("g,lgd->ld", weights, rows.double()) / weights.sum()


def rotated(directions: list[Tensor], seed: int) -> list[Tensor]:
    """All bases turned by one Haar-distributed rotation of the stream.

    Each basis is Haar-distributed, and what layers share stays shared, so that a spanning or shared union has the rank
    that it has without the turn; independent draws would give the control a wider union than the real subspace.
    """
    union = orthonormal(torch.cat(directions, dim=1).double())
    image = random_basis(union.shape[0], union.shape[1], torch.Generator().manual_seed(seed)).double()
    return [(image @ (union.mT @ basis.double())).float() for basis in directions]


@dataclass(frozen=True, eq=False)
class Found:
    """What a method found: the fields of `Subspace` that come out of the samples."""

    directions: list[Tensor]
    axes: list[Tensor]
    axis_names: list[str]
    scales: Tensor
    units: Tensor


def find(method: str, samples: Samples, size: Size, seed: int) -> Found:
    """Directions, signed axes, scales and units of every layer.

    Axis "persona" is the unit mean difference, its scale the gap; "component_k" is the k-th direction with the sign
    that has it point to the positive persona, its scale the weighted root mean square of the rows along it. A layer
    with fewer components than another has zero columns (of scale gap) in their place: there every shift reads 0.
    """
    rows, weights = METHODS[method](samples)
    gap_LD = gaps(samples)
    units = _checked_units(samples, gap_LD)
    directions, axes, scales = [], [], []
    for layer, gap, unit in zip(rows, gap_LD, units, strict=True):
        basis = top_directions(layer, weights, size)
        basis = basis * torch.where(gap @ basis.double() < 0, -1.0, 1.0).float()
        spread = ((layer.double() @ basis.double()).square() * weights.unsqueeze(1)).sum(0) / weights.sum()
        directions.append(basis)
        axes.append(torch.cat([(gap / unit).float().unsqueeze(1), basis], dim=1))
        scales.append(torch.cat([unit.unsqueeze(0), spread.sqrt().clamp(min=SMALLEST_SCALE * unit.item())]))
    most = max(axis.shape[1] for axis in axes)
    axes = [torch.nn.functional.pad(axis, (0, most - axis.shape[1])) for axis in axes]
    scales = [torch.cat([scale, unit.repeat(most - len(scale))]) for scale, unit in zip(scales, units, strict=True)]
    names = ["persona", *(f"component_{k}" for k in range(1, most))]
    if method == "random":
        directions = rotated(directions, seed)
    return Found(directions, axes, names, torch.stack(scales).float(), units.float())


def _checked_units(samples: Samples, gap_LD: Tensor) -> Tensor:
    units, norms = gap_LD.norm(dim=1), samples.positive.norm(dim=2).mean(dim=1)
    for layer, (unit, norm) in enumerate(zip(units, norms, strict=True)):
        if unit <= NULL * norm:
            raise SubspaceError(f"the two personas do not differ at the output of layer {layer} (gap {unit:.1e}, "
                                f"stream {norm:.1e}); use prompts that differ")
    return units


def stream_sample(samples: Samples, most: int = 64) -> Tensor:
    """At most `most` activations per layer, drawn from both personas, centred: (L, S, D)."""
    rows = samples.positive.shape[1]
    # Drawn, not strided: a stride may meet the same position of every pair. Always the same draw.
    chosen = torch.randperm(2 * rows, generator=torch.Generator().manual_seed(0))[:most]
    stream = torch.cat([samples.positive[:, chosen[chosen < rows]],
                        samples.negative[:, chosen[chosen >= rows] - rows]], dim=1)
    return stream - stream.mean(dim=1, keepdim=True)
