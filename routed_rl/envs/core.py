"""What an environment is: it yields tasks, and scores completions or plays episodes.

Not covered: messages whose content is no text (images), and several models in one conversation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

Message = dict[str, Any]
"""`{"role": ..., "content": text}`; a template may want more (the `name` of a tool)."""
Prompt = str | list[Message]
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
    - `gold(task) -> str | None`, a completion that solves the task, for `routed-rl env try` and `env check`; None: not known;
    - `all_settings() -> list[dict]`, the settings that `env check --all` goes through.
    """

    def tasks(self, split: str, seed: int) -> Iterator[Task]:
        """Tasks of `split` ("train" or "eval"), the same for the same seed; endless or not."""
        ...

    def score(self, task: Task, completion: str) -> Score:
        """Score the text of one completion. An error raised here is counted, never paid as 0."""
        ...


class Episode:
    """One conversation about one task, a new object each time. Needs `step`; the rest has these defaults.

    An error raised in any method ends the episode and is counted as a failure, never paid as 0.
    """

    tools: Sequence[Mapping[str, Any]] = ()
    """JSON schemas that the chat template shows the model; read after `start`. `step` reads the calls from the text."""
    max_turns: int = 8
    """Turns of the model after which `cut` ends the episode; read after `start`."""

    def start(self, task: Task) -> list[Message] | None:
        """The messages that the model sees first; None for the task's prompt."""
        return None

    def step(self, messages: list[Message]) -> list[Message] | Score:
        """Answer the model's turn, the last of `messages` (the whole conversation): further messages of the role user or
        tool, or the score that ends the episode."""
        raise NotImplementedError(f"{type(self).__name__} needs the method step(messages)")

    def cut(self, messages: list[Message]) -> Score:
        """The score where turns or tokens ran out before `step` gave one; `messages` ends with the model's last turn."""
        return Score(0.0, flags=["cut"])


@runtime_checkable
class EpisodicEnvironment(Protocol):
    """The contract of an environment of several turns. It may have what an `Environment` may; its `gold(task)` gives a list,
    the model's turns."""

    def tasks(self, split: str, seed: int) -> Iterator[Task]:
        """As an `Environment`'s; prompts are chat messages."""
        ...

    def episode(self) -> Episode:
        """A new episode; many are open at once."""
        ...


AnyEnvironment = Environment | EpisodicEnvironment


def has_episodes(environment: object) -> bool:
    """Whether completions are played (`episode`) rather than scored (`score`); one that has both is played."""
    return callable(getattr(environment, "episode", None))
