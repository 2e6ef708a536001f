"""What a run leaves for people: the report, in its folder and at the tracker."""

from __future__ import annotations

from routed_rl import console
from routed_rl.artifacts import RunFolder
from routed_rl.pipeline.commands import command
from routed_rl.report import write_report
from routed_rl.tracking import Tracker


def publish(run: RunFolder, tracker: Tracker) -> None:
    """Write the report. It is made of files that stay, so its failure is said in one line and costs nothing else."""
    try:
        page = write_report(run)
    except Exception as error:
        console.say(f"the report was not written ({type(error).__name__}: {error}); try again: {command('report', run.path)}")
        return
    tracker.report(page)
