"""Makes a subspace worse on purpose, by turning it away from the personas or leaving out directions, for experiments on how much
an imperfect subspace costs."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from routed_rl.errors import SubspaceError
from routed_rl.linalg import orthonormal, orthonormalise_draws
from routed_rl.subspace.artifact import Subspace


def degrade(subspace: Subspace, angle: float, missing: float, seed: int) -> Subspace:
    """Return a worse copy of a subspace. Every direction, and the axes with it, is turned by `angle` degrees towards a random
    direction outside the span of its layer's directions. Then the share `missing` of each layer's directions, rounded down to a
    whole number of directions, is left out at random. `seed` decides all draws. The quality figures stay those of the original.

    SubspaceError if `angle` is not 0 and a layer has more directions than half the stream's width. Too few directions outside
    their span are then left to turn them to.
    """
    generator, turned, spreads = torch.Generator().manual_seed(seed), list[Tensor](), list[Tensor]()
    axes = list[Tensor]()
    for layer, (basis, named) in enumerate(zip(subspace.directions, subspace.axes, strict=True)):
        new = _turned(basis, math.radians(angle), generator, layer) if angle else basis
        moved = named + (new - basis) @ (basis.mT @ named)
        axes.append(moved / moved.norm(dim=0).clamp(min=1e-30) * (named.norm(dim=0) > 0))
        kept = torch.randperm(basis.shape[1], generator=generator)[int(missing * basis.shape[1]):].sort().values
        turned.append(new[:, kept])
        spreads.append((subspace.strengths(layer) * subspace.units[layer])[kept])
    details = subspace.provenance.details | {"degraded": {"angle": angle, "missing": missing, "seed": seed}}
    return replace(subspace, directions=turned, axes=axes, spreads=spreads,
                   provenance=replace(subspace.provenance, details=details))


def _turned(basis_DK: Tensor, radians: float, generator: torch.Generator, layer: int) -> Tensor:
    width, rank = basis_DK.shape
    if 2 * rank > width:
        raise SubspaceError(f"subspace.degrade.angle: layer {layer} has {rank} directions in a stream {width} wide, so there are "
                            f"no {rank} others to turn to; lower subspace.rank")
    drawn = torch.randn(width, rank, generator=generator).to(basis_DK)
    outside = orthonormal(drawn - basis_DK @ (basis_DK.mT @ drawn))
    turned = math.cos(radians) * basis_DK + math.sin(radians) * outside
    return orthonormalise_draws(turned.double()).to(basis_DK)  # the columns stay the same but for rounding
