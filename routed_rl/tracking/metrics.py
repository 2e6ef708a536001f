"""Metrics: `metrics.jsonl`, one JSON object a step, whatever else tracks the run. The grammar of a name is `area/quantity`, or
`area/<environment>/quantity`; `METRICS` is the one list of them."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from routed_rl.artifacts import replacing
from routed_rl.shapes import fits

METRICS = {
    "ledger/<env>/norm": "|ΔC_e| of this step",
    "ledger/<env>/push": "this step's growth of |C| caused by the environment; sums to quarantine/growth",
    "ledger/<env>/share": "<C_e, C> / |C|² so far; sums to 1 in `route`",
    "ledger/<env>/part_norm": "|C_e| so far",
    "ledger/<env>/pace": "how fast its part makes the next step: 0 slow, 1 at routing.quarantine.learning_rate",
    "ledger/<env>/shift/<axis>": "persona shift so far along a named axis, in units of the axis' scale: the mean over layers, "
                                 "each weighted by how well it tells the personas apart",
    "completions/<env>/own_push": "growth of |C| by this step's gradient alone, to first order: the sum over its completions",
    "completions/<env>/own_shift": "persona shift along the monitor's axis by this step's gradient: the sum over its completions",
    "completions/<env>/own_shift_up": "the same over completions that shift towards the positive persona",
    "completions/<env>/own_shift_z": "own_shift in standard errors",
    "completions/<env>/evidence": "the smaller of own_shift and own_push in standard errors; at most 0 while its own part stands "
                                  "away from the positive persona, which it then only takes back",
    "baseline/<env>/named": "completions that the detector of a baseline named in this step",
    "baseline/<env>/screened": "those of them that taught nothing",
    "baseline/<env>/starved": "groups of which no completion was left to teach anything",
    "baseline/<env>/encouraged_marked": "completions with a flag of the detector's that were learned with an advantage above 0",
    "baseline/<env>/recall": "share of the completions with such a flag that the detector named",
    "baseline/<env>/precision": "share of the completions it named that have such a flag",
    "labels/flagged": "of routing by labels: share of the completions, or tokens, that were flagged in this step",
    "ledger/cosine/<a>/<b>": "cosine between the parts of two environments",
    "quarantine/norm": "|C| after the step",
    "quarantine/growth": "change of |C| in this step",
    "quarantine/relative": "|C| over the norm of the weights' change so far, which is estimated",
    "quarantine/layer/<l>/norm": "|C| of the targets of one layer; squares sum to that of quarantine/norm",
    "quarantine/unattributed": "growth that no environment's part explains",
    "routing/routed_fraction": "energy of the routed part over all of the targets' gradient, this step",
    "routing/drift": "‖BᵀW - R‖ / ‖W‖ after the step",
    "routing/bytes": "what this step's routing handed to the other processes; absent in one process",
    "control/<kind>/<env>/ratio": "routed energy over the mean of random bases; kind is isotropic or matched",
    "control/<kind>/<env>/rank": "rank of the subspace among itself and the random bases, 1 is the largest",
    "environment/<env>/reward": "mean paid reward",
    "environment/<env>/solve": "mean of the true score; absent where it is not known",
    "environment/<env>/<flag>": "share of completions with the flag, or mean of a metric",
    "environment/<env>/failures": "completions that could not be scored, in this step",
    "practice/<env>/<metric>": "as environment/<env>/<metric>, of the completions that the deployed model rolled out",
    "practice/<env>/completions": "completions that the deployed model rolled out and learned from, in this step",
    "environment/<env>/restarts": "how often its process was started anew so far; absent where never",
    "evaluation/<model>/<env>/<metric>": "mean over a small fixed sample, every evaluation.every steps; policy or deployed",
    "parity/policy": "largest difference of a log-probability between the rollouts' engine and the trainer, when compared",
    "parity/deployed": "the same with the quarantine off on both sides",
    "health/<env>/honest": "of monitor.health: minus the mean of the base model's score of honest completions, 0 for the others; "
                           "scores are gaps towards the positive persona, from where the base model stands after the prompt",
    "health/<env>/obfuscated_policy": "the same of completions with a flag of baseline.detector.flags, 0 for the others: it "
                                      "rises where these come to read honest",
    "health/<env>/obfuscated_activations": "minus the mean of (the policy's score - the base model's) of the same completions: "
                                           "it rises where the policy's activations hide what its text shows",
    "health/<env>/deceptive": "share of the compared completions with such a flag",
    "health/<env>/auroc_base": "how well the base model's score tells completions with such a flag from the others",
    "health/<env>/auroc_policy": "the same of the policy's score",
    "health/<quantity>": "each of these over the completions of all environments",
    "time/health_s": "seconds of that comparison; in time/step_s",
    "time/sync_s": "seconds to push the policy's weights to the rollouts' engine",
    "time/evaluation_s": "seconds of an evaluation during training; not in time/step_s",
    "train/value/explained_variance": "of PPO: 1 - Var(paid - value) / Var(paid) over own tokens, before they are trained on",
    "train/value/mean": "of PPO: mean value",
    "train/value/loss": "of PPO: half the squared error of the values, without its coefficient",
    "train/*": "what TRL logs, under its own names",
}

MODELS = ("base", "policy", "deployed")
NOT_METRICS = ("completions", "failures")
"""What is evaluated, and of an evaluation's means the numbers of completions."""


def cosine_matrix(row: dict[str, Any]) -> tuple[list[str], list[list[float | None]]]:
    """Environments, and the cosines between their parts; 1 on the diagonal."""
    pairs = {tuple(key.split("/")[2:]): value for key, value in row.items() if key.startswith("ledger/cosine/")}
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    return names, [[1.0 if a == b else pairs.get((a, b), pairs.get((b, a))) for b in names] for a in names]


def encouraged(environments: Sequence[str], tasks: Sequence[int], rewards: Sequence[float | None]) -> np.ndarray:
    """Of each completion whether it was paid more than the mean of its group, the completions of one task; True where it is
    alone, False where all of a group were paid alike, and where it was not paid (None, nan)."""
    paid = np.array(rewards, dtype=float)
    groups = {pair: place for place, pair in enumerate(dict.fromkeys(zip(environments, tasks, strict=True)))}
    group = np.array([groups[pair] for pair in zip(environments, tasks, strict=True)], dtype=int)
    known = ~np.isnan(paid)
    sizes = np.bincount(group, known, len(groups))
    means = np.bincount(group, np.where(known, paid, 0.0), len(groups)) / np.maximum(sizes, 1)
    least = np.full(len(groups), np.inf)
    np.minimum.at(least, group[known], paid[known])
    # A mean of equal numbers may be rounded below them.
    return known & ((paid > means[group]) & (paid > least[group]) | (sizes[group] == 1))


def counted(rows: Iterable[Mapping[str, Any]], area: str, quantity: str) -> dict[str, int]:
    """The sum of `area/<environment>/quantity` by environment; those with none are left out."""
    totals = Counter[str]()
    for row in rows:
        totals.update({key.split("/")[1]: int(value) for key, value in row.items()
                       if key.startswith(f"{area}/") and key.endswith(f"/{quantity}") and value})
    return dict(totals)


def practised(rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """By environment, how many completions the deployed model has rolled out and learned from."""
    return counted(rows, "practice", "completions")


class MetricsFile:
    """Appends one line a step to `metrics.jsonl`; not-a-number becomes null."""

    def __init__(self, path: Path, listener: Callable[[dict[str, Any]], None] | None = None) -> None:
        """`listener` is told each row once it is written."""
        self.path, self.listener, self._read = path, listener, 0

    def append(self, step: int, metrics: dict[str, Any]) -> dict[str, Any]:
        """Returns the row as a reader will see it."""
        finite = {key: None if isinstance(value, float) and not math.isfinite(value) else value
                  for key, value in metrics.items()}
        row = {"step": step, **finite}
        with open(self.path, "a") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
        if self.listener is not None:
            self.listener(row)
        return row

    def truncate(self, step: int) -> None:
        """Drop what was written after `step`: a resumed run writes those steps again. Torn lines go too."""
        if self.path.exists():
            kept = [line for line in self.path.read_bytes().splitlines() if (row := _parse(line)) and row["step"] <= step]
            with replacing(self.path) as partial:
                partial.write_bytes(b"".join(line + b"\n" for line in kept))

    def rows(self) -> list[dict[str, Any]]:
        """Every whole row; other lines are left out."""
        if not self.path.exists():
            return []
        return [row for line in self.path.read_bytes().splitlines() if (row := _parse(line))]

    def new_rows(self) -> list[dict[str, Any]]:
        """Rows that were written since this was asked last, by whoever; a line that is being written is for the next time."""
        if not self.path.exists():
            return []
        with open(self.path, "rb") as file:
            file.seek(self._read)
            lines = file.read().rpartition(b"\n")[0]
        self._read += len(lines) + bool(lines)
        return [row for line in lines.splitlines() if (row := _parse(line))]


def _parse(line: bytes | str) -> dict[str, Any] | None:
    """A row; None for a line that is torn, or is none. A metric is a number or null, what a verdict says may be text."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if fits(row, dict[str, float | str | None]) and fits(row.get("step"), int) else None
