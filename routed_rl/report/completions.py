"""The completions that pushed hardest: what a halt kept, else what the run's files say."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pyarrow.parquet import ParquetFile

from routed_rl.report.data import RunData

SHOWN = 10
CONSIDERED = 40
"""So many that those which say the same can be shown as one."""
LONGEST = 3000
"""Characters of a prompt or completion."""


def hardest(run: RunData, folder: Path) -> tuple[str, list[dict[str, Any]]]:
    """How they were ranked, and the completions."""
    if run.halted and run.halted.get("completions"):
        return run.halted.get("completions_by", ""), _alike(_shown(row) for row in run.halted["completions"])
    by, ranked = _rank(sorted(folder.glob("step-*.parquet")))
    return by, _alike(_shown(ParquetFile(path).read().slice(place, 1).to_pylist()[0]) for path, place in ranked)


def _alike(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first of each text, with how many of these there are; a group of completions often says the same."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        first = found.setdefault((row["prompt"], row["completion"]), {**row, "times": 0})
        first["times"] += 1
    return list(found.values())[:SHOWN]


def _rank(files: list[Path]) -> tuple[str, list[tuple[Path, int]]]:
    """Rows with the largest push; where none was kept, those paid most above their true score, the latest first."""
    pushed, overpaid = list[tuple[float, int, int]](), list[tuple[float, int, int]]()
    for number, path in enumerate(files):
        push, over = _scores(path)
        pushed = sorted([*pushed, *_largest(push, number)], reverse=True)[:CONSIDERED]
        overpaid = sorted([*overpaid, *_largest(over, number)], reverse=True)[:CONSIDERED]
    by, chosen = ("push", pushed) if pushed else ("paid reward minus true score, then the latest", overpaid)
    return by, [(files[number], -place) for _, number, place in chosen]


def _scores(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(push, paid minus true) of a file's rows; nan where it is not known."""
    file = ParquetFile(path)
    table = file.read(columns=[name for name in ("push", "reward", "solve") if name in file.schema_arrow.names])
    columns = {name: table[name].to_numpy().astype(float) for name in table.column_names}
    return columns.get("push", np.full(len(table), np.nan)), columns["reward"] - columns["solve"]


def _largest(values: np.ndarray, number: int) -> Iterator[tuple[float, int, int]]:
    """(value, file, -row) of a file's largest that are above 0; they sort by value, then the latest, then the first row."""
    for place in np.argsort(-np.nan_to_num(values), kind="stable")[:CONSIDERED]:
        if values[place] > 0:
            yield float(values[place]), number, -int(place)


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    """A row with its flags read, its messages as text, nothing endless."""
    flags = row.get("flags") or {}
    known = {name: None if isinstance(value, float) and np.isnan(value) else value for name, value in row.items()}
    return {**known, "flags": json.loads(flags) if isinstance(flags, str) else flags, "prompt": _text(row["prompt"]),
            "completion": _text(row["completion"])}


def _text(text: str) -> str:
    """Messages of a chat or an episode one after another, who speaks before each; anything else as it stands."""
    try:
        messages = json.loads(text)
        text = "\n".join(f"{message['role']}: {message['content']}" for message in messages)
    except (ValueError, TypeError, KeyError):
        pass
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} … ({len(text) - LONGEST} characters more)"
