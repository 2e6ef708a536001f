"""What an environment is: it yields tasks and scores completions. Single-turn only."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

Prompt = str | list[dict[str, str]]
"""Raw text, or chat messages `{"role": ..., "content": ...}` that go through the chat template."""


@dataclass(frozen=True)
class Task:
    """One problem: the prompt the model sees, and data that only the scorer sees (JSON-like)."""

    prompt: Prompt
    data: Mapping[str, Any] = field(default_factory=dict)
    stage: int = 0
    """Which stage of a curriculum made it, and scores it; set by `routed_rl`, not by the environment."""


@dataclass(frozen=True)
class Score:
    """What a completion earned.

    `reward` is paid to the model; `solve` is the truth, in [0, 1], whether or not it is what pays; `flags` name what
    was seen (`{"hack": True}`, or just the names that hold); `metrics` are further numbers to average.
    """

    reward: float
    solve: float = 0.0
    flags: Mapping[str, bool] | Iterable[str] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        named = self.flags if isinstance(self.flags, Mapping) else dict.fromkeys(self.flags, True)
        object.__setattr__(self, "flags", {str(name): float(value) for name, value in named.items()})
        object.__setattr__(self, "reward", float(self.reward))
        object.__setattr__(self, "solve", float(self.solve))

    @property
    def is_finite(self) -> bool:
        return all(map(math.isfinite, self.values().values()))

    def values(self) -> dict[str, float]:
        """Every number of this score under one name each: `reward`, `solve`, the flags, the metrics."""
        assert isinstance(self.flags, Mapping)
        return {"reward": self.reward, "solve": self.solve, **self.flags, **{k: float(v) for k, v in self.metrics.items()}}


@dataclass(frozen=True)
class Failure:
    """A completion that could not be scored, and why. It is counted, never paid as 0."""

    reason: str


@runtime_checkable
class Environment(Protocol):
    """The whole contract. A class may also have

    - `variant`, a word for tables, such as "insecure";
    - `gold(task) -> str`, a completion that solves the task, for `routed-rl env try` and `env check`;
    - `all_settings() -> list[dict]`, the settings that `env check --all` goes through.
    """

    def tasks(self, split: str, seed: int) -> Iterator[Task]:
        """Tasks of `split` ("train" or "eval"), the same for the same seed; endless or not."""
        ...

    def score(self, task: Task, completion: str) -> Score:
        """Score the text of one completion. An error raised here is counted, never paid as 0."""
        ...
