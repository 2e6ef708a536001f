"""The interface of a tracker, to which a run reports what it does. `opening.py` chooses and opens trackers."""

from pathlib import Path
from typing import Any


class Tracker:
    """Gets reports of what a run does. This base class ignores them; it is used where no tracker was asked for."""

    def begin(self, step: int) -> None:
        """Called when the training begins, or goes on after `step`."""

    def row(self, row: dict[str, Any]) -> None:
        """Called with each row of `metrics.jsonl`."""

    def checkpoint(self, step: int) -> None:
        """Called when the checkpoint of `step` is whole."""

    def halted(self, record: dict[str, Any]) -> None:
        """Called when the monitor has halted the run, with the content of `HALTED.json`."""

    def report(self, page: Path) -> None:
        """Called when the report was written."""

    def finish(self, exit_code: int) -> None:
        """Called when the command ends."""
