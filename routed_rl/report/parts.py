"""What a page is made of; `page.html` knows how each part looks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from routed_rl.report.data import Series

TABLE_ROWS = 12


@dataclass(frozen=True)
class Table:
    """The first column names the rows. `tinted`: cells from -1 to 1 get a colour too."""

    caption: str
    columns: list[str]
    rows: list[list[Any]]
    tinted: bool = False
    marked: str | None = None
    """The row that the story is about."""


@dataclass(frozen=True)
class Chart:
    """A picture, what it shows in words, and its numbers."""

    name: str
    title: str
    words: str
    svg: Markup
    table: Table


@dataclass(frozen=True)
class Section:
    """`lead` says what is to be seen; `empty` why there is nothing."""

    name: str
    title: str
    lead: str = ""
    empty: str = ""
    charts: list[Chart] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    completions: list[dict[str, Any]] = field(default_factory=list)
    texts: list[tuple[str, str]] = field(default_factory=list)
    """(title, text), folded."""
    commands: list[str] = field(default_factory=list)


def by_step(caption: str, lines: dict[str, Series]) -> Table:
    """Some steps of several series, evenly spread, the last one among them; nothing after a series ended."""
    steps = sorted({int(step) for series in lines.values() for step in series.steps})
    count = min(len(steps), TABLE_ROWS)
    chosen = [steps[round(place * (len(steps) - 1) / max(count - 1, 1))] for place in range(count)]
    rows = [[step, *(series.at(step) if len(series.steps) and step <= series.steps[-1] else None for series in lines.values())]
            for step in chosen]
    return Table(caption, ["step", *lines], rows)
