"""What a person gets of many runs: tables on the screen and to paste, figures, and the place of all that was written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from routed_rl import console


@dataclass(frozen=True)
class Table:
    """Cells are text already."""

    title: str
    columns: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        lines = ["| " + " | ".join(row) + " |" for row in [self.columns, ["---"] * len(self.columns), *self.rows]]
        return f"{self.title}\n\n" + "\n".join(lines) + "\n"


def show(tables: Sequence[Table], notes: Sequence[str] = ()) -> None:
    for table in tables:
        console.table(table.title, table.columns, table.rows)
    for note in notes:
        console.say(f"note: {note}")


def written(folder: Path, names: Sequence[str]) -> None:
    console.say(f"written: {folder}/{', '.join(names)}")


def panels(count: int, width: float) -> tuple[Figure, list[Any]]:
    """A figure of `count` panels side by side, each `width` inches wide."""
    figure = Figure(figsize=(1.2 + width * count, 3.5), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False)[0])
