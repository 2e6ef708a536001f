"""The dimensions that a sweep varies, its trials as jobs, and their outcomes."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from routed_rl.config import Compose, Config, SweepConfig
from routed_rl.errors import ConfigError
from routed_rl.multirun.job import Job
from routed_rl.multirun.results import MODELS


@dataclass(frozen=True)
class Dimension:
    """A setting that a sweep varies. A choice lists its values: `KEY=A,B`, `KEY=choice(A,B)`, or `KEY=range(1,5)`. An interval
    has two ends: `KEY=interval(LOW,HIGH)`; with whole numbers `KEY=int(interval(1,8))`; with values that are uniform in the
    logarithm `KEY=tag(log,interval(1e-4,1))`."""

    key: str
    values: list[Any]
    """For a choice, its values in the form of overrides. For an interval, its two ends, which are whole numbers if both were
    written so."""
    interval: bool = False
    log: bool = False

    def __str__(self) -> str:
        return f"{self.key}={'log ' * self.log}{self.values if self.interval else ','.join(self.values)}"


@dataclass
class Outcome:
    """The result of a trial."""

    trial: Job
    values: list[float] | None
    """The values of the objectives; None if the trial did not succeed."""
    state: str
    """done, failed, or pruned."""
    problem: str | None = None
    summary: dict[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        return {"trial": self.trial.name, "state": self.state, "params": self.trial.point, "overrides": self.trial.overrides,
                "values": self.values, "problem": self.problem}


@dataclass(frozen=True)
class Plan:
    """The settings that all trials share. A trial has its folder in `folder`; `compose` turns its overrides into a config."""

    fixed: list[str]
    """The overrides of every trial."""
    folder: Path
    compose: Compose

    def trial(self, number: int, point: Mapping[str, Any]) -> Job:
        """Trial number `number` with the varied settings `point`, as a job with its own folder. ConfigError if the settings are
        not valid."""
        name, texts = f"trial-{number:03d}", {key: str(value) for key, value in point.items()}
        overrides = [*self.fixed, *(f"{key}={text}" for key, text in texts.items())]
        config = dataclasses.replace(self.compose(overrides), out=str(self.folder / name), name=name, sweep=SweepConfig())
        return Job(name, config, overrides, point=texts)


def outcome(trial: Job, problem: str | None, objectives: list[str]) -> Outcome:
    """The outcome of a trial that has ended, with the `problem` if it failed. If an objective is no number in the trial's
    summary, ConfigError lists the numbers that the summary has."""
    if problem is not None:
        return Outcome(trial, None, "failed", problem)
    summary = trial.folder.results()
    known = _unseen(summary) | dict(numbers(summary))
    for path in objectives:
        if path not in known:
            raise ConfigError(f"sweep.objective={path} is no number in summary.json; its numbers are {', '.join(sorted(known))}")
    return Outcome(trial, [known[path] for path in objectives], "done", summary=summary)


def _unseen(summary: dict[str, Any]) -> dict[str, float]:
    """{dotted path of a flag: 0} for every flag that the evaluations of a model can report. An evaluation reports a flag only if
    it saw the flag, so 0 is the value of a flag that it does not report."""
    flags = summary.get("flags", {})
    return {f"models.{model}.{env}.{flag}": 0.0 for model, found in summary["models"].items() for env, means in found.items()
            if means for flag in flags.get(env, ())}


def check_objective(path: str, config: Config) -> None:
    """Raise ConfigError for a path that no summary.json of a run of `config` can have. Metrics, and deeper keys, can be checked
    only after a trial."""
    section, *_ = names = path.split(".")
    models = (*MODELS, "kept") if config.keep else MODELS
    known = {"models": [models, list(config.env)], "attribution": [list(config.env)], "routing": [], "timing": [], "scales": []}
    for name, choices in zip(names, [list(known), *known.get(section, [])], strict=False):
        if name not in choices:
            raise ConfigError(f"sweep.objective={path} will not be in summary.json: {name} is none of {', '.join(choices)}; "
                              "set it to a path such as models.deployed.ENV.solve")
    if section == "models" and not config.evaluation.samples:
        raise ConfigError(f"sweep.objective={path} needs an evaluation; set evaluation.samples=200")


def check_metric(name: str, config: Config) -> None:
    """Raise ConfigError for a metric, the value of `sweep.prune.metric`, that no run of `config` writes, because it is not listed
    in `METRICS` or names an environment that the run does not have. Metrics under TRL's own names are not checked."""
    from routed_rl.tracking import METRICS  # it imports numpy

    words = name.split("/")

    def is_like(pattern: str) -> bool:
        parts = pattern.split("/")
        return len(parts) == len(words) and all(
            word in config.mixture if part == "<env>" else part == word or part.startswith("<")
            for part, word in zip(parts, words, strict=True))

    if words[0] not in ("train", "time") and not any(map(is_like, METRICS)):
        raise ConfigError(f"sweep.prune.metric={name} is no metric of these trials; give one such as train/reward, or "
                          f"environment/ENV/reward with ENV one of {', '.join(config.mixture)}")


def numbers(tree: Any, path: str = "") -> list[tuple[str, float]]:
    """Every number in nested mappings, with its dotted path. `path` is that of `tree` itself."""
    if isinstance(tree, dict):
        return [found for key, inner in tree.items() for found in numbers(inner, f"{path}.{key}".lstrip("."))]
    return [(path, float(tree))] if isinstance(tree, (int, float)) and not isinstance(tree, bool) else []


def best(outcomes: list[Outcome], directions: list[str]) -> list[Outcome]:
    """The Pareto front: the outcomes for which no other outcome is at least as good in every objective and better in one. They
    are sorted by the first objective, the best first."""
    done = [each for each in outcomes if each.values]
    gains = {each.trial.name: [value if direction == "maximize" else -value
                               for direction, value in zip(directions, each.values or [], strict=True)] for each in done}

    def beaten(mine: list[float]) -> bool:
        return any(all(a >= b for a, b in zip(theirs, mine, strict=True)) and theirs != mine for theirs in gains.values())

    front = [each for each in done if not beaten(gains[each.trial.name])]
    return sorted(front, key=lambda each: gains[each.trial.name], reverse=True)
