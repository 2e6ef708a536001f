"""The verb `calibrate` sets the monitor's limits from runs that are known to be secure. The runs are trained here, or are
given."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from routed_rl import console
from routed_rl.artifacts import RunFolder, alone_in, write_json
from routed_rl.config import Compose, Config, MonitorConfig, RuleConfig
from routed_rl.errors import ConfigError, RunFolderError, command
from routed_rl.monitor import FEWEST, Peaks, check_rate, peaks, set_limits, smallest_rate, unfed
from routed_rl.multirun import reporter
from routed_rl.multirun.job import folder_for_many, seeded, train_or_resume
from routed_rl.multirun.workers import Execute, refuse_failed, run_missing
from routed_rl.tracking import MetricsFile

CHEAP = ["evaluation.samples=0", "evaluation.every=0", "discard=false", "tracking.completions=false", "monitor.completions=0"]
"""Overrides of the runs that `calibrate` trains. They save time by leaving out evaluation, discard and stored completions. A
setting that the user types counts instead."""
WITHOUT_HALTS = ("pull", "change", "gap")
"""The rules that get a limit if no rule of the experiment halts."""


def calibrate(overrides: list[str], runs: list[str], seeds: int, rate: float, out: str, jobs: int, compose: Compose, *,
              typed: Sequence[str] = (), execute: Execute = train_or_resume) -> Path:
    """Set a limit for every rule that halts, so that all of them together halt a secure run with probability `rate`.

    The metrics come from the run folders `runs`, or, if there are none, from `seeds` runs of the experiment that are trained
    here, `jobs` at a time. Returns OUT/calibration.json. The same call continues where an earlier one stopped. The other settings
    of the rules (allowance, patience, warm-up, axis) are those of the experiment. `typed`: those of the `overrides` that the user
    typed, and that do not come from a file; `CHEAP` replaces none of them.
    """
    config, folder = compose(overrides), folder_for_many(out, "--out ")
    rules = config.monitor.halting() or list(WITHOUT_HALTS)
    if not 0 < rate < 1:
        raise ConfigError(f"--rate is a probability, got {rate:g}")
    if not runs:
        check_experiment(config, rules, seeds, rate)
    if not config.monitor.halting():
        console.say(f"no rule of this experiment halts, so {', '.join(WITHOUT_HALTS)} get limits; monitor=halt or "
                    "monitor.RULE.action=halt chooses others")
    folders = _given(runs)
    with alone_in(folder):
        if not runs:
            known = {text.partition("=")[0].lstrip("+") for text in typed}
            cheap = [text for text in CHEAP if text.partition("=")[0] not in known]
            planned = [seeded("secure", seed, [*overrides, *cheap], config.seed, folder, compose) for seed in range(seeds)]
            failed = run_missing(planned, execute, jobs, folder / "logs", "calibrate")
            refuse_failed(failed, seeds, folder / "logs")
            folders = [run.folder for run in planned]
        found = measured(folders, config.monitor, rules)
        limits = set_limits(found, rate)
        settings = [word for name, entry in limits.items() for word in _settings(name, entry, getattr(config.monitor, name))]
        if not settings:
            raise ConfigError(f"no limit can be set: {', '.join(limits)} read the same in all of these runs, and the experiment "
                              "sets none; calibrate on more or longer runs")
        write_json(folder / "calibration.json", {"rate": rate, "runs": [str(run.path) for run in folders], "rules": limits,
                                                 "overrides": settings})
    beyond = ", ".join(name for name, entry in limits.items() if entry["limit"] is not None and len(entry["peaks"]) < 1 / rate)
    rare = f"{len(folders)} runs are too few to show so rare a value, so a fitted Gumbel distribution gives the limits"
    notes = [f"{beyond}: {rare}"] if beyond else []
    title = f"limits that {rate:.2%} of secure runs exceed, from {len(folders)} runs, for runs of the same length"
    reporter.show([_table(title, limits, config.monitor)], notes, folder, ["calibration.json"])
    console.say("next, to use the limits:")
    console.say(f"  {command('train', *overrides, *settings)}")
    return folder / "calibration.json"


def check_experiment(config: Config, rules: list[str], seeds: int, rate: float) -> None:
    """Raise ConfigError, before anything is trained, for an experiment from which no limit of `rules` could be calibrated with
    `seeds` runs at the rate `rate` of false halts."""
    steps = config.trainer.get("max_steps") or 0
    if seeds < FEWEST:
        raise ConfigError(f"--seeds must be at least {FEWEST}, got {seeds}: fewer runs do not show how much the readings vary")
    check_rate(rate, smallest_rate(seeds) * len(rules))
    for name in rules:
        if why := unfed(name, config.monitor, config.routing, steps):
            raise ConfigError(f"monitor.{name} has nothing to read {why}")


def measured(folders: Iterable[RunFolder], config: MonitorConfig, rules: list[str]) -> Peaks:
    """The peak of every rule in every run and environment: the highest limit at which the rule would still have given a verdict.
    RunFolderError for a run without metrics, or with metrics in which a rule finds nothing to read. ConfigError for runs of
    different lengths, because peaks grow with the length. A warning is printed if an environment paid for tasks that were not
    solved, because limits from an insecure run would hide insecure runs."""
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
        for name, gap in peaks(rows, config, "gap").items():
            if gap > 0:
                console.say(f"warning: in {run.path} {name} paid for tasks that were not solved; is it secure?")
        for name in rules:
            if not (peak := peaks(rows, config, name)):
                axes = {key.split("/")[3]: None for key in rows[-1] if key.startswith("ledger/") and "/shift/" in key}
                raise RunFolderError(f"{run.path} has nothing for monitor.{name} to read: {len(rows)} steps with monitor.warmup="
                                     f"{config.warmup}, monitor.axis={config.axis or 'null'}, the axes of its ledger are "
                                     f"{', '.join(axes) or 'none: it was not routed'}")
            found[name].append(peak)
    return found


def _settings(name: str, entry: dict[str, Any], was: RuleConfig) -> list[str]:
    """The overrides that make the rule `name` halt: at the limits in `entry`, or, if calibration found none, at the limits that
    the rule has in `was`. Empty if there are none in either."""
    if entry["limit"] is None:
        whole, own = [] if was.limit is None else [f"monitor.{name}.limit={was.limit:g}"], was.limits
    else:
        whole = [f"monitor.{name}.limit={entry['limit']:.4g}"]
        if own := entry["limits"]:
            whole.append(f"monitor.{name}.limits={{{','.join(f'{each}:{value:.4g}' for each, value in own.items())}}}")
    return [*whole, f"monitor.{name}.action=halt"] if whole or own else []


def _given(runs: list[str]) -> list[RunFolder]:
    """The run folders that a user names. ConfigError for a run that is named twice, because it would make the spread too
    small."""
    folders = [RunFolder.open(run) for run in runs]
    places = [folder.path.resolve() for folder in folders]
    if twice := [run for run, place in zip(runs, places, strict=True) if places.count(place) > 1]:
        raise ConfigError(f"--runs names {twice[-1]} twice")
    return folders


def _table(title: str, limits: dict[str, dict[str, Any]], config: MonitorConfig) -> reporter.Table:
    rows: list[list[str]] = []
    for name, entry in limits.items():
        was, largest = getattr(config, name), entry["environments"]
        found = "no spread: unchanged" if entry["limit"] is None else f"{entry['limit']:.4g}"
        rows += [[name, "any", f"{max(largest.values()):.3g}" if largest else "-", found, str(was.limit)],
                 *([name, environment, f"{largest[environment]:.3g}", f"{value:.4g}", str(was.limits.get(environment))]
                   for environment, value in entry["limits"].items())]
    return reporter.Table(title, ["rule", "environment", "largest peak", "limit", "was"], rows)
