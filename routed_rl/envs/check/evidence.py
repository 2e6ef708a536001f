"""The evidence on which `env check` judges an environment: its tasks, which are made twice to see that they are the same, and its
scores for gold completions (the method `gold`) and junk."""

import itertools
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from routed_rl.envs.contract import gold_of, lines_of, tasks_of
from routed_rl.envs.core import Environment, Score, Task
from routed_rl.envs.faults import Failure, failure_of
from routed_rl.envs.mixture import MAKING
from routed_rl.envs.scoring import accepted, score_many, scorer_line
from routed_rl.errors import ConfigError

ENOUGH = 3
"""After this many failures a kind of completion is not tried again, because each failure may be a hang and the verdict is already
clear."""
LONG = "lorem ipsum " * 10_000


@dataclass(frozen=True)
class Trial:
    """One completion of one task, with its score, or the failure of scoring it. `kind` is "gold" or a kind of junk; `seconds` is
    the time that scoring took."""

    kind: str
    task: Task
    completion: str | list[str] | None
    result: Score | Failure
    seconds: float


@dataclass
class Evidence:
    """All observations of one environment. `tasks` and `again` are its tasks, made twice from the same seed. `problem` says why
    the observation ended early; None if it did not."""

    tasks: list[Task] = field(default_factory=list)
    again: list[Task] = field(default_factory=list)
    gold: dict[int, str | list[str]] = field(default_factory=dict)
    """Gold completions, by index in `tasks`; empty if the environment offers none."""
    trials: list[Trial] = field(default_factory=list)
    problem: Failure | None = None
    lines: Mapping[str, str] = field(default_factory=dict)
    """For each method of the plug-in, the place `FILE:LINE` of its definition, as far as it is known."""


def gather(make: Callable[[], Environment], samples: int, seed: int = 0, split: str = "train") -> Evidence:
    """Collect the evidence on the environment that `make` builds.

    The first `samples` tasks of `split` are made twice, from two environments of the same settings. Then the gold completion and
    every kind of junk are scored for each task, one completion at a time.
    """
    seen = Evidence()
    try:
        environment = make()
        seen.lines = lines_of(environment)
        seen.tasks = list(itertools.islice(tasks_of(environment, split, seed), samples))
        if not seen.tasks:
            return seen
        seen.again = list(itertools.islice(tasks_of(make(), split, seed), samples))
        if next(tasks_of(environment, "eval", seed), None) is None:
            seen.problem = Failure("no task for split 'eval'")
            return seen
        seen.gold = {place: known for place, task in enumerate(seen.tasks) if (known := gold_of(environment, task)) is not None}
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        seen.problem = failure_of(error, MAKING, lambda: seen.lines.get("tasks", ""))
        return seen
    failed: Counter[str] = Counter()
    for place, task in enumerate(seen.tasks):
        gold_kind = [("gold", seen.gold[place])] if place in seen.gold else []
        for kind, completion in [*gold_kind, *junk(task)]:
            if failed[kind] >= ENOUGH:
                continue
            began = time.perf_counter()
            result = accepted(score_many(environment, [(task, completion)])[0],  # type: ignore[list-item]
                              lambda: scorer_line(environment))
            failed[kind] += isinstance(result, Failure)
            seen.trials.append(Trial(kind, task, completion, result, time.perf_counter() - began))
    return seen


def junk(task: Task) -> list[tuple[str, Any]]:
    """Completions of `task` that should not be paid, each with the name of its kind."""
    prompt = task.prompt if isinstance(task.prompt, str) else str(task.prompt[-1].get("content", ""))
    return [("empty", ""), ("0", "0"), ("True", "True"), ("the prompt", prompt), ("very long", LONG),
            ("lone surrogates", "\udcff\ud800"), ("None", None)]
