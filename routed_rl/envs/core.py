"""The contract of an environment: it yields tasks, and it scores completions or plays episodes.

Not covered: messages whose content is not text (images), and several models in one conversation.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from routed_rl.config import name_problem
from routed_rl.envs.faults import ContractError
from routed_rl.shapes import prompt_problem

Message = dict[str, Any]
"""`{"role": ..., "content": text}`; a chat template may need further keys (the `name` of a tool)."""
Prompt = str | list[Message]
"""Raw text, or chat messages `{"role": ..., "content": ...}` that go through the chat template."""


@dataclass(frozen=True)
class Task:
    """One problem: the prompt that the model sees, and data (JSON-like) that only the scorer sees. ContractError, a ValueError,
    for a prompt that is neither text nor chat messages, and for data that is no mapping."""

    prompt: Prompt
    data: Mapping[str, Any] = field(default_factory=dict)
    stage: int = 0
    """The stage of a curriculum that made this task and that scores it; set by `routed_rl`, not by the environment."""

    def __post_init__(self) -> None:
        if problem := prompt_problem(self.prompt):
            raise ContractError(f"the prompt of a task {problem}",
                                'give text, or chat messages [{"role": "user", "content": TEXT}]')
        if not isinstance(self.data, Mapping):
            raise ContractError(f"the data of a task is {self.data!r:.60}, no mapping", 'write Task(prompt, {"answer": ANSWER})')


def own_copy(task: Task) -> Task:
    """A copy of a task, of which a plug-in may change the lists and dicts, such as by `task.prompt.append(...)`, as it may in a
    process of its own: other completions of the task, and the files of a run, still see the task itself."""
    own = object.__new__(type(task))
    try:
        vars(own).update(vars(task), prompt=_copied(task.prompt), data=_copied(task.data))
    except RecursionError:  # data that contain themselves
        return task
    return own


def _copied(value: Any) -> Any:
    if type(value) is dict:
        return {key: _copied(inner) for key, inner in value.items()}
    return [_copied(inner) for inner in value] if type(value) is list else value


LARGEST = 1e15
"""The largest absolute value of a number in a score. The sum of the squares of such numbers over all completions of a step still
fits into float32."""
RESERVED = frozenset(
    ["reward", "solve", "completions", "failures", "restarts", "environment", "task", "prompt", "completion", "flags",
     "metrics", "step", "push", "shift", "own_push", "own_shift", "own_shift_up", "evidence", "pace", "practised",
     "advantage", "norm", "share", "part_norm"])
"""Names that a flag or a metric may not have, because `routed_rl` uses them for its own numbers and columns."""


@dataclass(frozen=True)
class Score:
    """The result of scoring one completion.

    `reward` is paid to the model. `solve`, in [0, 1], says whether the task is truly solved, whether or not that is paid; None if
    nobody knows. `flags` name facts about the completion: a mapping such as `{"hack": True}`, or just the names of the flags that
    hold. `metrics` are further numbers, which are averaged. `spans` mark places in the text of the completion: for each name,
    pairs of (first character, last + 1). ContractError, a ValueError, for a value that is not a number (text included), a name
    that is not text, or `spans` that are not such pairs.
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
                raise ContractError(f"{field_name} must have names, which are text, got {given!r:.100}",
                                    f'write {field_name}={{"name": 1.0}}')
            object.__setattr__(self, field_name, {name: _number(name, value) for name, value in given.items()})
        object.__setattr__(self, "spans", _places(self.spans))
        object.__setattr__(self, "reward", _number("reward", self.reward))
        if self.solve is not None:
            object.__setattr__(self, "solve", _number("solve", self.solve))

    @property
    def problem(self) -> str:
        """A complaint about the first number that is not finite, too large or out of its range; empty if there is none."""
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
        """The complaint about a flag or a metric whose name is reserved, given twice or not allowed; empty if there is none."""
        names = [*self.flags, *self.metrics]
        found = [f"{name!r:.60}, which {problem}" for name in names if (problem := name_problem(name, RESERVED))]
        found += [f"{name!r:.60} twice" for name in self.metrics if name in self.flags]
        return f"calls a flag or a metric {found[0]}" if found else ""

    def values(self) -> dict[str, float]:
        """Every number of this score by its name: `reward`, `solve` if it is known, the flags, the metrics."""
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
        raise ContractError(f"{name} must be a number, got {value!r:.100}", "give a float, such as 0.0 or 1.0") from None


def _places(given: Any) -> dict[str, list[list[int]]]:
    try:
        places = {name: [[int(place) for place in pair] for pair in pairs] for name, pairs in given.items()}
        if all(isinstance(name, str) for name in places) and all(
                len(pair) == 2 and 0 <= pair[0] <= pair[1] for pairs in places.values() for pair in pairs):
            return places
    except (AttributeError, TypeError, ValueError, OverflowError):
        pass
    raise ContractError(f"spans must be names with pairs (first character, last + 1), got {given!r:.100}",
                        'write spans={"name": [(first, last + 1)]}')


@runtime_checkable
class Environment(Protocol):
    """The whole contract of an environment. A class may also have

    - `variant`, a word for tables, such as "insecure";
    - `contexts`, a mapping of `encourage` and `discourage` to texts about gaming the check, for `baseline.contexts`;
    - `gold(task) -> str | None`, a completion that solves the task, for `routed-rl env try` and `env check`; None if unknown;
    - `all_settings() -> list[dict]`, the settings that `env check --all` goes through.
    """

    def tasks(self, split: str, seed: int) -> Iterator[Task]:
        """Yield the tasks of `split` ("train" or "eval"), the same for the same seed; there may be endlessly many."""
        ...

    def score(self, task: Task, completion: str) -> Score:
        """Score the text of one completion. If this raises an error, the completion counts as a failure and is not paid 0."""
        ...


class Episode:
    """One conversation about one task. A new object is made for each conversation. A subclass must define `step`; everything else
    has the defaults below.

    An error raised in any method ends the episode; it counts as a failure and is not paid 0.
    """

    tools: Sequence[Mapping[str, Any]] = ()
    """JSON schemas of tools, which the chat template shows to the model; read after `start`. `step` must find the calls of tools
    in the model's text itself."""
    max_turns: int = 8
    """The number of turns of the model after which `cut` ends the episode; read after `start`."""

    def start(self, task: Task) -> list[Message] | None:
        """Return the messages that the model sees first, or None to show the task's prompt."""
        return None

    def step(self, messages: list[Message]) -> list[Message] | Score:
        """Answer the model's turn, which is the last of `messages` (the whole conversation). Return further messages of the role
        user or tool, or return the score, which ends the episode."""
        raise NotImplementedError(f"{type(self).__name__} needs the method step(messages)")

    def cut(self, messages: list[Message]) -> Score:
        """Score an episode whose turns or tokens ran out before `step` gave a score; `messages` ends with the model's last
        turn."""
        return Score(0.0, flags=["cut"])


@runtime_checkable
class EpisodicEnvironment(Protocol):
    """The contract of an environment of several turns. It may have the same further attributes as an `Environment`, but its
    `gold(task)` returns a list, the model's turns."""

    def tasks(self, split: str, seed: int) -> Iterator[Task]:
        """Yield tasks as `Environment.tasks` does; their prompts are chat messages."""
        ...

    def episode(self) -> Episode:
        """Return a new episode. Many episodes may be in progress at once."""
        ...


AnyEnvironment = Environment | EpisodicEnvironment


def has_episodes(environment: object) -> bool:
    """Whether completions are played (method `episode`) rather than scored (method `score`). An environment that has both methods
    is played."""
    return callable(getattr(environment, "episode", None))
