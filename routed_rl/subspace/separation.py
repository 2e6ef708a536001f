"""Measures each named axis of a subspace by itself: whether the axis tells the personas apart on held-out prompts, and whether
two halves of the pairs give the same axis.

Not covered: whether steering along an axis changes behaviour, which `routed_rl.extraction.causal` measures with a model.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from routed_rl.linalg import random_basis
from routed_rl.subspace.artifact import Subspace
from routed_rl.subspace.methods import Found, gathered
from routed_rl.subspace.quality import DRAWS, FEWEST_PAIRS, SEED, auroc, best_layer_of, halves
from routed_rl.subspace.samples import Samples


def measure_axes(samples: Samples, fit: Callable[[Samples], Found], found: Found, *, fitted: bool = True) -> dict[str, Any]:
    """Measure the axes of `found`, and return plain JSON: the axes' `names`, and `layers`, one mapping for each layer with the
    figures below. `fit`: the function that made `found` from samples, which is called on each half of the pairs. `fitted`:
    whether the axes depend on the samples at all. A figure that cannot be measured is null.

    - `auroc`, for each axis: how well the axis fitted on one half tells the personas apart at last positions of the other half,
      as a mean over both choices of the half. An axis that stands for one kind of pairs is tested on pairs of this kind.
    - `stability`, for each axis: the cosine between the axes of the two halves; null unless `fitted`.
    - `random`: the mean AUROC over random directions. The sign of each is chosen on the half on which the axes are fitted.
    - `random_best`: the highest AUROC of these random directions.
    """
    generator = torch.Generator().manual_seed(SEED)
    layers: list[dict[str, Any]] = [{"layer": layer, "auroc": {}, "stability": {}, "random": None, "random_best": None}
                                    for layer in range(len(found.axes))]
    parts = [samples.of_pairs(half) for half in halves(samples, generator)]
    if len(samples.pair_R.unique()) >= FEWEST_PAIRS and all(len(part.pair_R) for part in parts):
        one, other = (fit(part) for part in parts)
        drawn = random_basis(samples.positive.shape[2], 1, generator, draws=DRAWS).squeeze(2).mT
        gaps = [gathered("mean_difference", part).gap_LD for part in parts]
        folds = [(one, gaps[0], parts[1]), (other, gaps[1], parts[0])]
        for layer, row in enumerate(layers):
            for column, name in enumerate(found.axis_names):
                ways = [_auroc(half, name, layer, found.kind_of_axis.get(column), held_out) for half, _, held_out in folds]
                row["auroc"][name] = None if None in ways else sum(way for way in ways if way is not None) / 2
                row["stability"][name] = _agreement(one, other, name, layer) if fitted else None
            by_chance = torch.tensor([_by_chance(drawn, gap[layer], layer, held_out) for _, gap, held_out in folds]).mean(0)
            row["random"], row["random_best"] = by_chance.mean().item(), by_chance.max().item()
    return {"names": found.axis_names, "layers": layers}


def joined_axes(parts: Sequence[tuple[str, Subspace]]) -> dict[str, Any] | None:
    """Return the figures of the axes of a union, in the form of `measure_axes`. An axis `NAME.AXIS` has the figures that AXIS has
    in the part NAME. Those of random directions are from the first part that has any. None if no axis of any part was
    measured."""
    count, measured = parts[0][1].provenance.layers, [part.quality.get("axes") or {"layers": []} for _, part in parts]
    random = next((axes["layers"] for axes in measured if len(axes["layers"]) == count), [{}] * count)
    layers: list[dict[str, Any]] = [
        {"layer": layer, "auroc": {}, "stability": {}, "random": row.get("random"), "random_best": row.get("random_best")}
        for layer, row in enumerate(random)]
    for (name, part), axes in zip(parts, measured, strict=True):
        for axis in part.axis_names:
            for row, value in zip(layers, part.aurocs(axis), strict=False):
                row["auroc"][f"{name}.{axis}"] = value
            for row, own in zip(layers, axes["layers"], strict=False):
                row["stability"][f"{name}.{axis}"] = own.get("stability", {}).get(axis)
    known = any(value is not None for row in layers for value in row["auroc"].values())
    return {"names": [f"{name}.{axis}" for name, part in parts for axis in part.axis_names], "layers": layers} if known else None


def best_layer(axes: dict[str, Any], axis: str) -> int | None:
    """Return the layer at which the axis named `axis` has the highest AUROC, by `axes`, the result of `measure_axes`. None if no
    AUROC was measured for it."""
    measured = {row["layer"]: value for row in axes["layers"] if (value := row["auroc"].get(axis)) is not None}
    return best_layer_of([measured.get(row["layer"], 0.0) for row in axes["layers"]]) if measured else None


def cosines(ours: Subspace, theirs: Subspace) -> list[dict[str, Any]]:
    """Compare two subspaces of one model. Returns one mapping for each axis of `ours`: the name of the `axis`, the axis of
    `theirs` that is `nearest` ("" if none is), their mean `cosine` over the layers at which both axes are not 0, and `chance`,
    the root mean square cosine of two random directions. The nearest axis has the largest absolute cosine."""
    rows = []
    for column, name in enumerate(ours.axis_names):
        best: tuple[float, str] = (0.0, "")
        for other, their_name in enumerate(theirs.axis_names):
            pairs = [(a[:, column], b[:, other]) for a, b in zip(ours.axes, theirs.axes, strict=True)]
            along = [axis @ theirs_axis for axis, theirs_axis in pairs if axis.any() and theirs_axis.any()]
            if along and abs(cosine := torch.stack(along).mean().item()) > abs(best[0]):
                best = cosine, their_name
        rows.append({"axis": name, "nearest": best[1], "cosine": best[0], "chance": ours.provenance.width**-0.5})
    return rows


def _axis(found: Found, name: str, layer: int) -> Tensor | None:
    if name not in found.axis_names:
        return None
    axis = found.axes[layer][:, found.axis_names.index(name)]
    return axis if bool(axis.any()) else None


def _auroc(fitted: Found, name: str, layer: int, kind: int | None, held_out: Samples) -> float | None:
    rows = held_out.offset_R == 0
    rows = rows if kind is None else rows & (held_out.kind_R == kind)
    axis = _axis(fitted, name, layer)
    if axis is None or not rows.any():
        return None
    return auroc(held_out.positive[layer, rows] @ axis, held_out.negative[layer, rows] @ axis)


def _agreement(one: Found, other: Found, name: str, layer: int) -> float | None:
    a, b = _axis(one, name, layer), _axis(other, name, layer)
    return None if a is None or b is None else (a @ b).item()


def _by_chance(drawn_DM: Tensor, gap_D: Tensor, layer: int, held_out: Samples) -> list[float]:
    signs = torch.where(gap_D.float() @ drawn_DM < 0, -1.0, 1.0)
    last = held_out.offset_R == 0
    positive, negative = (side[layer, last] @ (drawn_DM * signs) for side in (held_out.positive, held_out.negative))
    return [auroc(above, below) for above, below in zip(positive.mT.contiguous(), negative.mT.contiguous(), strict=True)]
