"""Turns named vectors into a subspace, by orthonormalising them in their order. It is used for SAE rows, vectors of a file, and
unions.

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

DEPENDENT = 1e-4
"""A vector adds no direction if less than this share of its length lies outside the span of the vectors before it."""


@dataclass(frozen=True, eq=False)
class NamedVector:
    """One axis: its vector at each of its layers, and the length along it that counts as 1."""

    name: str
    at: dict[int, Tensor]
    """Maps a layer to the vector (D,) there, which points to the persona that must not grow and may have any length but zero."""
    scales: dict[int, float]
    """Maps a layer to the length that counts as 1. For a layer that is not in it, this is the stream's standard deviation along
    the vector."""

    def __post_init__(self) -> None:
        for layer, values in self.at.items():
            if not 0 < (length := values.float().norm().item()) < math.inf:
                problem = "zero" if length == 0 else "not finite"
                raise SubspaceError(f"axis {self.name} is {problem} at layer {layer}; leave it out")


def in_order(vectors_DJ: Tensor) -> Tensor:
    """Orthonormal columns (D, K), by Gram-Schmidt in the order of the vectors. A vector in the span of those before it adds no
    column."""
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
    """Make a subspace whose axes are the vectors, scaled to length 1. The directions are their orthonormalised columns, or the
    first `size.rank` of them if a rank is set.

    The unit of a layer is the root of its axes' summed squared scales. A layer without axes has an empty basis, and zero columns
    with the mean scale, so that every shift there is 0.
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
    """(K,): the length that counts as 1 along each direction, computed from the components of the axes (D, J) along it and from
    their scales."""
    along = (basis.mT @ axes) * scales_J
    return along.square().sum(dim=1).sqrt()


def union(parts: Sequence[tuple[str, Subspace]], size: Size) -> Subspace:
    """Join subspaces: all axes of `parts`, named part.axis, and the span of all their directions, orthonormalised in the order of
    the parts.

    The unit of the quarantine's bound, the sample of the stream and the provenance are those of the first part; the caller
    replaces method and details of the provenance. Raises SubspaceError for parts of different models.
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
    return replace(first, directions=directions, axes=axes, axis_names=names, spreads=spreads,
                   scales=torch.cat([part.scales for _, part in parts], dim=1), quality={})
