"""What processes of the run's own write, told to the tracker while they do."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from routed_rl.artifacts import RunFolder
from routed_rl.tracking import MetricsFile, Tracker


@contextmanager
def following(run: RunFolder, tracker: Tracker, every_s: float = 1.0) -> Iterator[None]:
    """Tell each row of the metrics, and each checkpoint, that was not there at the beginning; all of them at the end."""
    file, known, over = MetricsFile(run.metrics), set(run.steps()), threading.Event()
    file.new_rows()

    def tell() -> None:
        for row in file.new_rows():
            tracker.row(row)
        for step in run.steps():
            if step not in known:
                known.add(step)
                tracker.checkpoint(step)

    def follow() -> None:
        while not over.wait(every_s):
            tell()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        tell()
