"""SIGTERM and SIGUSR1 to a run: it ends its step, writes a checkpoint and leaves. Outside of steps it leaves at once. A second
signal, or one that arrives in a process that does not listen, ends it at once, as it always did."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from routed_rl.errors import Stopped

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
PARENT = "ROUTED_RL_PARENT"
"""Environment variable: the process without which a worker of its has no reason to live."""


class Stop:
    """Whether this process was asked to stop, and whether it is at a place where that can wait."""

    def __init__(self) -> None:
        self.asked: int | None = None
        """The signal's number."""
        self._stepping = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals inside the block; in the main thread only."""
        self.asked = None
        before = {each: signal.signal(each, self._handle) for each in SIGNALS}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """Inside the block signals wait for whoever asks."""
        self._stepping = True
        try:
            yield
        finally:
            self._stepping = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._stepping and self.asked is None:
            self.asked = number
            return
        raise Stopped(f"stopped by {signal.Signals(number).name}", number)


STOP = Stop()
"""One for a process, as handlers of signals are."""
