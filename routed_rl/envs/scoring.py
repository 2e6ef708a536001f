"""Scores completions. If a scorer fails, the failure is counted, and never becomes a reward of 0."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from routed_rl.envs.contract import lines_of, no_score
from routed_rl.envs.core import Environment, Score, Task, own_copy
from routed_rl.envs.early import Early
from routed_rl.envs.faults import Failure, failure_of
from routed_rl.errors import TaskError
from routed_rl.threads import in_thread

if TYPE_CHECKING:
    from routed_rl.envs.mixture import LoadedEnvironment

FEW = 20
"""While an environment has fewer scorings than this, its share of failures is taken as if it had this many, so that one early
failure does not end a run. If all of its scorings have failed, the run ends all the same, unless `max_failures` is 1."""
RECENT = 1000
"""When an environment's number of scorings reaches this, it is halved together with the number of failures, so that old successes
do not hide present failures."""


def score_one(environment: Environment, task: Task, completion: str) -> Score | Failure:
    """The environment's score of a completion, or the failure that says why there is none. No exception leaves this function, not
    even `SystemExit`."""
    try:
        return judged(environment.score(own_copy(task), completion), lambda: scorer_line(environment))
    except (Exception, SystemExit) as error:
        return failure_of(error, at=lambda: scorer_line(environment), data=task.data)


def scorer_line(environment: object) -> str:
    """The place `FILE:LINE` of the method of the plug-in that scores; empty if it is not known."""
    lines = lines_of(environment)
    return lines.get("episode") or lines.get("score", "")


def judged(outcome: object, at: Callable[[], str] = str) -> Score | Failure:
    """Turn an outcome into a score or a failure. A `Failure`, and a `Score` with valid numbers, stay as they are; an exception,
    or anything else, becomes a `Failure` that describes it. `at` returns the line of the plug-in, which the `Failure` names if
    the outcome itself names none."""
    if isinstance(outcome, Failure):
        return outcome
    if isinstance(outcome, BaseException):
        return failure_of(outcome, at=at)
    return outcome if isinstance(outcome, Score) and not outcome.problem else no_score(outcome, at())


def accepted(outcome: object, at: Callable[[], str] = str) -> Score | Failure:
    """As `judged`, but a score whose flag or metric has a wrong or reserved name becomes a `fatal` failure."""
    result = judged(outcome, at)
    if isinstance(result, Score) and result.wrong_name:
        return Failure(result.wrong_name, fatal=True, place=at(), remedy="rename it")
    return result


def means(scores: Sequence[Score | None]) -> dict[str, float]:
    """Means over the scores that are not None. A flag that a score does not name counts as 0; a metric and `solve` are averaged
    over the scores that have them. Empty if every score is None."""
    known = [score for score in scores if score is not None]
    sums, holders = Counter[str](), Counter[str]()
    for score in known:
        sums.update(score.values())
        holders.update([*score.metrics, *([] if score.solve is None else ["solve"])])
    return {key: total / holders.get(key, len(known)) for key, total in sums.items()}


def score_many(environment: Environment, pairs: Sequence[tuple[Task, str]]) -> list[Score | Failure]:
    """The scores or failures of the completions in the order of `pairs`. If the environment has a method `score_many`, as
    `EnvironmentProcess` has, this method is called once for all completions."""
    many = getattr(environment, "score_many", None)
    return many(pairs) if many is not None else [score_one(environment, task, completion) for task, completion in pairs]


@dataclass
class Scorer:
    """Scores completions of all environments and counts the failures of each. `check` ends the run if scoring fails for a larger
    share of an environment's completions than `max_failures`."""

    environments: dict[str, LoadedEnvironment]
    max_failures: float
    scored: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    last_error: dict[str, str] = field(default_factory=dict)
    early: Early = field(default_factory=Early)

    def begin(self, name: str, pairs: Sequence[tuple[Task, str]]) -> None:
        """Begin to score these completions of the environment `name`, if it has a process of its own. A later `score_many` waits
        for the outcomes and counts them."""
        environment: Any = self.environments[name].environment
        if hasattr(environment, "score_many"):
            self.early.begin(environment.score_many, pairs)

    def score_many(self, name: str, pairs: Sequence[tuple[Task, str]]) -> list[Score | None]:
        """Score these completions of the environment `name`. Returns a score for each, or None if scoring it failed; failures are
        counted as in `count`."""
        environment = cast(Environment, self.environments[name].environment)
        begun = self.early.take(pairs)
        rest = iter(score_many(environment, [pair for pair, outcome in zip(pairs, begun, strict=True) if outcome is None]))
        return [self.count(name, next(rest) if outcome is None else outcome) for outcome in begun]

    def score_all(self, wanted: Mapping[str, Sequence[tuple[Task, str]]]) -> dict[str, list[Score | None]]:
        """The scores that `score_many` gives, for each environment in `wanted`. Environments in processes of their own score at
        the same time."""
        apart = [name for name in wanted if hasattr(self.environments[name].environment, "score_many")]
        waiting = {name: in_thread(partial(self.score_many, name, wanted[name])) for name in apart}
        # Here, and not in a thread, because a scorer may use signals.
        found = {name: self.score_many(name, pairs) for name, pairs in wanted.items() if name not in waiting}
        found |= {name: future.result() for name, future in waiting.items()}
        return {name: found[name] for name in wanted}

    def count(self, name: str, outcome: object) -> Score | None:
        """Count the outcome of one completion of the environment `name`. Returns a valid `Score`, or None for a failure.
        TaskError if a flag or a metric has a wrong or reserved name."""
        result = accepted(outcome, lambda: scorer_line(self.environments[name].environment))
        if self.scored[name] >= RECENT:
            self.scored[name] //= 2
            self.failed[name] //= 2
        self.scored[name] += 1
        if isinstance(result, Score):
            return result
        if result.fatal:
            raise TaskError(result.of(name))
        self.failed[name] += 1
        self.last_error[name] = result.text
        return None

    def check(self) -> None:
        """Raise TaskError if scoring failed for a larger share of an environment's completions than `max_failures`, or for all of
        them while that limit is below 1. Call this method after each batch.

        The share is taken over the newest completions (see `RECENT`), or over `FEW` if there are fewer.
        """
        for name, failures in self.failed.items():
            scored = self.scored[name]
            if failures / max(scored, FEW) > self.max_failures or failures == scored > scored * self.max_failures:
                raise TaskError(f"environment {name} failed to score {failures} of its last {scored} completions "
                                f"(limit {self.max_failures:.0%}{f' of {FEW}' if scored < FEW else ''}); last: "
                                f"{self.last_error[name]}; fix env.{name} or raise evaluation.max_failures")


def neutral_rewards(scores: Sequence[Score | None], group_size: int) -> list[float]:
    """The reward of each row. Each `group_size` consecutive rows are one group. A row whose scoring failed gets the mean of its
    group, so that its own advantage is 0 and the mean of the group does not change.

    If the trainer divides by the group's standard deviation, the advantages of the other rows grow a little. If scoring failed
    for all rows of a group, each of them gets the mean of all known rewards, so that every advantage in the group is 0.
    """
    everyone = [score.reward for score in scores if score is not None]
    overall = sum(everyone) / len(everyone) if everyone else 0.0
    rewards: list[float] = []
    for start in range(0, len(scores), group_size):
        group = scores[start:start + group_size]
        known = [score.reward for score in group if score is not None]
        mean = sum(known) / len(known) if known else overall
        rewards += [mean if score is None else score.reward for score in group]
    return rewards
