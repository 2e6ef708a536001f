"""Measures the quality of a subspace before any training: whether it separates held-out prompts, whether two halves of the pairs
give the same subspace, and whether it captures more of the personas' difference than chance.

Not covered: whether steering along the subspace changes behaviour. If the two halves share a part of their prompts (the same
question under two system prompts), the figures look better than they are.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from routed_rl.linalg import principal_cosines, random_basis
from routed_rl.subspace.methods import gathered
from routed_rl.subspace.samples import Samples

DRAWS = 64
FEWEST_PAIRS = 4
LOWEST_AUROC, LOWEST_STABILITY, LOWEST_RATIO = 0.8, 0.5, 2.0
SEED = 0
"""The seed of the halves and of the random bases. It is not the run's seed, so that a subspace always has the same figures."""

COLUMNS = ("auroc", "ordered", "stability", "captured", "captured_random", "captured_ratio", "captured_place")


def auroc(positive: Tensor, negative: Tensor) -> float:
    """Return the probability that one of the scores `positive` (P,) is above one of the scores `negative` (N,), both drawn at
    random. A tie counts as half."""
    below = negative.sort().values
    ranks = torch.searchsorted(below, positive) + torch.searchsorted(below, positive, right=True)
    return ranks.double().mean().item() / 2 / len(negative)


def best_layer_of(values: Sequence[float], tied: float = 0.005) -> int:
    """Return the layer with the highest value, given one value for each layer. Among layers whose value is within `tied` of the
    highest, the one nearest to the middle layer is taken."""
    best = [layer for layer, value in enumerate(values) if value >= max(values) - tied]
    return min(best, key=lambda layer: abs(layer - (len(values) - 1) / 2))


def halves(samples: Samples, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Split the pairs into two halves at random, and return the indices of the pairs in each. A kind that has two or more pairs
    is in both halves. If the samples say to which fold a pair belongs (`fold_R`), folds 0 and 1 are the halves."""
    if samples.fold_R is not None:
        return samples.pair_R[samples.fold_R == 0].unique(), samples.pair_R[samples.fold_R == 1].unique()
    pairs = torch.stack([samples.kind_R, samples.pair_R], dim=1).unique(dim=0)
    pairs = pairs[torch.randperm(len(pairs), generator=generator)]
    _, kind, size = pairs[:, 0].unique(return_inverse=True, return_counts=True)
    # Kinds with a single pair are shuffled as one kind, because neighbours in the file may be alike.
    order = torch.argsort(torch.where(size[kind] > 1, kind, -1), stable=True)
    return pairs[order[0::2], 1], pairs[order[1::2], 1]


def captured_share(rows_GD: Tensor, weights_G: Tensor, bases: Tensor) -> Tensor:
    """Return the share, from 0 to 1, of the energy of the weighted rows that lies inside each of `bases` (..., D, K)."""
    weighted = rows_GD * weights_G.float().unsqueeze(1)
    return (weighted @ bases).square().sum(dim=(-1, -2)) / weighted.square().sum().clamp(min=1e-30)


def measure_quality(samples: Samples, directions: list[Tensor], fit: Callable[[Samples], list[Tensor]],
                    rank: int | None) -> dict[str, Any]:
    """Measure the quality of the subspace with these `directions`, and return plain JSON. `fit` is the function that made the
    directions from samples, and is called on each half of the pairs. `rank`: the rank that the settings asked for, or None.

    The result has the number of `pairs`, `rank`, the number of random bases `draws`, and `layers`, one mapping for each layer
    with the figures below. A figure that cannot be measured is null. Each figure but `rank` is a mean over two cases: the first
    half of the pairs is fitted and the second half tested, or the other way round.

    - `rank`: the number of the layer's directions.
    - `auroc`: how well the persona axis that is fitted on one half tells the personas apart at the last positions of the other
      half.
    - `ordered`: the share of the tested pairs whose positive prompt is further along this axis than their negative prompt.
    - `stability`: the mean squared principal cosine between the bases of the two halves. By chance it is rank / width.
    - `captured`: the share of the energy of one half's differences that lies inside the other half's basis.
    - `captured_random`: the mean of `captured` over random bases of the same rank.
    - `captured_ratio`: `captured` / `captured_random`.
    - `captured_place`: the place of `captured` when it is ranked together with its values for the random bases; 1 is the highest.
    """
    generator = torch.Generator().manual_seed(SEED)
    parts = [samples.of_pairs(half) for half in halves(samples, generator)]
    pairs = len(samples.pair_R.unique())
    layers: list[dict[str, Any]] = [{"layer": layer, "rank": basis.shape[1]} | dict.fromkeys(COLUMNS)
                                    for layer, basis in enumerate(directions)]
    if pairs >= FEWEST_PAIRS and all(len(part.pair_R) for part in parts):
        bases = [fit(part) for part in parts]
        rows = [gathered("mean_difference", part) for part in parts]
        separations = [_separation(rows[0].gap_LD, parts[1]), _separation(rows[1].gap_LD, parts[0])]
        draws: dict[int, Tensor] = {}
        for layer, (row, one, other) in enumerate(zip(layers, *bases, strict=True)):
            row["auroc"], row["ordered"] = torch.tensor([ways[layer] for ways in separations]).mean(0).tolist()
            if one.shape[1] and other.shape[1]:
                row["stability"] = principal_cosines(one, other).square().mean().item()
                folds = [(held_out.rows_LGD[layer], held_out.weights_G, basis)
                         for held_out, basis in zip(rows, (other, one), strict=True)]
                row |= _against_chance(folds, draws, generator)
    return {"pairs": pairs, "rank": rank, "draws": DRAWS, "layers": layers}


def behind_an_empty_layer(quality: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of the result of `measure_quality` in which every layer has moved up by one. The new first layer has no
    figures."""
    empty = {"layer": 0, "rank": 0} | dict.fromkeys(COLUMNS)
    shifted = [row | {"layer": row["layer"] + 1} for row in quality["layers"]]
    if axes := quality.get("axes"):
        unknown = {"layer": 0, "auroc": {}, "stability": {}, "random": None, "random_best": None}
        rows = [row | {"layer": row["layer"] + 1} for row in axes["layers"]]
        quality = quality | {"axes": axes | {"layers": [unknown, *rows]}}
    return quality | {"layers": [empty, *shifted]}


def describe_quality(quality: dict[str, Any]) -> list[dict[str, str]]:
    """Format the result of `measure_quality` as a table: for each layer a mapping of the column's heading to a short text, which
    is a dash for a missing figure."""
    return [{"layer": str(row["layer"]), "rank": str(row["rank"]), "separation (AUROC)": figure(row.get("auroc")),
             "pairs in order": figure(row.get("ordered"), ".0%"), "stability": figure(row.get("stability")),
             "captured": figure(row.get("captured"), ".0%"), "x random": figure(row.get("captured_ratio"), ".1f"),
             "place": "-" if row.get("captured_place") is None else f"{row['captured_place']} of {quality['draws'] + 1}"}
            for row in quality["layers"]]


def check_quality(quality: dict[str, Any]) -> list[str]:
    """Return one warning for each figure of `measure_quality` that is not good enough, with the layers at which it is not. The
    list is empty for a good subspace."""
    if quality["pairs"] is None:
        return []
    if quality["pairs"] < FEWEST_PAIRS:
        return [f"{quality['pairs']} contrast pairs are too few to say whether the subspace is good; "
                f"{FEWEST_PAIRS} are the least, 50 are better"]
    layers = quality["layers"]
    hardly = [row["captured_ratio"] is not None and row["captured"] < 0.9
              and (row["captured_place"] > 1 or row["captured_ratio"] < LOWEST_RATIO) for row in layers]
    findings = [
        ([row["auroc"] is not None and row["auroc"] < LOWEST_AUROC for row in layers],
         f"the persona axis separates held-out prompts with an AUROC under {LOWEST_AUROC}: use more pairs, or prompts "
         "that set the personas further apart"),
        ([row["stability"] is not None and row["stability"] < LOWEST_STABILITY for row in layers],
         f"the halves of the pairs give different directions (mean squared cosine under {LOWEST_STABILITY}): use more "
         "pairs, or a lower subspace.rank"),
        (hardly, "the basis captures held-out differences hardly better than random ones: it is not the personas'"),
        ([row["rank"] < (quality["rank"] or 0) and row["auroc"] is not None for row in layers],
         f"fewer directions than subspace.rank={quality['rank']} were found: use more kinds, pairs or positions"),
    ]
    return [f"{_layers(bad)}: {text}" for bad, text in findings if any(bad)]


def _separation(axis_LD: Tensor, held_out: Samples) -> list[tuple[float, float]]:
    """Return, for each layer, two figures of the axis `axis_LD` at the last positions of the pairs `held_out`: the AUROC between
    positive and negative prompts, and the share of pairs whose positive prompt is further along the axis."""
    last = held_out.offset_R == 0
    positive = torch.einsum("lrd,ld->lr", held_out.positive[:, last].double(), axis_LD)
    negative = torch.einsum("lrd,ld->lr", held_out.negative[:, last].double(), axis_LD)
    return [(auroc(above, below), (above > below).double().mean().item())
            for above, below in zip(positive, negative, strict=True)]


def _against_chance(folds: list[tuple[Tensor, Tensor, Tensor]], draws: dict[int, Tensor],
                    generator: torch.Generator) -> dict[str, Any]:
    """Return the figures `captured...` of `measure_quality`, as means over `folds`, which are (rows, weights, basis). `draws`:
    the random bases by rank, to which missing ranks are added."""
    real, random = torch.zeros(()), torch.zeros(DRAWS)
    for rows, weights, basis in folds:
        width, rank = basis.shape
        if rank not in draws:
            draws[rank] = random_basis(width, rank, generator, draws=DRAWS)
        real = real + captured_share(rows, weights, basis) / len(folds)
        random = random + captured_share(rows, weights, draws[rank]) / len(folds)
    return {"captured": real.item(), "captured_random": random.mean().item(),
            "captured_ratio": (real / random.mean().clamp(min=1e-30)).item(),
            "captured_place": 1 + int((random >= real).sum())}


def figure(value: float | None, form: str = ".2f") -> str:
    """Return a number as a table shows it, formatted by the format string `form`, or a dash for None."""
    return "-" if value is None else format(value, form)


def _layers(bad: list[bool]) -> str:
    if all(bad):
        return "every layer"
    return f"layer{'s' if sum(bad) > 1 else ''} {', '.join(str(layer) for layer, fails in enumerate(bad) if fails)}"
