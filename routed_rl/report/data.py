"""Reads the contents of a run folder, as far as they exist. Every file except the settings may be missing."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from routed_rl.artifacts import RunFolder, read_object
from routed_rl.config import MonitorConfig, from_mapping
from routed_rl.config.checks import is_drawn
from routed_rl.errors import ConfigError
from routed_rl.monitor import Blame, blame
from routed_rl.shapes import fits
from routed_rl.tracking import MODELS, NOT_METRICS, MetricsFile, cosine_matrix

VERDICT = {"rule", "environment", "step", "value", "limit", "since", "action", "sentence"}
HALT = {"step", "environment", "verdicts", "checkpoint_before", "commands"}
LINEAGE = {"parent", "step", "drop", "forget_parts", "overrides"}
"""Keys that a verdict, a halt and a lineage must have for the report to show them."""
KEPT = {"out": str, "shares": dict[str, float]}
RESULTS = dict[str, dict[str, float | None] | None]
FLAGS = dict[str, list[str]]
SUMMARY = {"models": dict[str, RESULTS], "attribution": dict[str, dict[str, Any]], "routing": dict[str, Any],
           "timing": dict[str, Any], "kept": dict[str, float], "flags": FLAGS}
MANIFEST = {"lineage": dict[str, Any] | None, "children": list[dict[str, str | int]], "versions": dict[str, str],
            "kept": list[dict[str, Any]], "environments": dict[str, str]}
HALT_SHAPE = {"step": int, "verdicts": list[dict[str, Any]], "commands": list[str], "environments": list[dict[str, Any]],
              "completions": list[dict[str, Any]]}
"""The types that the values in the files of a run folder must have."""


@dataclass(frozen=True)
class RunData:
    """The contents of a run's files: settings, manifest, overrides, the rows of metrics and verdicts, the record of a halt, the
    summary, and the steps of the checkpoints."""

    path: Path
    config: dict[str, Any]
    manifest: dict[str, Any]
    overrides: list[str]
    rows: list[dict[str, Any]]
    verdicts: list[dict[str, Any]]
    halted: dict[str, Any] | None
    halts: list[dict[str, Any]]
    """Earlier halts, after which the user resumed the run."""
    summary: dict[str, Any] | None
    models: dict[str, dict[str, dict[str, float]]]
    """Maps a model to {environment: {metric: mean}}, for the models whose evaluation is complete."""
    checkpoints: list[int]
    flags: dict[str, list[str]] | None = None
    """Maps each environment to the flags of its scores in the evaluations; None if that was not recorded."""

    def setting(self, section: str, key: str, default: Any = None) -> Any:
        return (self.config.get(section) or {}).get(key, default)

    @property
    def mode(self) -> str:
        return self.setting("routing", "mode", "none")

    @cached_property
    def blame(self) -> Blame:
        """The `Blame` that names the environments that pulled towards the positive persona, judged by all rows of metrics. It
        names none if the run measured no evidence."""
        try:
            monitor = from_mapping(self.config.get("monitor") or {}, MonitorConfig, "monitor.")
        except (ConfigError, TypeError):
            monitor = MonitorConfig()
        return blame(self.rows, monitor, self.named()[0] or None)

    @cached_property
    def table(self) -> pd.DataFrame:
        """A table of all metrics: a column for each, in the order in which they first appear, and a row for each step; nan if a
        row lacks a metric."""
        if not self.rows:
            return pd.DataFrame()
        found: Any = pd.DataFrame(self.rows).drop_duplicates("step", keep="last").set_index("step").sort_index()
        return found.apply(pd.to_numeric, errors="coerce").astype(float)

    @property
    def names(self) -> list[str]:
        """The names of all metrics that any row has."""
        return list(self.table.columns)

    @property
    def last_step(self) -> int:
        return int(self.table.index[-1]) if self.rows else 0

    @property
    def planned(self) -> int:
        return self.setting("trainer", "max_steps", 0)

    @property
    def lineage(self) -> dict[str, Any] | None:
        found = self.manifest.get("lineage") or {}
        return found if found.keys() >= LINEAGE else None

    def named(self) -> tuple[list[str], list[str]]:
        """The names of the environments in the settings: those that are trained on, and the probe environments."""
        return roles_of(self.config.get("env") or {})

    @cached_property
    def latest(self) -> tuple[dict[str, dict[str, dict[str, float]]], int | None]:
        """If the policy was evaluated at the end of the run: `models`, and None. Otherwise: the results of the last evaluation
        during training, and the step of that evaluation."""
        steps = [int(self.series(name).index[-1]) for name in self.names if name.startswith("evaluation/")]
        if "policy" in self.models or not steps:
            return self.models, None
        found, samples = {"base": self.models.get("base", {})}, float(self.setting("evaluation", "during_samples", 0))
        for name in self.names:
            area, *rest = name.split("/", 3)
            value = self.table[name].get(max(steps))
            if area == "evaluation" and value is not None and not np.isnan(value):
                model, env, metric = rest
                found.setdefault(model, {}).setdefault(env, {"completions": samples})[metric] = float(value)
        return {model: results for model, results in found.items() if results}, max(steps)

    def kept(self) -> dict[str, dict[str, float]]:
        """Maps the folder of a deployed model to {environment: share}, the shares of environments' parts that the model keeps."""
        return {each["out"]: each["shares"] for each in self.manifest.get("kept", [])
                if each.keys() >= KEPT.keys() and fits(each, KEPT)}

    def environments(self) -> list[str]:
        """The environments in the ledger; without a ledger, those that are trained on."""
        keys = [key.split("/") for key in self.names]
        for area, quantity in (("ledger", "push"), ("environment", "reward")):
            if found := [key[1] for key in keys if len(key) == 3 and key[0] == area and key[2] == quantity]:
                return list(dict.fromkeys(found))
        return []

    def axes(self) -> list[str]:
        """The named axes along which shifts are reported; the axis that the monitor judges comes first."""
        keys = [key.split("/") for key in self.names]
        found = list(dict.fromkeys(key[3] for key in keys if len(key) == 4 and key[0] == "ledger" and key[2] == "shift"))
        judged = self.setting("monitor", "axis")
        return sorted(found, key=lambda axis: axis != judged)

    def series(self, name: str) -> pd.Series:
        """The values of a metric by step, without the steps that lack it."""
        return pd.Series(self.table[name]).dropna() if name in self.names else pd.Series(dtype=float)

    def last(self, name: str) -> float | None:
        """The last number that a metric had; None if it never had one, or if the last row does not have the metric."""
        known = self.series(name)
        return float(known.iloc[-1]) if len(known) and name in self.rows[-1] else None

    def removed(self) -> list[str]:
        """Environments that are in earlier rows of the ledger but not in the last one, because a rollback removed their parts."""
        return [name for name in self.environments() if f"ledger/{name}/push" in self.names
                and f"ledger/{name}/push" not in self.rows[-1]]

    def cosines(self) -> tuple[list[str], list[list[float | None]]]:
        """The environments, and the matrix of the last cosines that were measured between their parts."""
        keys = [key for key in self.names if key.startswith("ledger/cosine/")]
        return cosine_matrix({key: self.last(key) for key in keys})

    def recent(self, name: str) -> float | None:
        """The mean of a metric over the last tenth of the steps that have it; None if no step has it."""
        known = self.series(name)
        return float(known.tail(max(1, len(known) // 10)).mean()) if len(known) else None

    def metrics(self) -> list[str]:
        """The metrics that the evaluations report: flags and further metrics first, then the true score (`solve`), then the paid
        `reward`."""
        found = dict.fromkeys(metric for results in self.models.values() for values in results.values() for metric in values)
        found |= dict.fromkeys(key.split("/", 3)[3] for key in self.names if key.startswith("evaluation/"))
        order = {"solve": 1, "reward": 2}
        return sorted((name for name in found if name not in NOT_METRICS), key=lambda name: order.get(name, 0))


def roles_of(settings: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The names of the environments in the settings `env`: those that are trained on, and the probe environments."""
    probes = [name for name, each in settings.items() if isinstance(each, dict) and each.get("probe")]
    return [name for name, each in settings.items() if name not in probes and each is not None and is_drawn(each)], probes


def thinned(lines: Any, points: int, *, mean: bool) -> Any:
    """A Series or DataFrame of at most `points` rows, made from `lines`. Each row is the mean of a stretch of neighbouring rows,
    or, with `mean` false, the last row of the stretch (for sums so far)."""
    if len(lines) <= points:
        return lines
    last = np.linspace(0, len(lines), points + 1).astype(int)[1:] - 1
    if not mean:
        return lines.iloc[last]
    return lines.groupby(np.searchsorted(last, np.arange(len(lines)))).mean().set_axis(lines.index[last])


def read_run(run: RunFolder) -> RunData:
    """Read a run folder. Files that are torn count as missing. RunFolderError for a folder without settings, which is no run."""
    summary, manifest = read_object(run.summary, SUMMARY), read_object(run.manifest, MANIFEST) or {}
    evaluated = {model: read_object(run.path / f"evaluation-{model}.json", {"results": RESULTS, "flags": FLAGS}) or {}
                 for model in MODELS}
    models = {model: found.get("results") for model, found in evaluated.items()}
    if not models["policy"] and summary:
        models = summary.get("models", {})
    models = models | {"kept": summary.get("models", {}).get("kept") if summary else None}
    overrides, halts = run.path / "overrides.txt", sorted((run.path / "halts").glob("step-*.json"))
    return RunData(
        path=run.path, config=run.settings(), manifest=manifest,
        overrides=run.typed(overrides.read_text(encoding="utf-8", errors="replace")) if overrides.exists() else [],
        rows=MetricsFile(run.metrics).rows(),
        verdicts=[row for row in MetricsFile(run.verdicts).rows() if row.keys() >= VERDICT], halted=_halt(run.halted),
        halts=sorted((found for path in halts if (found := _halt(path))), key=lambda halt: halt["step"]), summary=summary,
        models={model: found for model in (*MODELS, "kept") if (found := _means(models.get(model)))}, checkpoints=run.steps(),
        flags=evaluated["policy"].get("flags") or (summary or {}).get("flags"))


def _halt(path: Path) -> dict[str, Any] | None:
    """The record of a halt; None if it lacks something that the report needs."""
    found = read_object(path, HALT_SHAPE) or {}
    verdicts = found.get("verdicts")
    whole = verdicts and all(verdict.keys() >= VERDICT for verdict in verdicts)
    return found if whole and found.keys() >= HALT else None


def _means(results: dict[str, dict[str, Any]] | None) -> dict[str, dict[str, float]]:
    """Return {environment: {metric: mean}} without the means that are null, and without environments that have no other means."""
    found = {env: {metric: float(value) for metric, value in (means or {}).items() if value is not None}
             for env, means in (results or {}).items()}
    return {env: means for env, means in found.items() if means}
