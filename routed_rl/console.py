"""Output for people: lines, tables, and a progress bar with rate and remaining time (or lines, if there is no terminal)."""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from routed_rl.errors import Unread


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise Unread


console = _Console(highlight=False, soft_wrap=True, emoji=False, markup=False)
"""The console on which everything is printed. It shows every text unchanged, because names and settings may have brackets and
colons, which rich would read as markup."""
SECONDS_BETWEEN_LINES = 10.0
WIDTH_OF_A_PIPE = 1000


class Advance(Protocol):
    """Function that reports progress: `done` of `total` units, with a note such as the mean reward."""

    def __call__(self, done: int, total: int, note: str = "") -> None: ...


def say(text: str) -> None:
    """Print one line at once."""
    console.print(text, markup=False)


@contextmanager
def progress(what: str, unit: str) -> Iterator[Advance]:
    """Yield a function that shows progress: on a terminal as a bar, elsewhere as a line every ten seconds and at the end. `what`
    names the work, and `unit` the things that are counted."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TextColumn(unit),
               TextColumn("{task.fields[rate]}"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
               TextColumn("{task.fields[note]}", markup=False))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task, skipped = bar.add_task(what, total=None, rate="", note=""), None
        started = last = time.perf_counter()

        def advance(done: int, total: int, note: str = "") -> None:
            nonlocal last, skipped
            skipped, now = done - 1 if skipped is None else skipped, time.perf_counter()
            rate = (done - skipped) / max(now - started, 1e-9)
            bar.update(task, completed=done, total=total, rate=f"{rate:.2f}/s", note=note)
            if not console.is_terminal and (done >= total or now - last >= SECONDS_BETWEEN_LINES):
                last = now
                left = f", {(total - done) / rate:.0f} s left" if rate and done < total else ""
                say(f"{what}: {done}/{total} {unit}, {rate:.2f}/s{left}{'  ' + note if note else ''}")

        yield advance


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table in Markdown. Cells must be escaped already."""
    head, *lines = ["| " + " | ".join(row) + " |" for row in [columns, *rows]]
    return [head, "|" + "---|" * len(columns), *lines]


def table(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    """Print a table. Numbers are right-aligned with two decimals; None is shown as a dash."""
    grid = Table(title=title, title_justify="left")
    for position, column in enumerate(columns):
        numeric = bool(rows) and isinstance(rows[0][position], (int, float))
        grid.add_column(column, justify="right" if numeric else "left")
    for row in rows:
        grid.add_row(*("-" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value) for value in row))
    # A pipe has no width: neither a table nor its title is clipped or broken there.
    pipe = not console.is_terminal
    console.print(grid, width=WIDTH_OF_A_PIPE if pipe else None, soft_wrap=pipe, crop=False)
