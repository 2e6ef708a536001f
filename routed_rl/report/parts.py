"""The parts of a page; `page.html` defines how each of them looks."""

from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from markupsafe import Markup

TABLE_ROWS = 12


@dataclass(frozen=True)
class Table:
    """A table whose first column names the rows. `tinted`: whether cells, which are from -1 to 1, get a colour too."""

    caption: str
    columns: list[str]
    rows: list[list[Any]]
    tinted: bool = False
    marked: str | None = None
    """Name of the row that is highlighted."""


@dataclass(frozen=True)
class Chart:
    """A picture, its content in words, and its numbers."""

    name: str
    title: str
    words: str
    svg: Markup
    table: Table


@dataclass(frozen=True)
class Section:
    """A section of the page. `lead` explains its content; `empty` is shown instead and says why there is none."""

    name: str
    title: str
    lead: str = ""
    empty: str = ""
    charts: list[Chart] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    completions: list[dict[str, Any]] = field(default_factory=list)
    texts: list[tuple[str, str]] = field(default_factory=list)
    """(title, text) of texts that are folded."""
    commands: list[str] = field(default_factory=list)


def by_step(caption: str, lines: dict[str, pd.Series]) -> Table:
    """A table of several series at some steps, which are evenly spread and include the last one. Cells are empty after the end of
    a series."""
    known = pd.DataFrame(lines).sort_index().ffill(limit_area="inside")
    count = min(len(known), TABLE_ROWS)
    chosen = [round(place * (len(known) - 1) / max(count - 1, 1)) for place in range(count)]
    return Table(caption, ["step", *lines], [list(row) for row in known.iloc[chosen].itertuples()])
