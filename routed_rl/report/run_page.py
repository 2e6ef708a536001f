"""Makes the page of a run from the files of its folder alone."""

from pathlib import Path

from routed_rl.artifacts import RunFolder
from routed_rl.report.answer import sentences, status
from routed_rl.report.answers import answers
from routed_rl.report.data import read_run
from routed_rl.report.figures import panels
from routed_rl.report.outcomes import completions, models, pay, verdicts
from routed_rl.report.page import write_page
from routed_rl.report.parts import Page
from routed_rl.report.quarantine import control, cosines, layers, pushes
from routed_rl.report.record import commands, settings
from routed_rl.report.story import table

SECTIONS = (models, answers, completions, pushes, pay, cosines, layers, control, verdicts, commands, settings)
"""The sections, in the order of the page."""


def write_report(run: RunFolder, out: Path | None = None, *, every_s: int | None = None) -> Path:
    """Write the page of a run to `out`, by default RUN/report.html; returns the path of the page. With `every_s` a browser
    reloads the page after this many seconds."""
    data = read_run(run)
    page = Page("Report of a routed_rl run", run.path.name, status(data), panels(data), sentences(data),
                table(data) if data.rows else None, [build(data) for build in SECTIONS], "the files of the run folder",
                alarm=data.halted is not None, every_s=every_s)
    return write_page(page, out or run.report)
