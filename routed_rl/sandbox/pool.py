"""Jails started ahead. Each is still used once."""

from __future__ import annotations

import queue
import threading
from typing import Protocol

from routed_rl.errors import SandboxError
from routed_rl.sandbox.core import Sandbox
from routed_rl.sandbox.jail import Jail
from routed_rl.sandbox.limits import Limits, Outcome, Request

DISK_MB = Limits().disk_mb


class Starter(Protocol):
    """A sandbox whose jails can be started before there is a program for them."""

    name: str
    confines_by: str

    def start(self, disk_mb: int) -> Jail: ...


class Pool(Sandbox):
    """Keeps `size` jails ready, in a thread of its own: the kernel ends a jail with the thread that started it."""

    def __init__(self, starter: Starter, size: int) -> None:
        if size < 1:
            raise SandboxError(f"a pool keeps at least 1 jail ready, got size={size}")
        self.starter, self.name, self.confines_by = starter, starter.name, starter.confines_by
        self.ready: queue.Queue[Jail | SandboxError] = queue.Queue()
        self.room, self.closing = threading.Semaphore(size), threading.Event()
        self.thread = threading.Thread(target=self.fill, name="sandbox pool", daemon=True)

    def fill(self) -> None:
        while self.room.acquire() and not self.closing.is_set():
            try:
                self.ready.put(self.starter.start(DISK_MB))
            except SandboxError as error:
                self.ready.put(error)

    def run_request(self, request: Request) -> Outcome:
        if request.limits.disk_mb != DISK_MB:
            jail = self.starter.start(request.limits.disk_mb)
        else:
            jail = self.ready.get()
            self.room.release()
        if isinstance(jail, SandboxError):
            raise jail
        with jail:
            return jail.run(request)

    def __enter__(self) -> Pool:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.room.release()
        self.thread.join()
        while not self.ready.empty():
            if isinstance(jail := self.ready.get(), Jail):
                jail.close()
