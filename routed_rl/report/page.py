"""From a run folder to `report.html`. Texts by models and users may be hostile, so the template escapes everything."""

import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from routed_rl import __version__
from routed_rl.artifacts import RunFolder, write_text
from routed_rl.report.data import read_run
from routed_rl.report.outcomes import completions, models, pay, verdicts
from routed_rl.report.quarantine import control, cosines, layers, pushes
from routed_rl.report.record import commands, settings
from routed_rl.report.story import sentence, table

SECTIONS = (pushes, models, completions, pay, cosines, layers, control, verdicts, commands, settings)
"""The sections, in the order of the page."""


def write_report(run: RunFolder, out: Path | None = None) -> Path:
    """Write the page of a run to `out`, RUN/report.html by default; returns its path."""
    data = read_run(run)
    pages = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
                        trim_blocks=True, lstrip_blocks=True)
    pages.filters["cell"] = cell
    text = pages.get_template("page.html.jinja").render(
        run=data, sentence=sentence(data), table=table(data) if data.rows else None,
        sections=[build(data) for build in SECTIONS], version=__version__, made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"))
    file = out or run.report
    write_text(file, text.encode(errors="backslashreplace").decode())  # JSON allows half a surrogate pair, UTF-8 does not
    return file


def cell(value: Any) -> str:
    """A value as text for a table: with two decimals, three below a hundredth, a true minus sign, and a dash for a missing
    value."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, float):
        digits = ".3g" if abs(value) >= 999.5 or 0 < abs(value) < 0.0005 else ".3f" if 0 < abs(value) < 0.00995 else ".2f"
        return f"{value:{digits}}".replace("-", "\N{MINUS SIGN}")
    return str(value)
