"""Handles SIGTERM, SIGUSR1 and Ctrl-C in a process that trains. The first signal during a step lets this step end; then the run
writes a checkpoint and exits. A signal outside of a step, or a second signal, ends the run at once. In commands that do not
train, the first SIGTERM ends the command as Ctrl-C does."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from routed_rl.errors import Stopped

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
WAIT = b"\nends this step and writes a checkpoint; Ctrl-C once more ends at once, without one\n"
PARENT = "ROUTED_RL_PARENT"
"""Environment variable with the id of the process that started a worker. The worker must end when that process ends."""


class Terminated(KeyboardInterrupt):
    """SIGTERM in a command that does not train. It ends the command as Ctrl-C does, so that temporary folders are removed. It is
    no ordinary exception, because such an exception could be taken for a failure of a plug-in."""


@contextmanager
def terminating() -> Iterator[None]:
    """Inside the block, the first SIGTERM raises `Terminated`, and a second one ends the process at once. This has no effect
    outside of the main thread, and where SIGTERM is handled or ignored already."""
    here = threading.current_thread() is threading.main_thread()
    if not here or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminate(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
    raise Terminated


class Stop:
    """Whether this process was asked to stop, and whether it is in a step, which it may finish first."""

    def __init__(self) -> None:
        self.asked: int | None = None
        """Number of the signal that asked for the stop; None if none has come."""
        self._stepping = False

    @contextmanager
    def listening(self, signals: tuple[signal.Signals, ...] = (*SIGNALS, signal.SIGINT)) -> Iterator[None]:
        """Inside the block, this object handles `signals`. The method must be called in the main thread."""
        before = {each: signal.signal(each, self._handle) for each in signals}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)
            self.asked = None  # or whatever trains next in this process would stop after its first step

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """Inside the block, the first signal is only recorded in `asked`, so that the step can end."""
        self._stepping = True
        try:
            yield
        finally:
            self._stepping = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._stepping and self.asked is None:
            self.asked = number
            if number == signal.SIGINT:
                os.write(2, WAIT)
            return
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise Stopped(f"stopped by {signal.Signals(number).name}", number)


STOP = Stop()
"""The only instance in a process, because signal handlers belong to the process."""


@contextmanager
def saving_on_sigterm() -> Iterator[None]:
    """Inside the block, which trains, the first SIGTERM lets the step end and a checkpoint be written; a second one raises
    Stopped. This must be called in the main thread. Other signals stay as they are."""
    with STOP.listening((signal.SIGTERM,)), STOP.stepping():
        yield
