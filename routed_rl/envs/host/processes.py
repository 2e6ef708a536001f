"""The processes of one environment, by slot: started when they are needed, watched, and started anew where one was lost."""

from __future__ import annotations

import logging
import os
import sys
import threading
import weakref
from typing import Any

from routed_rl import errors
from routed_rl.envs.host.child import Child
from routed_rl.envs.host.isolation import Isolation
from routed_rl.errors import TaskError

START_S = 300.0
"""Seconds to import and build an environment."""
STARTS = 5
"""How often a process may die while it starts again, before the environment is given up."""
log = logging.getLogger(__name__)


class Processes:
    """Killed, hanging or crashed processes are started anew and each restart is logged."""

    def __init__(self, name: str, setup: dict[str, Any], isolation: Isolation) -> None:
        """Starts the first process and does not wait for it; `description` does."""
        self.name, self.isolation, self.restarts = name, isolation, 0
        self._setup = setup
        self._description: dict[str, Any] | None = None
        self._lock, self._counting = threading.RLock(), threading.Lock()
        if sys.platform != "linux":
            log.warning("environment %s: on %s, processes that it detaches from its own outlive it", name, sys.platform)
        self._begin()

    def _begin(self) -> None:
        self._owner = os.getpid()
        self._children: list[Child | None] = [None] * self.isolation.workers
        self._ready: set[int] = set()
        weakref.finalize(self, _kill, self._children, self._owner)
        self._children[0] = self._start()

    def _start(self) -> Child:
        # A variable with a token is not for every environment, but for those that are told its name.
        every: list[Any] = [self._setup["arguments"], *(self._setup["stages"] or ())]
        told = {str(settings.get("token_env")) for settings in every}
        return Child(self._setup, self.isolation.python, told)

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
            same_token = self._setup["arguments"].get("token_env") == arguments.get("token_env")
            first = self._children[0] if 0 in self._ready and same_token else None
            self._setup, self._description = self._setup | {"arguments": arguments}, None
            _kill([child for child in self._children if child is not first], self._owner)
            self._children[:] = [first] + [None] * (len(self._children) - 1)
            self._ready.clear()
            if first is not None:
                first.send({"ask": "build", "arguments": arguments})

    def child(self, slot: int) -> Child:
        """The process in `slot`, started and ready."""
        if os.getpid() != self._owner:  # forked: the processes and pipes are the other one's
            self._begin()
        reason = ""
        for _ in range(STARTS):
            child = self._children[slot] = self._children[slot] or self._start()
            if slot in self._ready and child.process.poll() is None:
                return child
            reply = child.receive(START_S)
            if isinstance(reply, dict) and "ready" in reply:
                self._ready.add(slot)
                child.pid = reply["ready"]["pid"]
                self._description = self._description or reply["ready"]
                return child
            if isinstance(reply, dict) and isinstance(reply.get("error"), list):
                self.close()
                kind, message = reply["error"]
                raise getattr(errors, str(kind), TaskError)(str(message))
            reason = self.bury(slot, "while it waited" if slot in self._ready else "while it started", slot in self._ready)
        raise TaskError(f"env.{self.name}: its process {reason} while it was built, {STARTS} times; see whether it can be "
                        f"built with env.{self.name}.isolate=false")

    def start_all(self) -> None:
        """Begin every process that is missing, side by side."""
        self._children[:] = [child or self._start() for child in self._children]

    def bury(self, slot: int, doing: str, started: bool = True) -> str:
        """End the process in `slot`, say so in the log, and return why."""
        child = self._children[slot]
        assert child is not None
        reason = child.dead or "sent no answer"
        child.kill()
        with self._counting:
            self._children[slot] = None
            self._ready.discard(slot)
            self.restarts += started
            log.warning("environment %s: its process %s %s; restart %d", self.name, reason, doing, self.restarts)
        return reason

    def close(self) -> None:
        """End every process now; the next use starts them again."""
        with self._lock:
            _kill(self._children, self._owner)
            self._children[:] = [None] * len(self._children)
            self._ready.clear()


def _kill(children: list[Child | None], owner: int) -> None:
    if os.getpid() == owner:
        for child in children:
            if child is not None:
                child.kill()
