"""Ranks the completions that show what was paid for, for a halt and for the report. It reads one file at a time."""

from pathlib import Path
from typing import Any

import pandas as pd
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
    """At most `count` completions of `files` that pushed hardest, of the environment `name` or of all (""), and how they were
    ranked: by their own shift towards the positive persona if it was kept, otherwise by their reward minus their true score.

    Completions that were discouraged push as well, but they do not show what is paid for, so they are left out. `rows` are the
    metrics of the files' steps. `share_of_push` is the share of a completion in the whole shift towards the positive persona by
    its environment's completions in these steps. Files that cannot be read are reported in one line.
    """
    best, unread = dict[str, Any](), dict[Path, Exception]()
    for path in files:
        try:
            for by, table in _judged(path, name).items():
                # The new ones are put before the earlier ones, so that the latest of equal ones come first.
                best[by] = pd.concat([table, *([best[by]] if by in best else [])]).sort_values(
                    "value", ascending=False, kind="stable")[:count]
        except UNREADABLE as error:
            unread[path] = error
    by = BY_SHIFT if len(best.get(BY_SHIFT, ())) else BY_GAP
    found = best.get(by, pd.DataFrame(columns=WANTED))[[*WANTED, *(("push", "shift") if by == BY_SHIFT else ())]]
    completions: list[dict[str, Any]] = found.astype(object).where(found.notna(), None).to_dict("records")
    for row in completions if by == BY_SHIFT else []:
        whole = sum(each.get(f"completions/{row['environment']}/own_shift_up") or 0.0 for each in rows)
        row["share_of_push"] = row["shift"] / whole if whole > 0 else None
    if unread:
        path, error = next(iter(unread.items()))
        console.say(f"left out {len(unread)} of {len(files)} files of completions that cannot be read: {path.name}, "
                    f"{next(iter(str(error).splitlines()), type(error).__name__)}")
    return completions, by


def _judged(path: Path, name: str) -> dict[str, pd.DataFrame]:
    """For each ranking, the rows of a file that could be scored, of the environment `name` or of all, with a column `value` by
    which they are ranked."""
    with ParquetFile(path) as file:
        known = [*WANTED, "task", *({"push", "shift"} & {*file.schema_arrow.names})]
        table = file.read(columns=known).select(known).to_pandas()
    table = table.reindex(columns=[*WANTED, "task", "push", "shift"])
    paid, solve, shift = (table[key].astype(float) for key in ("reward", "solve", "shift"))
    ours = paid.notna() & (table["environment"] == name if name else True)
    ours &= encouraged(table["environment"].tolist(), table["task"].tolist(), paid.tolist())
    return {by: table.assign(value=value)[kept & value.notna()]
            for by, value, kept in ((BY_SHIFT, shift, ours & (shift > 0)), (BY_GAP, paid - solve, ours))}
