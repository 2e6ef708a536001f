"""Scoring that begins while other completions are still generated, or while a step trains."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from threading import Lock, Thread

from routed_rl.envs.core import Score, Task
from routed_rl.envs.faults import Failure

Pair = tuple[Task, str]
Outcome = Score | Failure
ScoreMany = Callable[[Sequence[Pair]], Sequence[Outcome]]
"""Function that returns the outcomes of completions in their order; another thread may call it at the same time."""


class Early:
    """Outcomes of scorings that were begun ahead, by task and text. If a completion is asked for with another text than the one
    that was handed over, it has no outcome."""

    def __init__(self) -> None:
        self._begun: dict[int, list[tuple[Pair, Future[Outcome]]]] = defaultdict(list)
        self._lock = Lock()

    def begin(self, score_many: ScoreMany, pairs: Sequence[Pair]) -> None:
        """Begin to score these completions with `score_many`, in a thread that does not keep the process alive."""
        futures: list[Future[Outcome]] = [Future() for _ in pairs]
        with self._lock:
            for pair, future in zip(pairs, futures, strict=True):
                self._begun[id(pair[0])].append((pair, future))

        def run() -> None:
            try:
                for future, outcome in zip(futures, score_many(pairs), strict=True):
                    future.set_result(outcome)
            except BaseException as error:  # whoever takes it tells
                for future in futures:
                    future.set_exception(error)

        Thread(target=run, daemon=True, name="early scores").start()

    def take(self, pairs: Sequence[Pair]) -> list[Outcome | None]:
        """The outcome of each completion, for which this call waits; None for one that was not begun. Any other scoring that was
        begun for the same tasks is forgotten."""
        with self._lock:
            begun = {key: self._begun.pop(key, []) for key in {id(task) for task, _ in pairs}}
        found: list[Future[Outcome] | None] = []
        for task, text in pairs:
            fitting = next((each for each in begun[id(task)] if each[0][1] == text), None)
            if fitting is not None:
                begun[id(task)].remove(fitting)
            found.append(fitting and fitting[1])
        return [future and future.result() for future in found]
