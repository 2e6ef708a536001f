"""What an environment is: it yields tasks, and scores completions or plays episodes.

Not covered: messages whose content is no text (images), and several models in one conversation.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from routed_rl.config import name_problem

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


LARGEST = 1e15
"""Numbers of a score may be as large: float32 holds their squares, summed over as many completions as a step can have."""
RESERVED = frozenset(
    ["reward", "solve", "completions", "failures", "restarts", "environment", "task", "prompt", "completion", "flags",
     "metrics", "step", "push", "shift", "own_push", "own_shift", "own_shift_up", "evidence", "pace", "practised",
     "advantage", "norm", "share", "part_norm"])
"""Names that a flag or a metric may not have, because numbers and columns of ours are called so."""


@dataclass(frozen=True)
class Score:
    """What a completion earned.

    `reward` is paid to the model; `solve` is the truth, in [0, 1], whether or not it is what pays, None where nobody knows
    it; `flags` name what was seen (`{"hack": True}`, or just the names that hold); `metrics` are further numbers to average.
    `spans` says where in the completion's text something stands: a name and pairs (first character, last + 1). ValueError for
    a value that is no number, text included, for a name that is no text, and for a pair that is no place.
    """

    reward: float
    solve: float | None = 0.0
    flags: Mapping[str, bool] | Iterable[str] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    spans: Mapping[str, Sequence[Sequence[int]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        flags: Any = [self.flags] if isinstance(self.flags, str) else self.flags
        if isinstance(flags, Iterable) and not isinstance(flags, Mapping):
            flags = dict.fromkeys(flags, True)
        for field_name, given in ("flags", flags), ("metrics", self.metrics):
            if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
                raise ValueError(f"{field_name} must have names, which are text, got {given!r:.100}")
            object.__setattr__(self, field_name, {name: _number(name, value) for name, value in given.items()})
        object.__setattr__(self, "spans", _places(self.spans))
        object.__setattr__(self, "reward", _number("reward", self.reward))
        if self.solve is not None:
            object.__setattr__(self, "solve", _number("solve", self.solve))

    @property
    def problem(self) -> str:
        """Which number cannot be counted, and why; empty where all can."""
        assert isinstance(self.flags, Mapping)
        for name, value in self.values().items():
            if not abs(value) <= LARGEST:
                return f"{name} is {value:g}, which is not {f'within {LARGEST:g}' if math.isfinite(value) else 'finite'}"
        for name, value in {"solve": 0.0 if self.solve is None else self.solve, **self.flags}.items():
            if not 0 <= value <= 1:
                return f"{name} is {value:g}, which does not lie in [0, 1]"
        return ""

    @property
    def wrong_name(self) -> str:
        """What is wrong with the name of a flag or a metric; empty where nothing is."""
        names = [*self.flags, *self.metrics]
        found = [f"{name!r:.60}, which {problem}" for name in names if (problem := name_problem(name, RESERVED))]
        found += [f"{name!r:.60} twice" for name in self.metrics if name in self.flags]
        return f"calls a flag or a metric {found[0]}; rename it" if found else ""

    def values(self) -> dict[str, float]:
        """Every number of this score under one name each: `reward`, `solve` where it is known, the flags, the metrics."""
        assert isinstance(self.flags, Mapping)
        ours = {"reward": self.reward} | ({} if self.solve is None else {"solve": self.solve})
        return {**ours, **self.flags, **self.metrics, **ours}


def _number(name: object, value: Any) -> float:
    try:
        if isinstance(value, (str, bytes, bytearray)):
            raise TypeError
        return float(value)
    except OverflowError:
        return math.inf
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a number, got {value!r:.100}") from None


def _places(given: Any) -> dict[str, list[list[int]]]:
    try:
        places = {name: [[int(place) for place in pair] for pair in pairs] for name, pairs in given.items()}
        if all(isinstance(name, str) for name in places) and all(
                len(pair) == 2 and 0 <= pair[0] <= pair[1] for pairs in places.values() for pair in pairs):
            return places
    except (AttributeError, TypeError, ValueError):
        pass
    raise ValueError(f"spans must be names with pairs (first character, last + 1), got {given!r:.100}")


@dataclass(frozen=True)
class Failure:
    """A completion that could not be scored, and why. It is counted, never paid as 0."""

    reason: str
    fatal: bool = False
    """Whether it will be so for every completion, since the environment itself is wrong."""


@runtime_checkable
class Environment(Protocol):
    """The whole contract. A class may also have

    - `variant`, a word for tables, such as "insecure";
    - `contexts`, a mapping of `encourage` and `discourage` to texts about gaming the check, for `baseline.contexts`;
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
