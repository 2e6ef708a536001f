"""`EnvironmentProcess`: an environment in a process of its own, so that crashes, alarms and clashing libraries stay there.

It keeps accidents out of the trainer; it is no jail: the process has the user's rights. Code that a model wrote belongs in
`routed_rl.sandbox`. What an environment prints is not shown; its last line is part of the message when it dies.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from routed_rl import errors
from routed_rl.envs import wire
from routed_rl.envs.batches import Batches
from routed_rl.envs.child import Child
from routed_rl.envs.core import Episode, Failure, Score, Task
from routed_rl.envs.isolated_episode import IsolatedEpisode
from routed_rl.envs.isolation import Isolation
from routed_rl.errors import TaskError

START_S = 300.0
"""Seconds to import and build an environment."""
TASKS_S = 300.0
"""Seconds for a bundle of tasks, or for a gold completion."""
BUNDLE = 64
"""Tasks asked for at once; the first time only `FIRST_BUNDLE`, since often one is all that is wanted."""
FIRST_BUNDLE = 4
STARTS = 5
"""How often a process may die while it starts again, before the environment is given up."""
log = logging.getLogger("routed_rl.envs")


class EnvironmentProcess:
    """Looks like an `Environment`; `score_many` is what makes it quick.

    Killed, hanging or crashed processes are started anew and each restart is logged. Task streams go on where they were,
    since they follow from split and seed. A completion in work at a crash goes again once, then it counts as failed.
    """

    def __init__(self, name: str, path: str, arguments: dict[str, Any], stages: list[dict[str, Any]] | None = None,
                 isolation: Isolation | None = None) -> None:
        """Starts the first process and does not wait for it; `description` does."""
        self.name, self.isolation, self.restarts = name, isolation or Isolation(), 0
        self.variant: str | None = None
        self.episode: Callable[[], Episode] | None = None
        """A new episode, once `description` has been read and says that the environment is played."""
        self._numbers = itertools.count(1)
        self._setup = {"name": name, "path": path, "arguments": arguments, "stages": stages}
        self._description: dict[str, Any] | None = None
        self._lock = threading.RLock()
        self._begin()

    def _begin(self) -> None:
        self._owner = os.getpid()
        self._children: list[Child | None] = [None] * self.isolation.workers
        self._ready: set[int] = set()
        weakref.finalize(self, _kill, self._children, self._owner)
        self._children[0] = Child(self._setup, self.isolation.python)

    @property
    def description(self) -> dict[str, Any]:
        """What the class is, once the first process is ready; raises what building it raised."""
        with self._lock:
            if self._description is None:
                self.child(0)
            assert self._description is not None
            return self._description

    def rebuild(self, arguments: dict[str, Any]) -> None:
        """Become the environment of other arguments, in the same process: imports are not made again."""
        with self._lock:
            self._setup = self._setup | {"arguments": arguments}
            self._description = None
            first = self._children[0] if 0 in self._ready else None
            for child in self._children:
                if child is not None and child is not first:
                    child.kill()
            self._children[:] = [first] + [None] * (len(self._children) - 1)
            self._ready.clear()
            if first is not None:
                first.send({"ask": "build", "arguments": arguments})

    def tasks(self, split: str, seed: int) -> Iterator[Task]:
        """As the environment makes them; data that is not JSON-like comes sealed. TaskError if they cannot be made."""
        start, count = 0, FIRST_BUNDLE
        while True:
            reply = self._ask({"ask": "tasks", "split": split, "seed": seed, "start": start, "count": count}, "making tasks")
            try:
                bundle = [wire.unpack_task(task, sealed=True) for task in reply["tasks"]]
            except (wire.WireError, KeyError, TypeError) as error:
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
        """In the order of `pairs`, over all workers, one bundle in flight for each."""
        with self._lock:
            return Batches(self, pairs, self.isolation.timeout_s).run()

    def gold(self, task: Task) -> str | list[str] | None:
        """What the environment offers as a solution, a list of turns where it is played; None where it offers none."""
        if not self.description["gold"]:
            return None
        reply = self._ask({"ask": "gold", "task": wire.pack_task(task)}, "making a gold completion")
        gold: Any = reply.get("gold")
        if gold is None and "error" not in reply:
            return None
        turns = gold if isinstance(gold, list) else [gold]
        if not turns or not all(isinstance(turn, str) for turn in turns):
            raise TaskError(f"environment {self.name}: {reply.get('error') or 'gold(task) is neither text nor a list of texts'}")
        return gold

    def play(self, request: dict[str, Any]) -> dict[str, Any]:
        """One answer to an episode's turn; TaskError where the process gives none in time or is lost over it twice."""
        return self._ask(request, "playing an episode", self.isolation.timeout_s)

    def close(self) -> None:
        """End every process now; the next use starts them again."""
        with self._lock:
            _kill(self._children, self._owner)
            self._children[:] = [None] * len(self._children)
            self._ready.clear()

    def child(self, slot: int) -> Child:
        """The process in `slot`, started and ready."""
        if os.getpid() != self._owner:  # forked: the processes and pipes are the other one's
            self._begin()
        reason = ""
        for _ in range(STARTS):
            child = self._children[slot] = self._children[slot] or Child(self._setup, self.isolation.python)
            if slot in self._ready:
                return child
            reply = child.receive(START_S)
            if isinstance(reply, dict) and isinstance(description := reply.get("ready"), dict):
                self._ready.add(slot)
                if self._description is None:
                    self._description, self.variant = description, description.get("variant")
                    if description.get("episodes"):
                        self.episode = lambda: IsolatedEpisode(self)
                return child
            if isinstance(reply, dict) and isinstance(reply.get("error"), list):
                self.close()
                kind, message = reply["error"]
                raise getattr(errors, str(kind), TaskError)(str(message))
            reason = self.bury(slot, "while it started", started=False)
        raise TaskError(f"env.{self.name}: its process {reason} while it was built, {STARTS} times; see whether it can be "
                        f"built with env.{self.name}.isolate=false")

    def next_number(self) -> int:
        """Of a request: what is in work is said under it."""
        return next(self._numbers)

    def start_all(self) -> None:
        """Begin every process that is missing, side by side."""
        for slot, child in enumerate(self._children):
            if child is None:
                self._children[slot] = Child(self._setup, self.isolation.python)

    def bury(self, slot: int, doing: str, started: bool = True) -> str:
        """End the process in `slot`, say so in the log, and return why."""
        child = self._children[slot]
        assert child is not None
        reason = child.dead or "sent no answer"
        child.kill()
        self._children[slot] = None
        self._ready.discard(slot)
        self.restarts += started
        log.warning("environment %s: its process %s %s; restart %d", self.name, reason, doing, self.restarts)
        return reason

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


def _kill(children: list[Child | None], owner: int) -> None:
    if os.getpid() == owner:
        for child in children:
            if child is not None:
                child.kill()
