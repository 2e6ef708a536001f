"""Turns named vectors into a subspace, by orthonormalising them in their order. Used for decoder rows of SAEs, for vectors of a
file, and for unions of subspaces.

Shape letters: L layers, D stream width, K rank, J axes, S sampled activations.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from routed_rl.errors import SubspaceError
from routed_rl.subspace.artifact import Subspace
from routed_rl.subspace.methods import Found, Size
from routed_rl.subspace.separation import joined_axes

DEPENDENT = 1e-4
"""A vector adds no direction if less than this share of its length lies outside the span of the vectors before it."""


@dataclass(frozen=True, eq=False)
class NamedVector:
    """A vector that becomes one named axis of a subspace. It may be given at some layers only."""

    name: str
    at: dict[int, Tensor]
    """Maps a layer to the vector (D,) at that layer, which points to the persona that must not grow and may have any length but
    0."""
    scales: dict[int, float]
    """Maps a layer to the length in the stream that counts as a shift of 1 along the vector. At a layer that is missing here, the
    stream's standard deviation along the vector counts as 1."""

    def __post_init__(self) -> None:
        for layer, values in self.at.items():
            if not 0 < (length := values.float().norm().item()) < math.inf:
                problem = "zero" if length == 0 else "not finite"
                raise SubspaceError(f"axis {self.name} is {problem} at layer {layer}; leave it out")


def in_order(vectors_DJ: Tensor) -> Tensor:
    """Orthonormalise the columns of `vectors_DJ` by Gram-Schmidt in their order. Returns orthonormal columns (D, K); K may be
    less than J, because a vector in the span of earlier vectors adds no column."""
    kept: list[Tensor] = []
    for vector in vectors_DJ.double().unbind(1):
        rest = vector
        # Done twice, because once loses digits where a vector nearly lies in the span of the others.
        for _ in range(2):
            for column in kept:
                rest = rest - (column @ rest) * column
        if vector.norm() > 0 and rest.norm() > DEPENDENT * vector.norm():
            kept.append(rest / rest.norm())
    return torch.stack(kept, dim=1).float() if kept else vectors_DJ.new_zeros(vectors_DJ.shape[0], 0, dtype=torch.float32)


def find_named(vectors: Sequence[NamedVector], stream_LSD: Tensor, size: Size) -> Found:
    """Make a subspace whose axes are the vectors, scaled to length 1. Its directions are the orthonormalised axes, or the first
    `size.rank` of them if a rank is set. `stream_LSD`: a sample of the model's activations at each layer.

    The unit of a layer (see `Subspace.units`) is the root of the sum of its axes' squared scales. A layer without vectors has no
    directions, and its axes are 0, so that every shift there is 0.
    """
    layers, _, width = stream_LSD.shape
    axes = torch.zeros(layers, width, len(vectors))
    scales = torch.zeros(layers, len(vectors))
    for column, vector in enumerate(vectors):
        for layer, values in vector.at.items():
            unit = values.float() / values.float().norm()
            axes[layer, :, column] = unit
            deviation = (stream_LSD[layer] @ unit).std().item()
            scales[layer, column] = scale = vector.scales.get(layer, deviation)
            if not 0 < scale < math.inf:
                raise SubspaceError(f"axis {vector.name} has scale {scale} at layer {layer}: the stream does not vary along it")
    directions = [in_order(layer)[:, : size.rank] for layer in axes]
    spreads = [spreads_of(basis, layer, scale) for basis, layer, scale in zip(directions, axes, scales, strict=True)]
    used = scales.square().sum(dim=1).sqrt()
    units = torch.where(used > 0, used, used[used > 0].mean())
    mean = scales.sum(dim=0) / (scales > 0).sum(dim=0)
    names = [vector.name for vector in vectors]
    return Found(directions, list(axes), names, torch.where(scales > 0, scales, mean), units, spreads)


def spreads_of(basis: Tensor, axes: Tensor, scales_J: Tensor) -> Tensor:
    """Return the length in the stream that counts as a shift of 1 along each column of `basis` (D, K), (K,). Each of the axes (D,
    J) is multiplied by its scale in `scales_J` and has a component along the column; the result is the root of the sum of these
    components' squares."""
    along = (basis.mT @ axes) * scales_J
    return along.square().sum(dim=1).sqrt()


def union(parts: Sequence[tuple[str, Subspace]], size: Size) -> Subspace:
    """Join named subspaces of one model. The result has all their axes, named `NAME.AXIS`, and as its directions the span of all
    their directions, orthonormalised in the order of `parts`, or the first `size.rank` of these if a rank is set.

    The units, the sample of the stream and the provenance are those of the first subspace; the caller must replace the method and
    the details in the provenance. The quality has only the figures of axes, as they were measured in the parts, so an axis that
    was measured weighs the layers as it does in its part (see `Subspace.layer_weights`). SubspaceError if the subspaces are of
    different models.
    """
    first = parts[0][1]
    ours = first.provenance
    for _, part in parts[1:]:
        part.check_model(model=ours.model, model_hash=ours.model_hash, width=ours.width, layers=ours.layers)
    directions, spreads = [], []
    for layer in range(ours.layers):
        columns = torch.cat([part.directions[layer] for _, part in parts], dim=1)
        lengths = torch.cat([part.strengths(layer) * part.units[layer] for _, part in parts])
        basis = in_order(columns)[:, : size.rank]
        directions.append(basis)
        spreads.append(spreads_of(basis, columns, lengths))
    axes = [torch.cat(layer, dim=1) for layer in zip(*(part.axes for _, part in parts), strict=True)]
    names = [f"{name}.{axis}" for name, part in parts for axis in part.axis_names]
    measured = joined_axes(parts)
    return replace(first, directions=directions, axes=axes, axis_names=names, spreads=spreads,
                   scales=torch.cat([part.scales for _, part in parts], dim=1), quality={"axes": measured} if measured else {})
