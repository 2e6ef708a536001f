"""Trials that Optuna chooses from the results of earlier ones. The study is a SQLite file in the sweep's folder, so it survives a
kill."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from routed_rl.artifacts import as_moved
from routed_rl.config import SweepConfig
from routed_rl.config.checks import first_difference
from routed_rl.errors import ConfigError, RunFolderError
from routed_rl.multirun.job import Job, is_finished
from routed_rl.multirun.trials import Dimension, Outcome, Plan, outcome
from routed_rl.tracking import MetricsFile

if TYPE_CHECKING:
    import optuna

PRUNED = "pruned at step"


class Study:
    """An Optuna study as a source of jobs. `jobs` yields them, `ended` takes the result of one, and `stop` says whether a job in
    progress should end early."""

    def __init__(self, plan: Plan, dimensions: list[Dimension], settings: SweepConfig, seed: int) -> None:
        self.plan, self.dimensions, self.settings = plan, dimensions, settings
        self.study = _open(plan.folder / "study.db", settings, seed)
        self.at_work: dict[str, optuna.trial.Trial] = {}
        # Trials of other settings would be judged together with these.
        ours = {"fixed": plan.fixed, "space": [str(each) for each in dimensions]}
        there = self.study.user_attrs.get("request", ours)
        before, now = ({kind: _by_key(request[kind]) for kind in ours} for request in (there, ours))
        if difference := first_difference(as_moved(before, now), now):
            changed = difference.removeprefix("fixed.").removeprefix("space.")
            raise RunFolderError(f"{plan.folder} holds a sweep of other settings ({changed}); set another out=FOLDER")
        self.study.set_user_attr("request", ours)

    def jobs(self) -> tuple[int, Iterator[Job]]:
        """How many trials are still to be run, and an iterator over them: first the trials that a killed sweep left unfinished,
        with the settings that they had, then new trials."""
        ended = sum(each.state.is_finished() for each in self.study.get_trials(deepcopy=False))
        return max(0, self.settings.trials - ended), self._jobs()

    def _jobs(self) -> Iterator[Job]:
        import optuna

        for frozen in self.study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
            trial = self._at(optuna.trial.Trial(self.study, frozen._trial_id))  # pyright: ignore[reportPrivateUsage]
            if is_finished(trial, "out="):
                self.ended(trial, None)
            else:
                yield trial
        while len(self.study.get_trials(deepcopy=False)) < self.settings.trials:
            yield self._at(self.study.ask())

    def _at(self, asked: optuna.trial.Trial) -> Job:
        trial = self.plan.trial(asked.number, {each.key: _suggest(asked, each) for each in self.dimensions})
        self.at_work[trial.name] = asked
        return trial

    def ended(self, job: Job, problem: str | None) -> None:
        """Pass the result of a trial to the study: its objectives, or the `problem` if it failed. ConfigError for an objective
        that the trial's summary does not have; the trial then counts as unfinished, and its result can be passed later."""
        import optuna

        asked, states = self.at_work[job.name], optuna.trial.TrialState
        found = outcome(job, problem, self.settings.objectives)
        asked.set_user_attr("problem", problem)
        if problem is None:
            self.study.tell(asked, found.values)
        else:
            self.study.tell(asked, state=states.PRUNED if problem.startswith(PRUNED) else states.FAIL)

    def stop(self, job: Job) -> str | None:
        """Report the new values of the pruning metric to the study. Returns the reason to end the trial if it is worse than the
        median of earlier trials, else None."""
        name, asked = self.settings.prune.metric, self.at_work[job.name]
        assert name is not None
        rows = [row for row in MetricsFile(job.folder.metrics).rows() if row.get(name) is not None]
        known = self.study.get_trials(deepcopy=False)[asked.number].intermediate_values
        for row in rows:
            if row["step"] not in known:
                asked.report(row[name], row["step"])
        if rows and asked.should_prune():
            return f"{PRUNED} {rows[-1]['step']}: {name}={rows[-1][name]:.3g} is worse than the median of earlier trials"
        return None

    def outcomes(self) -> list[Outcome]:
        """The outcome of every trial that has ended, in this call and in earlier ones."""
        states = {"COMPLETE": "done", "FAIL": "failed", "PRUNED": "pruned"}
        return [Outcome(self.plan.trial(each.number, each.params), list(each.values) if each.values else None,
                        states[each.state.name], each.user_attrs.get("problem"))
                for each in self.study.get_trials(deepcopy=False) if each.state.is_finished()]


def _by_key(texts: Sequence[str]) -> dict[str, str]:
    """The settings in texts such as KEY=VALUE, so that two lists of them can be compared setting by setting."""
    return {key.lstrip("+"): value for key, _, value in (text.partition("=") for text in texts)}


def _open(file: Path, settings: SweepConfig, seed: int) -> Any:
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise ConfigError("sweep=optuna needs Optuna: pip install 'routed-rl[sweep]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    directions: Any = settings.directions
    pruner = optuna.pruners.MedianPruner(settings.prune.after_trials, settings.prune.after_steps)
    study = optuna.create_study(storage=f"sqlite:///{file}", study_name="sweep", load_if_exists=True, pruner=pruner,
                                directions=directions)
    # The seed depends on the number of trials too; otherwise a sweep that goes on would draw its first trials again.
    study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials), multivariate=len(settings.objectives) > 1,
                                               constant_liar=True)
    if (there := [each.name.lower() for each in study.directions]) != settings.directions:
        raise RunFolderError(f"{file.parent} holds a sweep with sweep.direction={there}, not {settings.directions}; set another "
                             "out=FOLDER")
    return study


def _suggest(asked: optuna.trial.Trial, dimension: Dimension) -> Any:
    key, values = dimension.key, dimension.values
    if not dimension.interval:
        return asked.suggest_categorical(key, values)
    suggest = asked.suggest_int if all(isinstance(end, int) for end in values) else asked.suggest_float
    return suggest(key, *values, log=dimension.log)
