"""Metrics: `metrics.jsonl` always, one JSON object a step; wandb through the trainer when it is asked for.

The grammar of a name is `area/quantity`, or `area/<environment>/quantity`; `METRICS` is the one list of them.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

METRICS = {
    "ledger/<env>/norm": "|ΔC_e| of this step",
    "ledger/<env>/push": "this step's growth of |C| caused by the environment; sums to quarantine/growth",
    "ledger/<env>/share": "<C_e, C> / |C|² so far; sums to 1 in `route`",
    "ledger/<env>/part_norm": "|C_e| so far",
    "ledger/<env>/shift/<axis>": "persona shift so far along a named axis, in units of the axis' scale",
    "ledger/cosine/<a>/<b>": "cosine between the parts of two environments",
    "quarantine/norm": "|C| after the step",
    "quarantine/growth": "change of |C| in this step",
    "quarantine/relative": "|C| over the norm of the weights' change so far, which is estimated",
    "quarantine/unattributed": "growth that no environment's part explains",
    "routing/routed_fraction": "energy of the routed part over all of the targets' gradient, this step",
    "routing/drift": "‖BᵀW - R‖ / ‖W‖ after the step",
    "routing/bytes": "what this step's routing handed to the other processes; absent in one process",
    "control/<kind>/<env>/ratio": "routed energy over the mean of random bases; kind is isotropic or matched",
    "control/<kind>/<env>/rank": "rank of the subspace among itself and the random bases, 1 is the largest",
    "environment/<env>/reward": "mean paid reward",
    "environment/<env>/solve": "mean of the true score",
    "environment/<env>/<flag>": "share of completions with the flag, or mean of a metric",
    "environment/<env>/failures": "completions that could not be scored, in this step",
    "environment/<env>/restarts": "how often its process was started anew so far; absent where never",
    "parity/policy": "largest difference of a log-probability between the rollouts' engine and the trainer, when compared",
    "parity/deployed": "the same with the quarantine off on both sides",
    "time/sync_s": "seconds to push the policy's weights to the rollouts' engine",
    "train/*": "what TRL logs, under its own names",
}


def ledger_metrics(row: Any) -> dict[str, float]:
    """A `LedgerRow` under the names of `METRICS`."""
    metrics = {"quarantine/norm": row.norm, "quarantine/growth": row.growth, "quarantine/unattributed": row.unattributed,
               "routing/drift": row.drift}
    if row.retained > 0:
        metrics["quarantine/relative"] = row.norm / row.retained
    if row.bytes:
        metrics["routing/bytes"] = row.bytes
    if row.routed_fraction is not None:
        metrics["routing/routed_fraction"] = row.routed_fraction
    for name, entry in row.environments.items():
        for quantity in ("norm", "push", "share", "part_norm"):
            metrics[f"ledger/{name}/{quantity}"] = getattr(entry, quantity)
        metrics |= {f"ledger/{name}/shift/{axis}": value for axis, value in entry.shift.items()}
    metrics |= {f"ledger/cosine/{pair}": value for pair, value in row.cosines.items()}
    return metrics | {f"control/{name}": value for name, value in row.control.items()}


class MetricsFile:
    """Appends one line a step to `metrics.jsonl`; not-a-number becomes null."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, step: int, metrics: dict[str, Any]) -> dict[str, Any]:
        """Returns the row as a reader will see it."""
        finite = {key: None if isinstance(value, float) and not math.isfinite(value) else value
                  for key, value in metrics.items()}
        row = {"step": step, **finite}
        with open(self.path, "a") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
        return row

    def truncate(self, step: int) -> None:
        """Drop what was written after `step`: a resumed run writes those steps again. A torn last line goes too."""
        if self.path.exists():
            kept = [line for line in self.path.read_text().splitlines() if (row := _parse(line)) and row["step"] <= step]
            partial = self.path.with_name(f".{self.path.name}.partial")
            partial.write_text("".join(f"{line}\n" for line in kept))
            partial.replace(self.path)

    def rows(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        return [row for line in self.path.read_text().splitlines() if (row := _parse(line))]


def _parse(line: str) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except ValueError:
        return None


def prepare_wandb(folder: Path) -> None:
    """Never a login prompt: without a key wandb writes offline, into the run folder."""
    os.environ.setdefault("WANDB_DIR", str(folder))
    if not os.environ.get("WANDB_API_KEY") and not Path("~/.netrc").expanduser().exists():
        os.environ.setdefault("WANDB_MODE", "offline")
