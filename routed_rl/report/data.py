"""What a run folder holds, as far as it is there: every file but the settings may be missing."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from routed_rl.artifacts import RunFolder, read_json
from routed_rl.tracking import MetricsFile, cosine_matrix

MODELS = ("base", "policy", "deployed")
NOT_METRICS = ("completions", "failures")


@dataclass(frozen=True)
class Series:
    """A quantity by step; steps that lack it are left out."""

    steps: np.ndarray
    values: np.ndarray

    def thinned(self, points: int, *, mean: bool) -> Series:
        """At most `points` of them: the mean of each stretch of neighbours, or its last (for what has added up so far)."""
        if len(self.steps) <= points:
            return self
        bounds = np.linspace(0, len(self.steps), points + 1).astype(int)
        last = bounds[1:] - 1
        values = np.add.reduceat(self.values, bounds[:-1]) / np.diff(bounds) if mean else self.values[last]
        return Series(self.steps[last], values)

    def at(self, step: int) -> float | None:
        """The value at `step`, or the last one before it."""
        place = int(np.searchsorted(self.steps, step, side="right")) - 1
        return None if place < 0 else float(self.values[place])

    def mean(self) -> float | None:
        return float(self.values.mean()) if len(self.values) else None

    def summed(self) -> Series:
        return Series(self.steps, np.cumsum(self.values))


@dataclass(frozen=True)
class RunData:
    """The files of a run, read."""

    path: Path
    config: dict[str, Any]
    manifest: dict[str, Any]
    overrides: list[str]
    rows: list[dict[str, Any]]
    verdicts: list[dict[str, Any]]
    halted: dict[str, Any] | None
    halts: list[dict[str, Any]]
    """Earlier ones, after which the run was told to go on."""
    summary: dict[str, Any] | None
    models: dict[str, dict[str, dict[str, float]]]
    """model -> environment -> metric -> mean, of those that were evaluated whole."""
    checkpoints: list[int]

    @property
    def mode(self) -> str:
        return self.config.get("routing", {}).get("mode", "none")

    @property
    def last_step(self) -> int:
        return self.rows[-1]["step"] if self.rows else 0

    @property
    def planned(self) -> int:
        return self.config.get("trainer", {}).get("max_steps", 0)

    @property
    def lineage(self) -> dict[str, Any] | None:
        return self.manifest.get("lineage")

    @cached_property
    def names(self) -> list[str]:
        """Metrics of any row, in the order in which they first appear."""
        return list(dict.fromkeys(key for row in self.rows for key in row))

    def environments(self) -> list[str]:
        """Those that the ledger attributes to; without a ledger, those that were trained."""
        keys = [key.split("/") for key in self.names]
        for area, quantity in (("ledger", "push"), ("environment", "reward")):
            if found := [key[1] for key in keys if len(key) == 3 and key[0] == area and key[2] == quantity]:
                return list(dict.fromkeys(found))
        return []

    def axes(self) -> list[str]:
        """Named axes of the shift; the one that the monitor judges is first."""
        keys = [key.split("/") for key in self.names]
        found = list(dict.fromkeys(key[3] for key in keys if len(key) == 4 and key[0] == "ledger" and key[2] == "shift"))
        judged = self.config.get("monitor", {}).get("axis")
        return sorted(found, key=lambda axis: axis != judged)

    def series(self, name: str) -> Series:
        """A metric by step."""
        known = [(row["step"], row[name]) for row in self.rows if row.get(name) is not None]
        return Series(np.array([step for step, _ in known], dtype=int), np.array([value for _, value in known], dtype=float))

    def last(self, name: str) -> float | None:
        """A metric at the last step."""
        return self.series(name).at(self.last_step)

    def cosines(self) -> tuple[list[str], list[list[float | None]]]:
        """Environments, and the last cosines between their parts."""
        keys = [key for key in self.names if key.startswith("ledger/cosine/")]
        return cosine_matrix({key: self.last(key) for key in keys})

    def recent(self, name: str) -> float | None:
        """Mean over the last tenth of the steps."""
        values = self.series(name).values
        return None if len(values) == 0 else float(values[-max(1, len(values) // 10):].mean())

    def metrics(self) -> list[str]:
        """What environments are evaluated by: flags first, then the true score, then what is paid."""
        found = dict.fromkeys(metric for results in self.models.values() for values in results.values() for metric in values)
        found |= dict.fromkeys(key.split("/", 3)[3] for key in self.names if key.startswith("evaluation/"))
        order = {"solve": 1, "reward": 2}
        return sorted((name for name in found if name not in NOT_METRICS), key=lambda name: order.get(name, 0))


def read_run(run: RunFolder) -> RunData:
    """Read a run folder; what is torn or missing counts as not there."""
    summary = _json(run.summary)
    models = {model: (_json(run.path / f"evaluation-{model}.json") or {}).get("results") for model in MODELS}
    if not models["policy"] and summary:
        models = summary.get("models", {})
    overrides = run.path / "overrides.txt"
    return RunData(
        path=run.path, config=yaml.safe_load(run.config.read_text()), manifest=_json(run.manifest) or {},
        overrides=overrides.read_text().splitlines() if overrides.exists() else [], rows=MetricsFile(run.metrics).rows(),
        verdicts=MetricsFile(run.verdicts).rows(), halted=_json(run.halted),
        halts=[found for path in sorted((run.path / "halts").glob("step-*.json")) if (found := _json(path))],
        summary=summary, models={model: results for model, results in models.items() if results and any(results.values())},
        checkpoints=run.steps())


def _json(path: Path) -> Any:
    try:
        return read_json(path) if path.exists() else None
    except json.JSONDecodeError:
        return None
