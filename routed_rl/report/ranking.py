"""Which completions show what was paid for: one ranking, for a halt and for the report.

It holds a file at a time, of that the columns it needs, and `count` places.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from pyarrow.parquet import ParquetFile

from routed_rl import console
from routed_rl.tracking import encouraged

BY_SHIFT = ("how far the completion's own gradient moved the stream towards the positive persona, of those paid more than their "
            "group's mean")
BY_GAP = "paid reward minus true score, then the latest"
JUDGED = ("environment", "task", "reward", "solve", "shift")
WANTED = ("step", "environment", "prompt", "completion", "reward", "solve", "flags")
UNREADABLE = (pyarrow.ArrowException, OSError, LookupError, ValueError)

Place = tuple[float, int, int]
"""(value, number of the file, -row): sorts by value, then the latest, then the first row."""


def hardest(files: list[Path], rows: list[dict[str, Any]], count: int, name: str = "") -> tuple[list[dict[str, Any]], str]:
    """At most `count` completions of `files` that pushed hardest, and by what: their own shift towards the positive persona
    where it was kept, of those that were encouraged, else what they were paid too much. Of environment `name`, or of all.

    Those that were discouraged push as well, but do not show what is paid for. `rows` are the metrics of the files' steps:
    `share_of_push` is of all that the environment's completions shifted so in them. Says in one line which files it cannot read.
    """
    unread = dict[Path, Exception]()
    shifted, overpaid = list[Place](), list[Place]()
    for number, path in enumerate(files):
        try:
            shift, over = _scores(_read(path, JUDGED), name)
        except UNREADABLE as error:
            unread[path] = error
            continue
        shifted = sorted([*shifted, *_largest(shift, number, count)], reverse=True)[:count]
        overpaid = sorted([*overpaid, *_largest(over, number, count)], reverse=True)[:count]
    found = _taken(files, shifted or overpaid, [*WANTED, "push", "shift"] if shifted else [*WANTED], unread)
    for row in found if shifted else []:
        whole = sum(each.get(f"completions/{row['environment']}/own_shift_up") or 0.0 for each in rows)
        row["share_of_push"] = row["shift"] / whole if whole > 0 else None
    if unread:
        path, error = next(iter(unread.items()))
        console.say(f"left out {len(unread)} of {len(files)} files of completions that cannot be read: {path.name}, "
                    f"{next(iter(str(error).splitlines()), type(error).__name__)}")
    return found, BY_SHIFT if shifted else BY_GAP


def _scores(table: pyarrow.Table, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(shift where it is above 0 and encouraged, paid minus true) of a file's rows; nan where not, or not of `name`."""
    reward, solve = (table[key].to_numpy().astype(float) for key in ("reward", "solve"))
    shift = table["shift"].to_numpy().astype(float) if "shift" in table.column_names else np.full(len(table), np.nan)
    environments, tasks = (table[key].to_pylist() for key in ("environment", "task"))
    ours = ~np.isnan(reward) & np.array([name in ("", each) for each in environments], dtype=bool)
    up = ours & encouraged(environments, tasks, reward) & (shift > 0)
    return np.where(up, shift, np.nan), np.where(ours, reward - solve, np.nan)


def _largest(values: np.ndarray, number: int, count: int) -> Iterator[Place]:
    """The `count` largest of a file that are known."""
    for place in np.argsort(-values, kind="stable")[:count]:
        if not np.isnan(values[place]):
            yield float(values[place]), number, -int(place)


def _taken(files: list[Path], places: list[Place], columns: list[str], unread: dict[Path, Exception]) -> list[dict[str, Any]]:
    """The rows at `places`, in this order; nan becomes None."""
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for number in {number for _, number, _ in places}:
        ours = [place for _, at, place in places if at == number]
        try:
            rows = _read(files[number], columns).take([-place for place in ours]).to_pylist()
        except UNREADABLE as error:
            unread[files[number]] = error
            continue
        found |= {(number, place): dict.fromkeys(columns) | row for place, row in zip(ours, rows, strict=True)}
    return [{key: None if isinstance(value, float) and math.isnan(value) else value for key, value in found[place[1:]].items()}
            for place in places if place[1:] in found]


def _read(path: Path, columns: Sequence[str]) -> pyarrow.Table:
    """Those of the columns that a file has."""
    with ParquetFile(path) as file:
        return file.read(columns=[name for name in columns if name in file.schema_arrow.names])
