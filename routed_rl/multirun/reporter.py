"""Shows the results of many runs: tables on the screen and in Markdown, figures, and where everything was written."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from routed_rl import console

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_COLUMNS = 8
"""The largest number of columns of a table on the screen. A table with more is shown with its rows as columns, so that many arms
stand below each other."""


class Table(NamedTuple):
    """A table whose cells are text."""

    title: str
    columns: list[str]
    rows: list[list[str]]

    def turned(self) -> "Table":
        """The same table with its rows as columns."""
        (first, *names), *columns = zip(self.columns, *self.rows, strict=True)
        return Table(self.title, [first, *names], [list(column) for column in columns])

    def markdown(self) -> str:
        lines = ["| " + " | ".join(row) + " |" for row in [self.columns, ["---"] * len(self.columns), *self.rows]]
        return f"{self.title}\n\n" + "\n".join(lines) + "\n"


def show(tables: Sequence[Table], notes: Sequence[str], folder: Path, written: Sequence[str],
         verdict: Sequence[str] = ()) -> None:
    """Show the verdict, the tables and the notes on the screen, and then where files were written: `written` are names of files
    in `folder`."""
    for sentence in verdict:
        console.say(sentence)
    for table in tables:
        console.table(*(table.turned() if len(table.columns) > MOST_COLUMNS else table))
    for note in notes:
        console.say(f"note: {note}")
    console.say(f"written: {folder}/{', '.join(written)}")


def panels(count: int, width: float) -> "tuple[Figure, list[Any]]":
    """A figure of `count` panels side by side, each `width` inches wide."""
    from matplotlib.figure import Figure  # loads slowly, and the runs come first

    figure = Figure(figsize=(1.2 + width * count, 3.5), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False)[0])
