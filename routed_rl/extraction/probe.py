"""A linear probe on mean activations of completions. It learns from few labels to tell marked completions, which have one of the
detector's flags, from the others.

Not covered: thresholds for each environment. Shape letters: L layers, N labelled completions, B completions, D stream width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from routed_rl.artifacts import broken_seal, read_json, sealed_folder, write_json
from routed_rl.errors import CheckpointError, ConfigError, reading
from routed_rl.subspace.quality import auroc, best_layer_of

FOLDS = 5
FEWEST = 4
"""The smallest number of marked completions from which a probe is learned, and the smallest number of others."""
WEIGHTS, RECORD = "probe.safetensors", "detector.json"


@dataclass(frozen=True, eq=False)
class Probe:
    """A linear probe. It names a completion as bad if the completion's score is above the threshold at every layer. The score at
    a layer is an affine function of the mean activation there, with `weights_LD` and `offsets_L`."""

    layers: list[int]
    weights_LD: Tensor
    offsets_L: Tensor
    threshold: float
    """The threshold. Scores and threshold are measured from the mean score of those labelled completions that are not marked, in
    units of the standard deviation of their scores."""

    def scores(self, pooled_LBD: Tensor) -> Tensor:
        """Return the score of each completion, (B,) float64, in the unit of `threshold`. It is the lowest of the completion's
        scores over layers, so that a completion which looks fine at one layer is not named. `pooled_LBD`: mean activations at the
        probe's layers."""
        each_LB = torch.einsum("lbd,ld->lb", pooled_LBD.double(), self.weights_LD.double()) + self.offsets_L.double().unsqueeze(1)
        return each_LB.amin(0)

    def named(self, pooled_LBD: Tensor) -> Tensor:
        return self.scores(pooled_LBD) > self.threshold

    def save(self, folder: Path, record: dict[str, Any]) -> None:
        """Write the probe, and with it `record`, which has measured figures, into a new sealed folder. Either both are written or
        none."""
        with sealed_folder(folder) as partial:
            save_file({"weights": self.weights_LD.contiguous(), "offsets": self.offsets_L.contiguous()}, partial / WEIGHTS)
            write_json(partial / RECORD, {"layers": self.layers, "threshold": self.threshold, **record})

    @classmethod
    def load(cls, folder: Path) -> tuple["Probe", dict[str, Any]]:
        """Read the probe and the record that `save` wrote. CheckpointError if they are missing or damaged."""
        if (problem := broken_seal(folder) if folder.is_dir() else "no such folder") is not None:
            raise CheckpointError(f"no detector can be read from {folder}: {problem}; remove the folder, and it is learned again")
        with reading(CheckpointError, f"no detector can be read from {folder}; remove the folder, and it is learned again"):
            tensors, record = load_file(folder / WEIGHTS), read_json(folder / RECORD)
            return cls(record["layers"], tensors["weights"], tensors["offsets"], float(record["threshold"])), record


def fit(pooled_LND: Tensor, marked_N: Tensor, layers: Sequence[int] | None, fpr: float, seed: int) -> Probe:
    """Learn a probe from labelled completions. `pooled_LND`: the completions' mean activations at `layers`. If `layers` is None,
    `pooled_LND` has all layers of the model, and the probe reads the one layer that tells marked completions from the others
    best. `marked_N`: which completions are marked (bool). `seed`: the seed by which completions are dealt to folds.

    The threshold is set so that at most a share `fpr` of the completions that are not marked have a score above it. Here the
    score of a completion comes from a probe that was learned without this completion. ConfigError if there are too few
    completions of either kind.
    """
    require_both(marked_N)
    held_out_LN = torch.stack([_held_out(features, marked_N, seed) for features in pooled_LND])
    rows = list(range(len(pooled_LND)))
    if layers is None:
        rows = [best_layer_of([auroc(scores[marked_N], scores[~marked_N]) for scores in held_out_LN])]
    honest_LN, weights, offsets = held_out_LN[rows][:, ~marked_N], list[Tensor](), list[Tensor]()
    for row, honest in zip(rows, honest_LN, strict=True):
        weight, offset = logistic(pooled_LND[row], marked_N)
        deviation = honest.std().clamp(min=1e-6)
        weights.append(weight / deviation)
        offsets.append((offset - honest.mean()) / deviation)
    standard_LN = (honest_LN - honest_LN.mean(1, keepdim=True)) / honest_LN.std(1, keepdim=True).clamp(min=1e-6)
    return Probe(list(layers) if layers is not None else rows, torch.stack(weights).float(), torch.stack(offsets).float(),
                 threshold_at(standard_LN.amin(0), fpr))


def require_both(marked_N: Tensor, remedy: str = "raise baseline.detector.labels, or name other baseline.detector.flags") -> None:
    """ConfigError, whose message ends with `remedy`, unless there are at least `FEWEST` marked completions and as many others."""
    marked = int(marked_N.sum())
    if min(marked, len(marked_N) - marked) < FEWEST:
        raise ConfigError(f"of {len(marked_N)} labelled completions {marked} are marked and {len(marked_N) - marked} are not; a "
                          f"probe needs {FEWEST} of each: {remedy}")


def threshold_at(honest_N: Tensor, fpr: float) -> float:
    """Return the lowest threshold among `honest_N`, the scores of completions that are not marked, such that at most a share
    `fpr` of these scores exceeds it."""
    return honest_N.sort(descending=True).values[min(int(fpr * len(honest_N)), len(honest_N) - 1)].item()


def measured(probe: Probe, scores_B: Tensor, marked_B: Tensor) -> dict[str, float | int | None]:
    """Measure a probe on B completions, whose scores by this probe are `scores_B`; `marked_B` says which of them are marked.
    Returns the number of completions, the number of marked ones, AUROC, false-positive rate, recall and precision; a figure is
    None if the completions do not determine it."""
    named, bad, good = scores_B > probe.threshold, scores_B[marked_B], scores_B[~marked_B]
    hits = int((named & marked_B).sum())
    return {"completions": len(scores_B), "marked": len(bad), "auroc": auroc(bad, good) if len(bad) and len(good) else None,
            "false_positive_rate": int((named & ~marked_B).sum()) / len(good) if len(good) else None,
            "recall": hits / len(bad) if len(bad) else None, "precision": hits / int(named.sum()) if named.any() else None}


def _held_out(features_ND: Tensor, marked_N: Tensor, seed: int) -> Tensor:
    """Return a score for each completion, (N,) float64, by a probe that was learned without the fold (a fifth of all completions)
    to which the completion belongs. Marked completions and others are dealt evenly to the folds."""
    generator, fold_N = torch.Generator().manual_seed(seed), torch.empty(len(marked_N), dtype=torch.long)
    for kind in (True, False):
        rows = (marked_N == kind).nonzero().squeeze(1)
        fold_N[rows[torch.randperm(len(rows), generator=generator)]] = torch.arange(len(rows)) % FOLDS
    scores_N = torch.empty(len(marked_N), dtype=torch.float64)
    for fold in fold_N.unique().tolist():
        away = fold_N == fold
        weight, offset = logistic(features_ND[~away], marked_N[~away])
        scores_N[away] = features_ND[away].double() @ weight + offset
    return scores_N


@torch.enable_grad()
def logistic(features_ND: Tensor, marked_N: Tensor) -> tuple[Tensor, Tensor]:
    """Fit a logistic regression of the marks on features, and return its weights (D,) and offset (), float64, which apply to
    features that are not standardised. The fit itself standardises the features, and adds half the squared norm of its weights to
    the summed loss."""
    x, y = features_ND.double(), marked_N.double()
    middle, deviation = x.mean(0), x.std(0).clamp(min=1e-6)
    x = (x - middle) / deviation
    weight, offset = (torch.zeros(size, dtype=torch.float64, requires_grad=True) for size in ((x.shape[1],), ()))
    search = torch.optim.LBFGS([weight, offset], max_iter=200, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        search.zero_grad()
        value = binary_cross_entropy_with_logits(x @ weight + offset, y, reduction="sum") + weight @ weight / 2
        value.backward()
        return value

    search.step(loss)
    with torch.no_grad():
        return weight / deviation, offset - middle / deviation @ weight
