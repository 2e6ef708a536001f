"""Who else is told what a run does: the interface of a tracker. `opening.py` chooses and opens them."""

from pathlib import Path
from typing import Any


class Tracker:
    """Told what a run does; this one, which is there when nothing was asked for, does nothing with it."""

    def begin(self, step: int) -> None:
        """The training begins, or goes on after `step`."""

    def row(self, row: dict[str, Any]) -> None:
        """A row of `metrics.jsonl`."""

    def checkpoint(self, step: int) -> None:
        """The checkpoint of `step` is whole."""

    def halted(self, record: dict[str, Any]) -> None:
        """The monitor halted the run: the content of `HALTED.json`."""

    def report(self, page: Path) -> None:
        """The report was written."""

    def finish(self, exit_code: int) -> None:
        """The command ends."""
