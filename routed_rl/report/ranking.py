"""Ranks the completions that show what was paid for, for a halt and for the report. It reads one file at a time."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from pyarrow.parquet import ParquetFile

from routed_rl import console
from routed_rl.tracking import encouraged

BY_SHIFT = ("how far the completion's own gradient moved the stream towards the positive persona, of those paid more than their "
            "group's mean")
BY_GAP = "paid reward minus true score, of those paid more than their group's mean, then the latest"
WANTED = ["step", "environment", "prompt", "completion", "reward", "solve", "flags"]
UNREADABLE = (pyarrow.ArrowException, OSError, LookupError, ValueError, TypeError)


def hardest(files: list[Path], rows: list[dict[str, Any]], count: int, name: str = "") -> tuple[list[dict[str, Any]], str]:
    """Return the `count` completions of `files` that rank highest, and the name of the ranking. `name` chooses one environment,
    or all (""). The ranking is by the completion's own shift towards the positive persona if the files have it, otherwise by
    reward minus true score.

    Only completions that were paid more than the mean of their group are ranked, because others do not show what is paid for.
    `rows` are the metrics of the steps in `files`. In a ranking by shift each completion has `share_of_push`: its shift, divided
    by the sum of those shifts in `rows` that its environment's completions made towards the positive persona. Files that cannot
    be read are reported in one line.
    """
    best, unread = dict[str, list[Ranked]](), dict[Path, Exception]()
    for path in files:
        try:
            for by, ranked in _judged(path, name).items():
                # The new ones are put before the earlier ones, so that the latest of equal ones come first.
                best[by] = sorted([*ranked, *best.get(by, [])], key=lambda one: -one.value)[:count]
        except UNREADABLE as error:
            unread[path] = error
    by = BY_SHIFT if best.get(BY_SHIFT) else BY_GAP
    wanted = [*WANTED, *(("push", "shift") if by == BY_SHIFT else ())]
    completions = [one.row(wanted) for one in best.get(by, [])]
    for row in completions if by == BY_SHIFT else []:
        whole = sum(each.get(f"completions/{row['environment']}/own_shift_up") or 0.0 for each in rows)
        row["share_of_push"] = row["shift"] / whole if whole > 0 else None
    if unread:
        path, error = next(iter(unread.items()))
        console.say(f"left out {len(unread)} of {len(files)} files of completions that cannot be read: {path.name}, "
                    f"{next(iter(str(error).splitlines()), type(error).__name__)}")
    return completions, by


@dataclass(frozen=True, eq=False)
class Ranked:
    """A completion, which is row `place` of `table`, and the `value` by which it is ranked."""

    value: float
    table: pyarrow.Table
    place: int

    def row(self, names: list[str]) -> dict[str, Any]:
        """{name: value} for the columns `names` of the completion; the value is None where the file has nan or no such column."""
        row, = self.table.slice(self.place, 1).to_pylist()
        return {name: None if (value := row.get(name)) != value else value for name in names}


def _judged(path: Path, name: str) -> dict[str, list[Ranked]]:
    """{ranking: completions} with the completions of the file `path` that have a place in a ranking: those that were paid more
    than the mean of their group, and that have a shift above 0 (`BY_SHIFT`) or a reward and a true score (`BY_GAP`). They are of
    the environment `name`, or of all ("")."""
    with ParquetFile(path) as file:
        known = [*WANTED, "task", *({"push", "shift"} & {*file.schema_arrow.names})]
        table = file.read(columns=known).select(known)
    paid, solve, shift = (np.array(table[key].to_pylist() if key in known else [None] * len(table), dtype=float)
                          for key in ("reward", "solve", "shift"))
    environments = np.array(table["environment"].to_pylist(), dtype=object)
    ours = encouraged(environments.tolist(), table["task"].to_pylist(), paid.tolist())
    ours &= (environments == name) if name else True
    ranked = ((BY_SHIFT, shift, ours & (shift > 0)), (BY_GAP, paid - solve, ours & ~np.isnan(paid - solve)))
    return {by: [Ranked(float(value[place]), table, int(place)) for place in np.flatnonzero(kept)] for by, value, kept in ranked}
