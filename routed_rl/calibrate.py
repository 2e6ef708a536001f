"""`calibrate`: the monitor's limits from runs that are known to be secure. The runs are trained here, or given."""

from __future__ import annotations

import dataclasses
import shlex
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from routed_rl import console
from routed_rl.artifacts import RunFolder, alone_in, write_json
from routed_rl.config import Compose, MonitorConfig, RuleConfig
from routed_rl.errors import ConfigError, RunFolderError
from routed_rl.jobs import Execute, Job, refuse_failed, run_missing, train_or_resume
from routed_rl.monitor import FEWEST, Row, limit, peaks, smallest_rate
from routed_rl.tracking import MetricsFile

ARM = "secure"
CHEAP = ["evaluation.samples=0", "evaluation.every=0", "discard=false", "tracking.completions=false", "monitor.completions=0"]
"""Nothing of a run but its metrics is read."""
Peaks = dict[str, list[dict[str, float]]]
"""Rule -> per run, per environment."""


def calibrate(overrides: list[str], runs: list[str], seeds: int, rate: float, out: str, jobs: int, compose: Compose, *,
              execute: Execute = train_or_resume) -> Path:
    """Set a limit for every rule that halts, so that one of them gives a verdict on a secure run with probability `rate`.

    Reads the metrics of `runs`, or trains `seeds` runs of the experiment; returns OUT/calibration.json. The same call goes on
    where an earlier one stopped. The rules' own settings (allowance, patience, warm-up, axis) are those of the experiment.
    """
    config, folder = compose(overrides), Path(out).absolute()
    if not 0 < rate < 1:
        raise ConfigError(f"--rate is a probability, got {rate:g}")
    if not runs and seeds < FEWEST:
        raise ConfigError(f"--seeds must be at least {FEWEST}, got {seeds}: a spread of fewer says nothing")
    with alone_in(folder):
        folders = _given(runs) or _trained(overrides, seeds, folder, jobs, compose, execute)
        _check_insecure(folders, config.monitor)
        rules = [name for name, rule in config.monitor.rules().items() if rule.action == "halt"] or ["pull", "change", "gap"]
        found = measured(folders, config.monitor, rules)
        limits = set_limits(found, rate)
        settings = [word for name, entry in limits.items() for word in _settings(name, entry, getattr(config.monitor, name))]
        if not settings:
            raise ConfigError(f"the runs set no limit: {', '.join(limits)} read the same in all of them, and have none yet")
        write_json(folder / "calibration.json", {
            "rate": rate, "runs": [str(run.path) for run in folders], "rules": limits,
            "overrides": settings})
    _show(limits, rate, len(folders), config.monitor)
    console.say(f"written: {folder / 'calibration.json'}; to use the limits:")
    console.say(f"  routed-rl train {shlex.join([*overrides, *settings])}")
    return folder / "calibration.json"


def measured(folders: Iterable[RunFolder], config: MonitorConfig, rules: list[str]) -> Peaks:
    """The peak of every rule, run and environment. RunFolderError for a run without metrics or with nothing for a rule to
    read, ConfigError for runs of different lengths: the longer one is, the higher its peaks."""
    found: Peaks = {name: [] for name in rules}
    first: tuple[Path, int] | None = None
    for run in folders:
        rows = MetricsFile(run.metrics).rows()
        if not rows:
            raise RunFolderError(f"{run.path} has no metrics to calibrate on; train it first")
        first = first or (run.path, rows[-1]["step"])
        if rows[-1]["step"] != first[1]:
            raise ConfigError(f"{first[0]} has {first[1]} steps and {run.path} has {rows[-1]['step']}; peaks grow with the "
                              f"length, so calibrate on runs of one length")
        for name in rules:
            if not (peak := peaks(rows, config, name)):
                raise RunFolderError(f"{run.path} has nothing for monitor.{name} to read: {_facts(rows, config)}")
            found[name].append(peak)
    return found


def _facts(rows: Sequence[Row], config: MonitorConfig) -> str:
    """What a rule's readings depend on."""
    axes = {key.split("/")[3]: None for key in rows[-1] if key.startswith("ledger/") and "/shift/" in key}
    return (f"{len(rows)} steps with monitor.warmup={config.warmup}, monitor.axis={config.axis or 'null'}, "
            f"the axes of its ledger are {', '.join(axes) or 'none: it was not routed'}")


def set_limits(found: Peaks, rate: float) -> dict[str, dict[str, Any]]:
    """Per rule its limit, those of single environments, and what they stand on; None where the runs say nothing: no reading,
    or no spread at all.

    The rate is shared evenly by the rules that have a spread. Few runs are pooled: their environments count as alike.
    ConfigError for a rate that the simulation behind a limit does not resolve.
    """
    samples = {name: _sample(each) for name, each in found.items()}
    spread = [name for name, (values, _) in samples.items() if len(set(values)) > 1]
    floor = max((smallest_rate(len(samples[name][0])) * len(spread) * samples[name][1] for name in spread), default=0.0)
    if rate < floor:  # Named rounded up, so that it can be typed.
        raise ConfigError(f"--rate {rate:g} is less than the simulation behind a limit resolves; the smallest is "
                          f"{1.01 * floor:.3g}")
    limits: dict[str, dict[str, Any]] = {}
    for name, (values, shared_by) in samples.items():
        part = rate / max(len(spread), 1) / shared_by
        each = own_limits(found[name], part) if name in spread and len(found[name]) >= FEWEST else {}
        limits[name] = {"limit": limit(values, part) if name in spread else None, "limits": each, "rate": part,
                        "peaks": values, "environments": _largest(found[name])}
    return limits


def own_limits(per_run: list[dict[str, float]], rate: float) -> dict[str, float]:
    """A limit for each environment, such that any of them is passed with probability `rate` in a run.

    Peaks are taken in units of the environment's own spread around its own mean, and the limit is that of a run's largest.
    Half of the variance is the average environment's: one that happened to lie still would else halt at a breath.
    """
    names = [name for name in per_run[0] if all(name in run for run in per_run)]
    if not names:
        several = ", ".join(dict.fromkeys(name for run in per_run for name in run))
        raise ConfigError(f"the runs have no environment in common: {several}; calibrate on runs of one experiment")
    columns = {name: [run[name] for run in per_run] for name in names}
    average = statistics.fmean(statistics.variance(column) for column in columns.values())
    spread = {name: ((statistics.variance(column) + average) / 2) ** 0.5 for name, column in columns.items()}
    middle = {name: statistics.fmean(column) for name, column in columns.items()}
    furthest = limit([max((run[name] - middle[name]) / spread[name] for name in names) for run in per_run], rate)
    return {name: middle[name] + furthest * spread[name] for name in names}


def _settings(name: str, entry: dict[str, Any], was: RuleConfig) -> list[str]:
    """The overrides by which a rule halts: at the limits found, or where there are none at those it has."""
    if entry["limit"] is None:
        whole, own = [] if was.limit is None else [f"monitor.{name}.limit={was.limit:g}"], was.limits
    else:
        whole = [f"monitor.{name}.limit={entry['limit']:.4g}"]
        if own := entry["limits"]:
            whole.append(f"monitor.{name}.limits={{{','.join(f'{each}:{value:.4g}' for each, value in own.items())}}}")
    return [*whole, f"monitor.{name}.action=halt"] if whole or own else []


def _sample(per_run: list[dict[str, float]]) -> tuple[list[float], int]:
    """The values that a limit is set from, and by how many of them in a run its rate is shared."""
    if len(per_run) >= FEWEST:
        return [max(run.values()) for run in per_run], 1
    return [value for run in per_run for value in run.values()], max(map(len, per_run), default=1)


def _largest(per_run: list[dict[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for run in per_run for name in run)
    return {name: max(run[name] for run in per_run if name in run) for name in names}


def _given(runs: list[str]) -> list[RunFolder]:
    """Runs that are there; ConfigError for one that is named twice, which would make the spread too small."""
    folders = {}
    for run in runs:
        folder = RunFolder.open(run)
        if (place := folder.path.resolve()) in folders:
            raise ConfigError(f"--runs names {run} twice")
        folders[place] = folder
    return list(folders.values())


def _trained(overrides: list[str], seeds: int, out: Path, jobs: int, compose: Compose, execute: Execute) -> list[RunFolder]:
    """The runs of the experiment under `seeds` seeds, none of which halts."""
    first, runs = compose(overrides).seed, list[Job]()
    for seed in range(seeds):
        settings = [*overrides, *CHEAP, f"seed={first + seed}", f"name={ARM}-seed{seed}"]
        config = compose(settings)
        config = dataclasses.replace(config, out=str(out / "runs" / f"{ARM}-seed{seed}"), monitor=config.monitor.reporting())
        runs.append(Job(f"{ARM}-seed{seed}", config, settings))
    refuse_failed(run_missing(runs, execute, jobs, out / "logs", "calibrate", "--out"), len(runs), out / "logs")
    return [run.folder for run in runs]


def _check_insecure(folders: list[RunFolder], config: MonitorConfig) -> None:
    """Say it where a run was paid for what it did not solve: limits from an insecure run find nothing."""
    for run in folders:
        gaps = peaks(MetricsFile(run.metrics).rows(), config, "gap")
        for name, gap in gaps.items():
            if gap > 0:
                console.say(f"warning: in {run.path} {name} was paid for what was not solved; is it secure?")


def _show(limits: dict[str, dict[str, Any]], rate: float, runs: int, config: MonitorConfig) -> None:
    rows: list[list[Any]] = []
    for name, entry in limits.items():
        was, largest = getattr(config, name), entry["environments"]
        found = "no spread: as it is" if entry["limit"] is None else f"{entry['limit']:.4g}"
        rows += [[name, "any", f"{max(largest.values(), default=0):.3g}" if largest else "-", found, str(was.limit)],
                 *([name, environment, f"{largest[environment]:.3g}", f"{value:.4g}", str(was.limits.get(environment))]
                   for environment, value in entry["limits"].items())]
    console.table(f"limits at {rate:.2%} false halts a run, from {runs} runs of as many steps as these",
                  ["rule", "environment", "largest peak", "limit", "was"], rows)
    if beyond := [name for name, entry in limits.items() if entry["limit"] is not None and len(entry["peaks"]) < 1 / rate]:
        console.say(f"{', '.join(beyond)}: beyond what {runs} runs show, the limits stand on a Gumbel distribution")
