"""Scoring that begins while other completions are still generated, or while a step trains."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from threading import Lock

from routed_rl.envs.core import Score, Task
from routed_rl.envs.faults import Failure
from routed_rl.threads import in_thread

Pair = tuple[Task, str]
Outcome = Score | Failure
Begun = tuple[Pair, int, Future[list[Outcome]]]
"""A completion that is being scored: its task and text, its place in the batch that was given to `Early.begin`, and the future
outcomes of that batch."""
ScoreMany = Callable[[Sequence[Pair]], Sequence[Outcome]]
"""Function that returns the outcomes of completions in their order; another thread may call it at the same time."""


class Early:
    """Scorings that are begun early, while other completions are still generated or a step trains. `take` finds a scoring by the
    completion's `Task` object and exact text. If the text has changed since `begin`, there is no scoring to find."""

    def __init__(self) -> None:
        self._begun: dict[int, list[Begun]] = defaultdict(list)
        self._lock = Lock()

    def begin(self, score_many: ScoreMany, pairs: Sequence[Pair]) -> None:
        """Begin to score these completions with `score_many`, in a thread that does not keep the process alive."""
        outcomes = in_thread(lambda: [outcome for _, outcome in zip(pairs, score_many(pairs), strict=True)], "early scores")
        with self._lock:
            for place, pair in enumerate(pairs):
                self._begun[id(pair[0])].append((pair, place, outcomes))

    def take(self, pairs: Sequence[Pair]) -> list[Outcome | None]:
        """Wait for the outcomes of these completions and return them in order; None for a completion whose scoring was not begun.
        All other scorings that were begun for the same tasks are forgotten."""
        with self._lock:
            begun = {key: self._begun.pop(key, []) for key in {id(task) for task, _ in pairs}}
        found: list[Begun | None] = []
        for task, text in pairs:
            fitting = next((each for each in begun[id(task)] if each[0][1] == text), None)
            if fitting is not None:
                begun[id(task)].remove(fitting)
            found.append(fitting)
        return [None if each is None else each[2].result()[each[1]] for each in found]
