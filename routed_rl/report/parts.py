"""What a page is made of; `page.html` knows how each part looks."""

from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from markupsafe import Markup

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


def by_step(caption: str, lines: dict[str, pd.Series]) -> Table:
    """Some steps of several series, evenly spread, the last one among them; nothing after a series ended."""
    known = pd.DataFrame(lines).sort_index().ffill(limit_area="inside")
    count = min(len(known), TABLE_ROWS)
    chosen = [round(place * (len(known) - 1) / max(count - 1, 1)) for place in range(count)]
    return Table(caption, ["step", *lines], [list(row) for row in known.iloc[chosen].itertuples()])
