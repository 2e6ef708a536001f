"""One training run that belongs to a comparison, a sweep or a calibration, and its state, which is read from its folder."""

import dataclasses
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from routed_rl import console
from routed_rl.artifacts import RunFolder
from routed_rl.config import Compose, Config, from_mapping
from routed_rl.config.checks import first_difference
from routed_rl.config.references import resolved_at_once
from routed_rl.errors import ConfigError, Halted, RunFolderError, command
from routed_rl.importing import importing
from routed_rl.pipeline.record import as_it_was, moved


@dataclass(frozen=True)
class Job:
    """A run to do. `config.out` is its folder, and `overrides` are the command-line settings from which `config` was composed."""

    name: str
    config: Config
    overrides: list[str]
    arm: str = ""
    """The arm of a comparison; runs of one arm differ only in their seed."""
    seed: int = 0
    """Number of the run within its arm, counted from 0. The run's own seed is the experiment's plus this number. Runs of the same
    number see the same tasks in every arm."""
    point: dict[str, str] = field(default_factory=dict)
    """For a trial of a sweep, the varied settings as {key: value in the form of an override}; empty for any other run."""

    @property
    def folder(self) -> RunFolder:
        assert self.config.out is not None
        return RunFolder(self.config.out)


def seeded(arm: str, seed: int, settings: list[str], first: int, out: Path, compose: Compose) -> Job:
    """Plan run number `seed` of `arm`, in the folder OUT/runs. `settings` are its overrides, and `first` is the experiment's own
    seed. The monitor of the run never halts it, because a halted run could not be compared. Both the config and the overrides of
    the run set this."""
    name = f"{arm}-seed{seed}"
    overrides = [*settings, f"seed={first + seed}", f"name={name}"]
    config = compose(overrides)
    overrides += [f"monitor.{rule}.action=report" for rule in config.monitor.halting()]
    config = dataclasses.replace(config, out=str(out / "runs" / name), monitor=config.monitor.reporting())
    return Job(name, config, overrides, arm, seed)


def say_reporting(config: Config, kind: str) -> None:
    """Say in one line which rules of the monitor would halt a run of `config`, if there are any, because the runs of this `kind`
    do not halt by them."""
    if rules := config.monitor.halting():
        settings = ", ".join(f"monitor.{rule}.action=halt" for rule in rules)
        console.say(f"note: {settings} only reports in {kind}, where every run must reach its last step")


def folder_for_many(place: str | Path, option: str) -> Path:
    """The absolute path of the folder for many runs that a user gave by `option`. RunFolderError if it is the folder of one
    run."""
    if RunFolder(place).config.exists():
        raise RunFolderError(f"{option}{place} is the folder of one run, and many runs are to be written; give another folder")
    return Path(place).absolute()


def train_or_resume(config: Config, overrides: list[str]) -> None:
    """Train one run, from the start or from where it was stopped. Raises `Halted` for a run that the monitor has halted, because
    only its user may take it past the halt."""
    with importing():
        from routed_rl.pipeline.train import resume, train

    assert config.out is not None
    if (run := RunFolder(config.out)).config.exists():
        if halt := run.halt():
            raise Halted(f"{run.path} was halted by the monitor at step {halt['step']}, and goes on only if you say so: "
                         f"{command('resume', run.path)}", str(run.path))
        resume(config.out, [], lambda _: config)  # nothing is composed, because a resumed run keeps its settings
    else:
        if run.path.is_dir():  # a process that ended while it made the folder leaves one that holds no run
            run.abandon_if_empty()
        train(config, overrides)


def try_out(config: Config, overrides: list[str]) -> None:
    """Check everything that can be known before a run begins: model, environments, prompts, the trainer's settings. Nothing is
    written."""
    with importing():
        from routed_rl.pipeline.train import train

    train(config, overrides, dry_run=True)


def of_one_date(jobs: Sequence[Job]) -> list[Job]:
    """Return copies of `jobs` that have the same date, for chat templates that ask for one: the date of the first run that has
    begun, or else the present time. A date that is set in a job's config stays."""
    begun = [job.folder.settings().get("model", {}).get("date") for job in jobs if job.folder.config.exists()]
    date = next(filter(None, begun), datetime.now().isoformat(timespec="seconds"))
    return [dataclasses.replace(job, config=dataclasses.replace(job.config, model=dataclasses.replace(
        job.config.model, date=job.config.model.date or date))) for job in jobs]


def is_finished(job: Job, another: str) -> bool:
    """Whether the job's folder holds the finished run. RunFolderError if the folder holds a run with other settings, so that
    results of different settings are never mixed. ConfigError if `launch.where` is not `here`.

    `another` is the option by which a user chooses another folder; the error message names it.
    """
    if job.config.launch.where != "here":
        raise ConfigError(f"launch.where={job.config.launch.where}: many runs are done on this machine, a few at a time; set "
                          "launch=local, or train each run as a job of its own")
    if not job.folder.config.exists():
        return False
    there = _comparable(moved(from_mapping(as_it_was(resolved_at_once(job.folder.settings()))), job.config))
    if difference := first_difference(there, _comparable(job.config)):
        raise RunFolderError(f"{job.folder.path} was run with other settings ({difference}); give another {another}")
    with suppress(RunFolderError):
        return bool(job.folder.results())
    return False


def _comparable(config: Config) -> Any:
    """The settings as plain JSON, without the folder, which may have been moved, and without the date, which a run may choose
    when it begins."""
    config = dataclasses.replace(config, out=None, model=dataclasses.replace(config.model, date=None))
    return json.loads(json.dumps(dataclasses.asdict(config)))
