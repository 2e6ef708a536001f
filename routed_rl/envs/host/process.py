"""`EnvironmentProcess`: an environment in a process of its own, so that crashes, alarms and clashing libraries do not affect the
trainer.

It keeps accidents out of the trainer, but it is no jail: the process has the user's rights. Code that a model wrote belongs in
`routed_rl.sandbox`. The output of an environment is shown only with `show_output`; otherwise the message about a process that has
died quotes the last line that the process printed.
"""

import itertools
from collections.abc import Iterator, Sequence
from queue import SimpleQueue
from typing import Any

from routed_rl.envs.contract import is_gold
from routed_rl.envs.core import Episode, Score, Task
from routed_rl.envs.faults import ContractError, Failure, Reported
from routed_rl.envs.host.episodes import IsolatedEpisode
from routed_rl.envs.host.isolation import Isolation
from routed_rl.envs.host.processes import Processes
from routed_rl.envs.host.wire import WireError, pack_task, unpack_score, unpack_task
from routed_rl.errors import TaskError
from routed_rl.threads import in_threads

TASKS_S = 300.0
"""Seconds that making a task or a gold completion may take."""


class EnvironmentProcess(Processes):
    """An `Environment` that runs in processes of its own; `score_many` uses all of them.

    When a process is lost, a task stream continues at the same place, because the stream is determined by split and seed. A
    completion that was being scored when a process crashed is scored once more; if that fails too, it counts as failed.
    """

    def __init__(self, name: str, path: str, arguments: dict[str, Any], stages: list[dict[str, Any]] | None = None,
                 isolation: Isolation | None = None) -> None:
        self._numbers = itertools.count(1)
        """Counter for the numbers of task streams and episodes."""
        super().__init__(name, path, arguments, stages, isolation or Isolation())

    @property
    def variant(self) -> str | None:
        """The class's `variant`; None until a process is ready."""
        return self._description["variant"] if self._description else None

    @property
    def contexts(self) -> dict[str, str]:
        """The class's `contexts`; empty until a process is ready."""
        return self._description["contexts"] if self._description else {}

    @property
    def plugin_lines(self) -> dict[str, str]:
        """For each method of the plug-in, the place `FILE:LINE` of its definition; empty until a process is ready."""
        return self._description["lines"] if self._description else {}

    @property
    def episode(self) -> Any:
        """A function that makes a new episode; None if the environment has no episodes, or if no process is ready yet."""
        return self._new_episode if self._description and self._description["episodes"] else None

    def _new_episode(self) -> Episode:
        return IsolatedEpisode(next(self._numbers), lambda request: self._ask(request, "play", self.isolation.timeout_s))

    def tasks(self, split: str, seed: int) -> Iterator[Task]:
        """Yield the tasks that the environment makes. Task data that JSON would change comes as `Sealed`: only the environment's
        process can read it. TaskError if tasks cannot be made."""
        request = {"ask": "task", "reader": next(self._numbers), "split": split, "seed": seed}
        for place in itertools.count():
            reply = self._ask(request | {"place": place}, "make tasks")
            if "end" in reply:
                return
            try:
                yield unpack_task(reply.get("task"), sealed=True)
            except (ContractError, WireError) as error:
                raise TaskError(f"environment {self.name} sent a task that cannot be read: {error}") from None

    def score(self, task: Task, completion: str) -> Score:
        """Score one completion; TaskError if that fails."""
        result = self.score_many([(task, completion)])[0]
        if isinstance(result, Failure):
            raise Reported(result, self.name)
        return result

    def score_many(self, pairs: Sequence[tuple[Task, str]]) -> list[Score | Failure]:
        """The scores or failures in the order of `pairs`. Threads in the trainer pass the completions to the processes. Each
        process scores one completion at a time."""
        idle = SimpleQueue[int]()

        def score(pair: tuple[Task, str]) -> Score | Failure:
            slot = idle.get()
            try:
                return self._score(slot, *pair)
            finally:
                idle.put(slot)

        with self._lock:
            at_once = min(self.isolation.workers, len(pairs))
            if at_once <= 1:
                return [self._score(0, *pair) for pair in pairs]
            self.start_all()
            for slot in range(at_once):
                idle.put(slot)
            return in_threads(score, pairs, at_once)

    def _score(self, slot: int, task: Task, completion: str) -> Score | Failure:
        try:
            request = {"ask": "score", "doing": "score", "task": pack_task(task), "completion": completion}
            reply = self.exchange(request, self.isolation.timeout_s, slot)
            return reply if isinstance(reply, Failure) else unpack_score(reply.get("score"))
        except WireError as error:
            return Failure(f"could not be sent: {error}")

    def gold(self, task: Task) -> str | list[str] | None:
        """The environment's solution of a task: text, or a list of turns if it has episodes; None if it offers none."""
        if not self.description["gold"]:
            return None
        gold: Any = self._ask({"ask": "gold", "task": pack_task(task)}, "make a gold completion").get("gold")
        if not is_gold(gold):
            raise TaskError(f"environment {self.name} sent a gold completion that is no text")
        return gold

    def _ask(self, request: dict[str, Any], doing: str, timeout_s: float = TASKS_S) -> dict[str, Any]:
        """Send `request` to the first process and return the answer; `doing` names the purpose of the request in messages.
        TaskError if the process dies, takes longer than `timeout_s`, or answers with an error."""
        with self._lock:
            reply = self.exchange(request | {"doing": doing}, timeout_s)
        if isinstance(reply, Failure):
            raise Reported(reply, self.name)
        return reply
