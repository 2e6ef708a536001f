"""The interface of a tracker, to which a run reports its progress. `opening.py` chooses and opens trackers."""

from pathlib import Path
from typing import Any


class Tracker:
    """Gets reports from a run. This base class ignores them; it is used if no tracker was asked for."""

    def begin(self, step: int) -> None:
        """Called when the training begins, or when it continues after `step`."""

    def row(self, row: dict[str, Any]) -> None:
        """Called with each row of `metrics.jsonl`."""

    def checkpoint(self, step: int) -> None:
        """Called when the checkpoint of `step` is complete."""

    def halted(self, record: dict[str, Any]) -> None:
        """Called when the monitor has halted the run, with the content of `HALTED.json`."""

    def report(self, page: Path) -> None:
        """Called when the report `page` was written."""

    def finish(self, exit_code: int) -> None:
        """Called when the command ends."""
