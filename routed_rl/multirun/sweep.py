"""The verb `sweep` tries many settings of one experiment. It runs the trials that are missing, then writes and shows the results
of all trials."""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path

from routed_rl import console
from routed_rl.artifacts import alone_in, write_json
from routed_rl.config import Compose, SweepConfig
from routed_rl.errors import ConfigError, RunsFailed
from routed_rl.multirun import reporter
from routed_rl.multirun.job import Job, folder_for_many, is_finished, of_one_date, train_or_resume
from routed_rl.multirun.ranking import commands, draw, notes, plan_lines, result, table
from routed_rl.multirun.study import Study
from routed_rl.multirun.sweep_page import verdict, write_sweep
from routed_rl.multirun.trials import Dimension, Outcome, Plan, check_metric, check_objective, outcome
from routed_rl.multirun.workers import Execute, run_all


class Grid:
    """Every combination of the listed values, as a source of jobs like `Study`. The trials' folders record which trials are done,
    so failed trials are tried again."""

    def __init__(self, plan: Plan, dimensions: list[Dimension], settings: SweepConfig) -> None:
        for each in dimensions:
            if each.interval:
                raise ConfigError(f"{each.key} is given an interval, of which a grid cannot try every value; list values "
                                  f"({each.key}={each.values[0]},{each.values[1]}), or set sweep=optuna")
        keys = [each.key for each in dimensions]
        points = itertools.product(*(each.values for each in dimensions))
        self.trials = [plan.trial(number, dict(zip(keys, point, strict=True))) for number, point in enumerate(points)]
        self._refuse_unread(dimensions)
        self.settings, self.problems = settings, dict[str, str]()

    def _refuse_unread(self, dimensions: list[Dimension]) -> None:
        """Raise ConfigError if settings of the detector are varied that no trial reads, because all trials would be alike."""
        for each in dimensions:
            section, _, name = each.key.rpartition(".")
            if section == "baseline.detector" and not any(name in trial.config.read_of_detector for trial in self.trials):
                raise ConfigError(f"{each}: no trial reads it; set baseline=screen or baseline=penalty, or routing=labels"
                                  f"{', or another baseline.detector.kind' * (name != 'kind')}, or leave it out")

    def jobs(self) -> tuple[int, Iterator[Job]]:
        """How many trials are still to be run, and an iterator over them."""
        missing = [trial for trial in of_one_date(self.trials) if not is_finished(trial, "out=")]
        return len(missing), iter(missing)

    def ended(self, job: Job, problem: str | None) -> None:
        """Store the `problem` of a failed trial. If the trial has succeeded, ConfigError is raised for an objective that its
        summary does not have."""
        if problem is not None:
            self.problems[job.name] = problem
        else:
            outcome(job, None, self.settings.objectives)

    def outcomes(self) -> list[Outcome]:
        return [outcome(trial, self.problems.get(trial.name), self.settings.objectives) for trial in self.trials
                if trial.name in self.problems or trial.folder.summary.exists()]


def sweep(fixed: list[str], dimensions: list[Dimension], compose: Compose, *, dry_run: bool = False,
          execute: Execute = train_or_resume) -> Path | None:
    """Run the trials of `dimensions` with the `fixed` overrides, in `out=` (default `sweep`); returns OUT/sweep.json.

    The same call continues where an earlier one was killed: no trial is run twice. `execute` runs one trial; a caller with other
    machines passes another function. A `dry_run` lists the trials and writes nothing. Every value of a choice and both ends of an
    interval are composed and checked before any trial begins.
    """
    if not dimensions:
        raise ConfigError("a sweep needs a setting with several values, such as routing.quarantine.learning_rate=1e-3,1e-2 or "
                          "seed=0,1,2")
    config = compose(fixed)
    settings, folder = config.sweep, folder_for_many(Path(config.out or "sweep").expanduser(), "out=")
    ours = [text for text in fixed if text.lstrip("+~").split("=")[0].split(".")[0] not in ("sweep", "out")]
    plan = Plan(ours, folder, compose)
    corners = _corners(plan, dimensions)
    from routed_rl.training.checks import check_trainer  # here, so that a sweep without dimensions is refused at once

    for trial in corners:
        check_trainer(trial.config.trainer)
        for path in settings.objectives:
            check_objective(path, trial.config)
        if settings.prune.metric:
            check_metric(settings.prune.metric, trial.config)
    everything = Grid(plan, dimensions, settings) if settings.method == "grid" else None
    if dry_run:
        console.say("\n".join(plan_lines(everything.trials if everything else [], dimensions, settings)))
        return None
    with alone_in(folder):
        source = everything or Study(plan, dimensions, settings, config.seed)
        left, jobs = source.jobs()
        console.say(f"sweep: {left} trials to run, {settings.jobs} at a time; logs in {folder / 'logs'}")
        stop = source.stop if isinstance(source, Study) and settings.prune.metric else None
        if left:
            run_all(jobs, left, execute, settings.jobs, folder / "logs", "sweep", ended=source.ended, stop=stop,
                    first=[dataclasses.replace(corners[0], name="trying-out")])
        found = source.outcomes()
        request = {"fixed": fixed, "space": [str(each) for each in dimensions]}
        said = verdict(found, settings)
        write_json(folder / "sweep.json", {"verdict": said, **result(found, settings, request)})
        write_sweep(folder / "sweep.html", found, settings)
        drawn = draw(folder / "sweep", found, settings)
    reporter.show([table(found, settings)], notes(found, settings), folder, ["sweep.html", "sweep.json", *drawn], said)
    for line in commands(found, settings):
        console.say(line)
    if failed := [each.trial.name for each in found if each.state == "failed"]:
        again = "the same command tries them again" if settings.method == "grid" else "they count, and are not tried again"
        raise RunsFailed(f"{len(failed)} of {len(found)} trials failed: {', '.join(failed)}; see {folder / 'logs'}; {again}")
    return folder / "sweep.json"


def _corners(plan: Plan, dimensions: list[Dimension]) -> list[Job]:
    """Trials in which every value of a choice, and both ends of an interval, occur at least once."""
    return [plan.trial(place, {each.key: each.values[min(place, len(each.values) - 1)] for each in dimensions})
            for place in range(max(len(each.values) for each in dimensions))]
