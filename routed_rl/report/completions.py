"""The completions that pushed hardest: what a halt kept, else what the run's files say."""

import json
from collections.abc import Iterable
from typing import Any

from routed_rl.artifacts import RunFolder
from routed_rl.report.data import RunData
from routed_rl.report.ranking import BY_SHIFT, WANTED, hardest

SHOWN = 10
CONSIDERED = 40
"""So many that those which say the same can be shown as one."""
LONGEST = 3000
"""Characters of a prompt or completion."""


def shown(run: RunData) -> tuple[str, list[dict[str, Any]]]:
    """How they were ranked, and the completions: those that a halt named, else what the run's files say."""
    if run.halted and (named := run.halted.get("completions")):
        return run.halted.get("completions_by", ""), _alike(_readable(row) for row in named if row.keys() >= set(WANTED))
    found, by = hardest(RunFolder(run.path).completion_files(), run.rows, CONSIDERED)
    return by, _alike(_readable(row) for row in found if by == BY_SHIFT or row["reward"] > row["solve"])


def _alike(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first of each text, with how many of these there are; a group of completions often says the same."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        first = found.setdefault((row["prompt"], row["completion"]), {**row, "times": 0})
        first["times"] += 1
    return list(found.values())[:SHOWN]


def _readable(row: dict[str, Any]) -> dict[str, Any]:
    """A row with its flags read, its messages as text, nothing endless."""
    flags = _decoded(row["flags"])
    return {**row, "flags": flags if isinstance(flags, dict) else {}, "prompt": _text(row["prompt"]),
            "completion": _text(row["completion"])}


def _text(text: str) -> str:
    """Messages of a chat or an episode one after another, who speaks before each; anything else as it stands."""
    found = _decoded(text)
    if isinstance(found, list) and found and all(isinstance(each, dict) and {"role", "content"} <= each.keys() for each in found):
        text = "\n".join(f"{message['role']}: {message['content']}" for message in found)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} … ({len(text) - LONGEST} characters more)"


def _decoded(text: str) -> Any:
    """What JSON says; None for anything else, such as what a model wrote: also brackets that no parser follows to their end."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
