"""Turns the parts of a page into one HTML file. Texts that models or users wrote may be hostile, so the template escapes
everything."""

import math
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from routed_rl import __version__
from routed_rl.artifacts import write_text
from routed_rl.report.parts import Page, Table


def write_page(page: Page, file: Path) -> Path:
    """Write a page to `file`, which is replaced in one step, and return its path."""
    pages = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
                        trim_blocks=True, lstrip_blocks=True)
    filters: dict[str, Any] = pages.filters
    filters.update(cell=cell, cells=cells)
    text = pages.get_template("page.html.jinja").render(page=page, version=__version__,
                                                        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"))
    write_text(file, text.encode(errors="backslashreplace").decode())  # JSON allows half a surrogate pair, UTF-8 does not
    return file


def cells(table: Table) -> list[list[str]]:
    """The rows of a table as text. Columns whose titles are the same up to a comma (`hack, base`, `hack, policy`) show one
    quantity, so all their numbers have the same decimals."""
    titles = [title.partition(",")[0] or str(place) for place, title in enumerate(table.columns)]
    digits = {title: decimals(row[place] for row in table.rows for place, each in enumerate(titles) if each == title)
              for title in titles}
    return [[cell(value, digits[title]) for value, title in zip(row, titles, strict=True)] for row in table.rows]


def decimals(values: Iterable[Any]) -> int | None:
    """The number of decimals with which the numbers of one quantity are shown: two, or more if the largest number is small. None
    if they are shown as powers of ten."""
    known = [abs(value) for value in values if isinstance(value, float) and math.isfinite(value)]
    largest = max(known, default=0.0)
    if not 0 < largest < 0.0995:
        return 2 if largest < 9999.5 else None
    return places if (places := 1 - math.floor(math.log10(largest))) <= 4 else None


def cell(value: Any, digits: int | None = -1) -> str:
    """A value as text, with a true minus sign, and a dash for a missing value. A number has `digits` decimals, or, if `digits` is
    -1, as many as `decimals` finds for this number alone."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, float):
        digits = decimals([value]) if digits == -1 else digits
        text = f"{value:.2e}" if digits is None and value else f"{value:.{digits or 0}f}"
        return text.replace("-", "\N{MINUS SIGN}")
    return str(value)
