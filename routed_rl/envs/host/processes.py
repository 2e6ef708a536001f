"""The processes of one environment, each in a numbered slot. They are started when needed, watched, and restarted after a
loss."""

import itertools
import logging
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

from routed_rl import errors
from routed_rl.envs.build import TOKEN_ENV
from routed_rl.envs.faults import Failure
from routed_rl.envs.host.child import Child
from routed_rl.envs.host.isolation import Isolation
from routed_rl.envs.host.wire import unpack_failure
from routed_rl.errors import TaskError

SAY_S = 30.0
"""Seconds after which it is said that an environment is still being built; it is said again whenever the time has doubled."""
STARTS = 5
"""How often a process may die while it starts. After that the environment is given up."""
INNOCENT = 8
"""How often a process may die by SIGKILL during one request before the request counts as failed. A SIGKILL may come from outside,
so that the request need not be the cause."""
log = logging.getLogger(__name__)


class Processes:
    """Keeps the processes of an environment running. A process that was killed, hangs or has crashed is restarted, and each
    restart is logged."""

    def __init__(self, name: str, path: str, arguments: dict[str, Any], stages: list[dict[str, Any]] | None,
                 isolation: Isolation) -> None:
        """Starts the first process without waiting for it; `description` waits."""
        self.name, self.isolation = name, isolation
        self._setup: dict[str, Any] = {"ask": "build", "doing": "be built", "name": name, "path": path, "arguments": arguments,
                                       "stages": stages}
        self._description: dict[str, Any] | None = None
        self._lock = threading.RLock()
        if sys.platform != "linux":
            log.warning("environment %s: on %s, processes that it detaches from its own outlive it", name, sys.platform)
        self._restarts = [0] * isolation.workers
        self._begin()

    def _begin(self) -> None:
        self._owner = os.getpid()
        self._children: list[Child | None] = [None] * self.isolation.workers
        weakref.finalize(self, _kill, self._children, self._owner)
        self._children[0] = self._start()

    def _start(self) -> Child:
        # A variable with a token goes only to environments whose settings name it.
        named = [settings.get(TOKEN_ENV) for settings in (self._setup["arguments"], *(self._setup["stages"] or ()))]
        told = {str(name) for names in named for name in (names if isinstance(names, list) else [names])}
        return Child(self._setup, self.isolation, told)

    @property
    def restarts(self) -> int:
        return sum(self._restarts)

    @property
    def description(self) -> dict[str, Any]:
        """The worker's description of the environment, for which this property waits until the first process is ready. If
        building the environment failed, that error is raised."""
        with self._lock:
            if self._description is None:
                self.child(0)
            assert self._description is not None
            return self._description

    def rebuild(self, arguments: dict[str, Any], stages: list[dict[str, Any]] | None = None, *, name: str | None = None,
                path: str | None = None) -> None:
        """Build the environment again with other settings, in the same process, so that imports are not repeated; with `name` and
        `path`, build another environment."""
        with self._lock:
            same_token = self._setup["arguments"].get(TOKEN_ENV) == arguments.get(TOKEN_ENV)
            first, self._children[0] = self._children[0], None
            self.close()
            self.name, path = name or self.name, path or self._setup["path"]
            self._setup |= {"name": self.name, "path": path, "arguments": arguments, "stages": stages}
            self._description = None
            if first is not None and first.facts and same_token:
                self._children[0], first.facts = first, None
                first.send(self._setup)
            elif first is not None:
                first.kill()

    def child(self, slot: int) -> Child:
        """The process in `slot`. It is started if necessary, and this method waits until it is ready. TaskError if it dies
        `STARTS` times before that, or takes longer than `isolate.start_s`; if the environment cannot be built, the error of the
        build."""
        if os.getpid() != self._owner:  # after a fork: the processes and sockets belong to the parent
            self._begin()
        reason = ""
        for _ in range(STARTS):
            child = self._children[slot] = self._children[slot] or self._start()
            if child.facts and child.process.poll() is None:
                return child
            reply = child.receive(self.isolation.start_s, self._waiting())
            if isinstance(reply, dict) and "refused" in reply:
                child.kill()  # not `close`, for whose lock a thread of `score_many` would wait for ever
                self._children[slot] = None
                kind, message = reply["refused"]
                raise getattr(errors, str(kind), TaskError)(str(message))
            if isinstance(reply, dict) and "pid" in reply:
                child.facts = reply
                self._description = self._description or reply
                return child
            if child.hung:  # another process would take as long
                child.kill()
                self._children[slot] = None
                raise TaskError(f"env.{self.name}: its process {child.dead} to be built, and was killed; raise "
                                f"env.{self.name}.isolate.start_s, or see what it waits for with env.{self.name}.isolate=false")
            reason = self.bury(slot, "while it waited" if child.facts else "while it started")
        raise TaskError(f"env.{self.name}: its process {reason} while it was built, {STARTS} times; see whether it can be "
                        f"built with env.{self.name}.isolate=false")

    def _waiting(self) -> Callable[[float], None]:
        """Return a function that is called with the seconds for which a process was waited for, and says now and then that it is
        not ready yet."""
        due = SAY_S

        def tell(waited: float) -> None:
            nonlocal due
            if waited >= due:
                due = 2 * waited
                log.warning("environment %s: waiting for %.0f s until it is built; its process is killed after %g s "
                            "(env.%s.isolate.start_s)", self.name, waited, self.isolation.start_s, self.name)

        return tell

    def exchange(self, request: dict[str, Any], timeout_s: float, slot: int = 0) -> dict[str, Any] | Failure:
        """The answer of the process in `slot` to `request`, whose entry `doing` names its purpose. If the process dies, the
        request is repeated. A Failure is returned if the answer is an error, if the request took longer than `timeout_s`, or if
        the process died too often during the request: twice, or, by SIGKILL, more than `INNOCENT` times."""
        for deaths in itertools.count(1):
            child = self.child(slot)
            child.send(request)
            reply = child.receive(timeout_s)
            if isinstance(reply, dict):
                return unpack_failure(reply) if "error" in reply else reply
            reason = self.bury(slot, f"while it had to {request['doing']}")
            killed = child.process.returncode == -signal.SIGKILL
            if child.hung or deaths > (INNOCENT if killed else 1):
                times = "" if child.hung else f", {deaths} times"
                return Failure(f"failed to {request['doing']}: its process {reason}{times}")
        raise AssertionError

    def start_all(self) -> None:
        """Start every process that is not running, all at the same time."""
        self._children[:] = [child or self._start() for child in self._children]

    def bury(self, slot: int, doing: str) -> str:
        """End the process in `slot`, and return the reason why it cannot be used. The reason is logged with `doing`, such as
        "while it started". TaskError if `close` has ended the processes in the meantime: the process is then not started
        again."""
        child = self._children[slot]
        if child is None:
            raise TaskError(f"environment {self.name} was closed {doing}")
        reason = child.dead or "sent no answer"
        child.kill()
        self._children[slot] = None
        self._restarts[slot] += child.facts is not None
        log.warning("environment %s: its process %s %s; restart %d", self.name, reason, doing, self.restarts)
        return reason

    def close(self) -> None:
        """End every process now; the next use starts them again."""
        with self._lock:
            _kill(self._children, self._owner)


def _kill(children: list[Child | None], owner: int) -> None:
    if os.getpid() == owner:
        ended, children[:] = list(children), [None] * len(children)  # first, because threads that score see their process die
        for child in ended:
            if child is not None:
                child.kill()
