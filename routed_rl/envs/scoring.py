"""Scoring without lying: a scorer's error is counted and never becomes reward 0."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

from routed_rl.envs.core import Environment, Score, Task
from routed_rl.envs.loading import LoadedEnvironment
from routed_rl.errors import TaskError

FEW = 20
"""Scores under which a share of failures says nothing yet, unless every one failed."""


@dataclass
class Scorer:
    """Scores completions of all environments; stops when one fails for more than `max_failures` of its completions."""

    environments: dict[str, LoadedEnvironment]
    max_failures: float
    scored: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    last_error: dict[str, str] = field(default_factory=dict)

    def score(self, name: str, task: Task, completion: str) -> Score | None:
        """The score, or None where the environment raised, returned no `Score`, or a number that is not finite."""
        try:
            outcome = cast(Environment, self.environments[name].environment).score(task, completion)
        except Exception as error:
            outcome = error
        return self.count(name, outcome)

    def count(self, name: str, outcome: object) -> Score | None:
        """Count what one completion came to: a `Score` is handed back, an exception or anything else is a failure."""
        self.scored[name] += 1
        problem = _problem(outcome)
        if problem is None:
            assert isinstance(outcome, Score)
            return outcome
        self.failed[name] += 1
        self.last_error[name] = " ".join(problem.split())[:200]
        return None

    def check(self) -> None:
        """Raise once an environment's share of failures passes the limit; call it after each batch."""
        for name, failures in self.failed.items():
            share = failures / self.scored[name]
            if share > self.max_failures and (self.scored[name] >= FEW or share == 1):
                raise TaskError(f"environment {name} failed to score {failures} of {self.scored[name]} completions "
                                f"(limit {self.max_failures:.0%}); last: {self.last_error[name]}; fix env.{name} or raise "
                                "evaluation.max_failures")


def _problem(outcome: object) -> str | None:
    try:
        if isinstance(outcome, Score) and outcome.is_finite:
            return None
    except Exception as error:
        outcome = error
    if isinstance(outcome, Exception):
        return f"raised {type(outcome).__name__}: {outcome}"
    return f"returned {outcome!r}, which is " + ("not finite" if isinstance(outcome, Score) else "no Score")


def neutral_rewards(scores: Sequence[Score | None], group_size: int) -> list[float]:
    """Rewards by row; a failed row gets the mean of its group, so its own advantage is 0 and the group's mean stays.

    Where the trainer divides by the group's standard deviation, the others' advantages grow a little.
    A group that failed as a whole gets the mean of all: every advantage in it is zero.
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
