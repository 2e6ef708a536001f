"""What a person sees: lines, a progress bar with rate and time left (lines where there is no terminal), the table."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

console = Console(highlight=False, soft_wrap=True)
SECONDS_BETWEEN_LINES = 10.0


class Advance(Protocol):
    """Report that `done` of `total` are done, with a note such as the mean reward."""

    def __call__(self, done: int, total: int, note: str = "") -> None: ...


def say(text: str) -> None:
    """One line, at once."""
    console.print(text, markup=False)


@contextmanager
def progress(what: str, unit: str) -> Iterator[Advance]:
    """A bar on a terminal; elsewhere a line every ten seconds and at the end."""
    if console.is_terminal:
        with _bar(what, unit) as advance:
            yield advance
    else:
        yield _lines(what, unit)


@contextmanager
def _bar(what: str, unit: str) -> Iterator[Advance]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit),
               TextColumn("{task.fields[rate]}"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
               TextColumn("{task.fields[note]}"))
    with Progress(*columns, console=console, transient=True) as bar:
        task, started, skipped = bar.add_task(what, total=None, rate="", note=""), time.perf_counter(), None

        def advance(done: int, total: int, note: str = "") -> None:
            nonlocal skipped
            skipped = done - 1 if skipped is None else skipped
            rate = f"{(done - skipped) / max(time.perf_counter() - started, 1e-9):.2f}/s"
            bar.update(task, completed=done, total=total, rate=rate, note=note)

        yield advance


def _lines(what: str, unit: str) -> Advance:
    started = last = time.perf_counter()
    skipped: int | None = None

    def advance(done: int, total: int, note: str = "") -> None:
        nonlocal last, skipped
        skipped, now = done - 1 if skipped is None else skipped, time.perf_counter()
        if done < total and now - last < SECONDS_BETWEEN_LINES:
            return
        last = now
        rate = (done - skipped) / max(now - started, 1e-9)
        left = f", {(total - done) / rate:.0f} s left" if rate and done < total else ""
        say(f"{what}: {done}/{total} {unit}, {rate:.2f}/s{left}{'  ' + note if note else ''}")

    return advance


def table(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    """A rich table; numbers are right-aligned with two digits, None is a dash."""
    grid = Table(title=title, title_justify="left")
    for position, column in enumerate(columns):
        numeric = bool(rows) and isinstance(rows[0][position], (int, float))
        grid.add_column(column, justify="right" if numeric else "left")
    for row in rows:
        grid.add_row(*(_cell(value) for value in row))
    console.print(grid)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)
