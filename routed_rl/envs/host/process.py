"""`EnvironmentProcess`: an environment in a process of its own, so that crashes, alarms and clashing libraries stay there.

It keeps accidents out of the trainer; it is no jail: the process has the user's rights. Code that a model wrote belongs in
`routed_rl.sandbox`. What an environment prints is not shown; its last line is part of the message when it dies.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from routed_rl.envs.core import Episode, Failure, Score, Task
from routed_rl.envs.host.batches import Batches
from routed_rl.envs.host.episodes import IsolatedEpisode
from routed_rl.envs.host.isolation import Isolation
from routed_rl.envs.host.processes import Processes
from routed_rl.envs.host.wire import WireError, pack_task, unpack_task
from routed_rl.errors import TaskError

TASKS_S = 300.0
"""Seconds for a bundle of tasks, or for a gold completion."""
BUNDLE = 64
"""Tasks asked for at once; the first time only `FIRST_BUNDLE`, since often one is all that is wanted."""
FIRST_BUNDLE = 4


class EnvironmentProcess(Processes):
    """Looks like an `Environment`; `score_many` is what makes it quick.

    Task streams go on where they were when a process is lost, since they follow from split and seed. A completion in work at a
    crash goes again once, then it counts as failed.
    """

    def __init__(self, name: str, path: str, arguments: dict[str, Any], stages: list[dict[str, Any]] | None = None,
                 isolation: Isolation | None = None) -> None:
        self._numbers = itertools.count(1)
        super().__init__(name, {"name": name, "path": path, "arguments": arguments, "stages": stages}, isolation or Isolation())

    @property
    def variant(self) -> str | None:
        """The class's, once a process is ready."""
        return self._description["variant"] if self._description else None

    @property
    def episode(self) -> Any:
        """Makes a new episode where the environment is played; None where it is not, or not known yet."""
        return self._new_episode if self._description and self._description["episodes"] else None

    def _new_episode(self) -> Episode:
        return IsolatedEpisode(self.name, next(self._numbers), self._play)

    def tasks(self, split: str, seed: int) -> Iterator[Task]:
        """As the environment makes them; data that is not JSON-like comes sealed. TaskError if they cannot be made."""
        start, count = 0, FIRST_BUNDLE
        while True:
            reply = self._ask({"ask": "tasks", "split": split, "seed": seed, "start": start, "count": count}, "making tasks")
            try:
                bundle = [unpack_task(task, sealed=True) for task in reply.get("tasks", [])]
            except (WireError, TypeError) as error:
                raise TaskError(f"environment {self.name} sent a task that cannot be read: {error}") from None
            yield from bundle
            if reply.get("error"):
                raise TaskError(f"environment {self.name} {reply['error']}")
            if reply.get("end"):
                return
            start, count = start + len(bundle), BUNDLE

    def score(self, task: Task, completion: str) -> Score:
        """One score; TaskError where it failed. For many, `score_many` is quicker and returns failures."""
        result = self.score_many([(task, completion)])[0]
        if isinstance(result, Failure):
            raise TaskError(f"environment {self.name} {result.reason}")
        return result

    def score_many(self, pairs: Sequence[tuple[Task, str]]) -> list[Score | Failure]:
        """In the order of `pairs`, over all processes, one bundle in flight for each."""
        with self._lock:
            return Batches(self, pairs).run()

    def gold(self, task: Task) -> str | list[str] | None:
        """What the environment offers as a solution, a list of turns where it is played; None where it offers none."""
        if not self.description["gold"]:
            return None
        reply = self._ask({"ask": "gold", "task": pack_task(task)}, "making a gold completion")
        gold: Any = reply.get("gold")
        if gold is None and "error" not in reply:
            return None
        turns = gold if isinstance(gold, list) else [gold]
        if not turns or not all(isinstance(turn, str) for turn in turns):
            raise TaskError(f"environment {self.name}: {reply.get('error') or 'gold(task) is neither text nor a list of texts'}")
        return gold

    def _play(self, request: dict[str, Any]) -> dict[str, Any]:
        return self._ask(request, "playing an episode", self.isolation.timeout_s)

    def _ask(self, request: dict[str, Any], doing: str, timeout_s: float = TASKS_S) -> dict[str, Any]:
        """One answer of the first process; asked once more where it died over it, and not where it was too slow."""
        with self._lock:
            reason = ""
            for _ in range(2):
                child = self.child(0)
                child.send(request)
                reply = child.receive(timeout_s)
                if isinstance(reply, dict):
                    return reply
                reason = self.bury(0, f"while {doing}")
                if child.hung:
                    raise TaskError(f"environment {self.name}: its process {reason} while {doing}")
            raise TaskError(f"environment {self.name}: its process {reason} while {doing}, twice")
