"""The first line of a command, which on a terminal counts the seconds until the command shows something else."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def waiting(text: str, *, count: bool = True) -> Iterator[None]:
    """Print `text` while the code inside the block loads. On a terminal, the seconds are counted behind `text` until the first
    output, unless `count` is False. Elsewhere `text` is a plain line."""
    if not (count and sys.stdout.isatty()):
        print(text, flush=True)
        yield
        return
    counter, streams = _Counter(text, sys.stdout), (sys.stdout, sys.stderr)
    sys.stdout, sys.stderr = proxies = tuple(_Watched(each, counter) for each in streams)
    try:
        yield
    finally:
        counter.end()
        if (sys.stdout, sys.stderr) == proxies:
            sys.stdout, sys.stderr = streams


class _Counter:
    def __init__(self, text: str, stream: Any) -> None:
        self.text, self.stream, self.process = text, stream, os.getpid()
        self.lock, self.ended = threading.Lock(), threading.Event()
        self.began = time.monotonic()
        self._show("")
        threading.Thread(target=self._count, daemon=True).start()

    def end(self) -> None:
        """Stop counting and end the line. In a forked process this does nothing, because the line belongs to the parent
        process."""
        if self.ended.is_set() or os.getpid() != self.process:
            return
        with self.lock:
            if not self.ended.is_set():
                self.ended.set()
                self._show("\n")

    def _count(self) -> None:
        while not self.ended.wait(1):
            with self.lock:
                if not self.ended.is_set():
                    self._show(f" ({time.monotonic() - self.began:.0f} s)")

    def _show(self, more: str) -> None:
        self.stream.write(more if more == "\n" else f"\r{self.text}{more}")
        self.stream.flush()


class _Watched:
    """A stream that ends the counting when the first text is written to it."""

    def __init__(self, stream: Any, counter: _Counter) -> None:
        self._stream, self._counter = stream, counter

    def write(self, text: str) -> int:
        self._counter.end()
        return self._stream.write(text)

    def writelines(self, lines: Any) -> None:
        self._counter.end()
        self._stream.writelines(lines)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
