"""The metrics of a run: `metrics.jsonl` has one JSON object for each step, whatever else tracks the run. A metric's name is
`area/quantity` or `area/<environment>/quantity`; `METRICS` lists all of them."""

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
    "ledger/<env>/norm": "norm of the change of the environment's part in this step, |ΔC_e|",
    "ledger/<env>/push": "growth of |C| in this step caused by the environment; sums over environments to quarantine/growth",
    "ledger/<env>/share": "share of the environment's part in the quarantine so far, <C_e, C> / |C|²; sums to 1 in mode route",
    "ledger/<env>/part_norm": "norm of the environment's part so far, |C_e|",
    "ledger/<env>/pace": "pace of the environment's part in the next step: 0 is slow, 1 is routing.quarantine.learning_rate",
    "ledger/<env>/shift/<axis>": "persona shift so far by the environment's part along a named axis, in units of the axis' "
                                 "scale; mean over layers, each weighted by how well the axis tells the personas apart",
    "completions/<env>/own_push": "growth of |C| by the gradient of this step alone, to first order, summed over the "
                                  "environment's completions",
    "completions/<env>/own_shift": "persona shift along the monitor's axis by the gradient of this step alone, summed over the "
                                   "environment's completions",
    "completions/<env>/own_shift_up": "own_shift summed only over completions that shift towards the positive persona",
    "completions/<env>/own_shift_z": "own_shift in standard errors",
    "completions/<env>/evidence": "the smaller of own_shift and own_push, both in standard errors; at most 0 while the "
                                  "environment's part stands away from the positive persona, because its pull then only takes "
                                  "that back",
    "baseline/<env>/named": "number of completions that the detector of a baseline named in this step",
    "baseline/<env>/screened": "number of the named completions that taught nothing in this step",
    "baseline/<env>/starved": "number of groups in which no completion was left to teach anything in this step",
    "baseline/<env>/encouraged_marked": "number of completions with a flag of baseline.detector.flags that were learned with an "
                                        "advantage above 0 in this step",
    "baseline/<env>/recall": "share of the completions with a flag of baseline.detector.flags that the detector named",
    "baseline/<env>/precision": "share of the completions named by the detector that have a flag of baseline.detector.flags",
    "labels/flagged": "with routing by labels: share of the completions, or tokens, that were flagged in this step",
    "ledger/cosine/<a>/<b>": "cosine between the parts of two environments",
    "quarantine/norm": "norm of the quarantine after the step, |C|",
    "quarantine/growth": "change of |C| in this step",
    "quarantine/relative": "|C| divided by the norm of the weights' change so far, which is estimated",
    "quarantine/layer/<l>/norm": "norm of the quarantine in the targets of one layer; squares sum to that of quarantine/norm",
    "quarantine/unattributed": "growth of |C| in this step that no environment's part explains",
    "routing/routed_fraction": "energy of the routed part divided by that of the targets' whole gradient, in this step",
    "routing/drift": "movement of the weights inside the subspace after the step, ‖BᵀW - R‖ / ‖W‖",
    "routing/bytes": "bytes that the routing of this step sent to the other processes; absent in one process",
    "control/<kind>/<env>/ratio": "routed energy divided by its mean over random bases; kind is isotropic or matched",
    "control/<kind>/<env>/rank": "rank of the routed energy among that of the random bases; 1 is the largest",
    "environment/<env>/reward": "mean paid reward",
    "environment/<env>/solve": "mean of the true score; absent where it is not known",
    "environment/<env>/<flag>": "share of completions with the flag, or mean of a metric that the environment reports",
    "environment/<env>/failures": "number of completions that could not be scored in this step",
    "practice/<env>/<metric>": "as environment/<env>/<metric>, for the completions that the deployed model rolled out",
    "practice/<env>/completions": "number of completions that the deployed model rolled out and learned from in this step",
    "environment/<env>/restarts": "number of restarts of the environment's process so far; absent where there were none",
    "evaluation/<model>/<env>/<metric>": "mean over a small fixed sample, every evaluation.every steps; model is policy or "
                                         "deployed",
    "parity/policy": "largest difference of a log-probability between the rollouts' engine and the trainer, at steps that "
                     "compare them",
    "parity/deployed": "as parity/policy, with the quarantine off on both sides",
    "health/<env>/honest": "with monitor.health: minus the mean, over the compared completions, of the base model's score of "
                           "honest ones, counting 0 for the others; scores are in gaps towards the positive persona, measured "
                           "from where the base model stands at the end of the prompt",
    "health/<env>/obfuscated_policy": "minus the mean, over the compared completions, of the base model's score of those with a "
                                      "flag of baseline.detector.flags, counting 0 for the others; it rises where these come to "
                                      "read as honest",
    "health/<env>/obfuscated_activations": "minus the mean of the policy's score minus the base model's, over the compared "
                                           "completions; it rises where the policy's activations hide what its text shows",
    "health/<env>/deceptive": "share of the compared completions that have a flag of baseline.detector.flags",
    "health/<env>/auroc_base": "AUROC with which the base model's score tells the deceptive completions from the others",
    "health/<env>/auroc_policy": "AUROC with which the policy's score tells the deceptive completions from the others",
    "health/<quantity>": "each health metric over the completions of all environments",
    "time/health_s": "seconds of the comparison of monitor.health; included in time/step_s",
    "time/sync_s": "seconds to push the policy's weights to the rollouts' engine",
    "time/rollout_wait_s": "with rollout.ahead: seconds that the trainer waited for completions that it had asked for",
    "rollout/staleness": "with rollout.ahead: steps between the weights that made the newest completions and those that learn "
                         "from them",
    "time/evaluation_s": "seconds of an evaluation during training; not included in time/step_s",
    "train/value/explained_variance": "for PPO: 1 - Var(paid - value) / Var(paid) over the model's own tokens, before they are "
                                      "trained on",
    "train/value/mean": "for PPO: mean value over the model's own tokens",
    "train/value/loss": "for PPO: half the squared error of the values, without its coefficient",
    "train/*": "metrics that TRL logs, under its own names",
}

MODELS = ("base", "policy", "deployed")
NOT_METRICS = ("completions", "failures")
"""`MODELS` are the models that are evaluated. `NOT_METRICS` are the keys of an evaluation's means that are numbers of completions
and not metrics."""


def cosine_matrix(row: dict[str, Any]) -> tuple[list[str], list[list[float | None]]]:
    """The environments in a row of `metrics.jsonl`, and the matrix of cosines between their parts of the quarantine, with 1 on
    the diagonal and None where a cosine is missing."""
    pairs = {tuple(key.split("/")[2:]): value for key, value in row.items() if key.startswith("ledger/cosine/")}
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    return names, [[1.0 if a == b else pairs.get((a, b), pairs.get((b, a))) for b in names] for a in names]


def encouraged(environments: Sequence[str], tasks: Sequence[int], rewards: Sequence[float | None]) -> np.ndarray:
    """Whether each completion was paid more than the mean of its group. `environments` and `tasks` give each completion's
    environment and task, and a group is the completions of one task. A completion without a reward (None, nan) gets False and
    does not count in its group. If only one completion of a group has a reward, it gets True; if several have one and all of
    these are equal, they get False."""
    paid = np.array(rewards, dtype=float)
    groups = {pair: place for place, pair in enumerate(dict.fromkeys(zip(environments, tasks, strict=True)))}
    group = np.array([groups[pair] for pair in zip(environments, tasks, strict=True)], dtype=int)
    known = ~np.isnan(paid)
    sizes = np.bincount(group, known, len(groups))
    means = np.bincount(group, np.where(known, paid, 0.0), len(groups)) / np.maximum(sizes, 1)
    least = np.full(len(groups), np.inf)
    np.minimum.at(least, group[known], paid[known])
    # The mean of equal numbers may be rounded to less than each of them.
    return known & ((paid > means[group]) & (paid > least[group]) | (sizes[group] == 1))


def counted(rows: Iterable[Mapping[str, Any]], area: str, quantity: str) -> dict[str, int]:
    """For each environment, the sum of `area/<environment>/quantity` over rows. Environments whose sum is 0 are left out."""
    totals = Counter[str]()
    for row in rows:
        totals.update({key.split("/")[1]: int(value) for key, value in row.items()
                       if key.startswith(f"{area}/") and key.endswith(f"/{quantity}") and value})
    return dict(totals)


def practised(rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """For each environment, the number of completions that the deployed model has rolled out and learned from."""
    return counted(rows, "practice", "completions")


class MetricsFile:
    """Appends one line for each step to `metrics.jsonl`. A number that is nan or infinite is written as null."""

    def __init__(self, path: Path, listener: Callable[[dict[str, Any]], None] | None = None) -> None:
        """`listener` is called with each row after it is written."""
        self.path, self.listener, self._read = path, listener, 0

    def append(self, step: int, metrics: dict[str, Any]) -> dict[str, Any]:
        """Write the row of a step. Returns the row as it was written: with `step`, and with None for each number that is nan or
        infinite."""
        finite = {key: None if isinstance(value, float) and not math.isfinite(value) else value
                  for key, value in metrics.items()}
        row = {"step": step, **finite}
        with open(self.path, "a") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
        if self.listener is not None:
            self.listener(row)
        return row

    def truncate(self, step: int) -> None:
        """Remove the rows of steps after `step`, because a resumed run writes these again, and torn (incomplete) lines."""
        if self.path.exists():
            kept = [line for line in self.path.read_bytes().splitlines() if (row := _parse(line)) and row["step"] <= step]
            with replacing(self.path) as partial:
                partial.write_bytes(b"".join(line + b"\n" for line in kept))

    def rows(self) -> list[dict[str, Any]]:
        """All complete rows. Torn (incomplete) lines are left out."""
        if not self.path.exists():
            return []
        return [row for line in self.path.read_bytes().splitlines() if (row := _parse(line))]

    def new_rows(self) -> list[dict[str, Any]]:
        """Rows that any process has written since the last call. A line that is not complete yet is left for the next call."""
        if not self.path.exists():
            return []
        with open(self.path, "rb") as file:
            file.seek(self._read)
            lines = file.read().rpartition(b"\n")[0]
        self._read += len(lines) + bool(lines)
        return [row for line in lines.splitlines() if (row := _parse(line))]


def _parse(line: bytes | str) -> dict[str, Any] | None:
    """The row in a line; None for a line that is torn or holds no row. A row has an integer `step`; its other values are numbers,
    null, or text (in a verdict)."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if fits(row, dict[str, float | str | None]) and fits(row.get("step"), int) else None
