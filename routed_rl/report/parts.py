"""The parts of which a page of a report is made. `page.html.jinja` defines how each of them looks."""

from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from markupsafe import Markup

TABLE_ROWS = 12


@dataclass(frozen=True)
class Table:
    """A table whose first column names the rows. `tinted` says that the cells, which are numbers from -1 to 1, are also
    coloured."""

    caption: str
    columns: list[str]
    rows: list[list[Any]]
    tinted: bool = False
    marked: str | None = None
    """Name of the row that is highlighted."""


@dataclass(frozen=True)
class Chart:
    """A picture, a description of it in words, and a table with its numbers. `name` is its id in the page."""

    name: str
    title: str
    words: str
    svg: Markup
    table: Table


@dataclass(frozen=True)
class Bar:
    """A share, with its interval if it has one. `look` is the name of its colour in page.css."""

    label: str
    value: float
    interval: tuple[float, float] | None
    look: str


@dataclass(frozen=True)
class Panel:
    """A panel that shows shares on a scale from 0 to 1: as bars, or, if `level` is given, as points beside that level."""

    title: str
    words: str
    bars: list[Bar]
    level: float | None = None
    digits: int = 2
    """Number of decimals that are shown."""


@dataclass(frozen=True)
class Answer:
    """A model's answer to a prompt. `facts` says how it was scored, and `marks` are the flags that hold for it."""

    model: str
    text: str
    facts: str
    marks: list[str]


@dataclass(frozen=True)
class Asked:
    """A prompt, and the answer of each model to it."""

    environment: str
    prompt: str
    answers: list[Answer]


@dataclass(frozen=True)
class Section:
    """A section of the page. `lead` explains its content. `empty` is shown if the section has no content, and says why."""

    name: str
    title: str
    lead: str = ""
    empty: str = ""
    charts: list[Chart] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    completions: list[dict[str, Any]] = field(default_factory=list)
    texts: list[tuple[str, str]] = field(default_factory=list)
    """Pairs (title, text); the texts are folded until a reader opens them."""
    commands: list[str] = field(default_factory=list)
    answers: list[Asked] = field(default_factory=list)
    panels: list[Panel] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    """Sentences, one below the other."""


@dataclass(frozen=True)
class Page:
    """A whole page. `panels` are the picture at the top, and `sentences` say the most important results."""

    kind: str
    name: str
    status: str
    panels: list[Panel]
    sentences: list[str]
    table: Table | None
    sections: list[Section]
    source: str
    """The files from which the page was made, in words."""
    lead: str = ""
    """The sentence above the picture, if any."""
    alarm: bool = False
    """Whether the top of the page is highlighted as bad news."""
    every_s: int | None = None
    """Seconds after which a browser reloads the page; None: never."""


def by_step(caption: str, lines: dict[str, pd.Series]) -> Table:
    """A table of several series at some of their steps, which are evenly spread and include the last one. Cells are empty after
    the end of a series."""
    known = pd.DataFrame(lines).sort_index().ffill(limit_area="inside")
    count = min(len(known), TABLE_ROWS)
    chosen = [round(place * (len(known) - 1) / max(count - 1, 1)) for place in range(count)]
    return Table(caption, ["step", *lines], [list(row) for row in known.iloc[chosen].itertuples()])
