"""Reads the output of a jail. The amount that is read is bounded, and only well-formed output is used."""

import os
import selectors
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from routed_rl.sandbox.limits import Limits, Outcome, Reason

CHUNK = 1 << 16
WORD = 8


@dataclass
class Report:
    """The report of process 1 of the jail after the program has ended. inside.py says how it is written."""

    status: int
    cpu_s: float
    collected: dict[str, bytes]
    size: int
    """The number of bytes that the report takes at the end of the data in which it was found."""

    @classmethod
    def parse(cls, data: bytes | bytearray, names: Sequence[str]) -> "Report | None":
        """The report with which `data` ends; None unless it is complete. `names` are the files that the request wants, in its
        order."""
        size = int.from_bytes(data[-WORD:], "big", signed=True)
        if not 2 * WORD <= size <= len(data) - WORD:
            return None
        frame, numbers = memoryview(data)[-WORD - size:-WORD], []
        collected: dict[str, bytes] = {}
        place = 0
        for name in (None, None, *names):
            number = int.from_bytes(frame[place:place + WORD], "big", signed=True)
            place += WORD
            if name is None:
                numbers.append(number)
            elif number >= 0:
                collected[name] = bytes(frame[place:place + number])
                place += number
        return cls(numbers[0], numbers[1] / 1000, collected, size + WORD) if place == size else None

    def outcome(self, limits: Limits, *, out_of_memory: bool, stdout: bytes, stderr: bytes, wall_s: float) -> Outcome:
        reason: Reason = "exited"
        if out_of_memory:
            reason = "memory"
        elif os.WIFSIGNALED(self.status):
            over = os.WTERMSIG(self.status) == signal.SIGXCPU or self.cpu_s >= limits.cpu_s
            reason = "timeout" if over else "signal"
        code = os.WEXITSTATUS(self.status) if reason == "exited" else None
        return Outcome(code, reason, stdout, stderr, self.collected, wall_s)


@dataclass
class Reader:
    """Reads several descriptors to their ends. `caps` maps each descriptor to the largest number of bytes that are read from it,
    and `data` maps it to the bytes that were read.

    The memory of this object is bounded by the sum of the caps and one chunk, whatever the other side writes.
    """

    caps: dict[int, int]
    data: dict[int, bytearray] = field(default_factory=dict)

    def read(self, deadline: float, every_s: float | None = None, look: Callable[[], bool] = bool) -> Reason | None:
        """Read until all descriptors have ended and return None, or stop early and return the reason. The reason is "output" if a
        cap is exceeded, "timeout" at the time `deadline` (of `time.monotonic`), and "memory" if `look`, which is called every
        `every_s` seconds, returns true."""
        self.data = {descriptor: bytearray() for descriptor in self.caps}
        with selectors.DefaultSelector() as selector:
            for descriptor in self.caps:
                selector.register(descriptor, selectors.EVENT_READ)
            while selector.get_map():
                left = deadline - time.monotonic()
                if left <= 0:
                    return "timeout"
                for key, _ in selector.select(min(left, every_s or left)):
                    got = os.read(key.fd, min(CHUNK, self.caps[key.fd] - len(self.data[key.fd]) + 1))
                    self.data[key.fd] += got
                    if not got:
                        selector.unregister(key.fd)
                    elif len(self.data[key.fd]) > self.caps[key.fd]:
                        del self.data[key.fd][self.caps[key.fd]:]
                        return "output"
                if every_s and look():
                    return "memory"
        return None
