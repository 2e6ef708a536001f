"""The section with the completions that show best what was paid for. Only encouraged completions are shown, which means that they
were paid more than the mean of their group. If the record of a halt has such completions, they are shown; otherwise those in the
run's files are ranked."""

import json
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from routed_rl.artifacts import RunFolder
from routed_rl.report.data import RunData
from routed_rl.report.ranking import BY_SHIFT, WANTED, hardest

SHOWN = 10
CONSIDERED = 400
"""Number of completions that are ranked. It is larger than `SHOWN`, because completions with the same text are shown as one."""
LONGEST = 3000
"""Largest number of characters that are shown of a prompt or completion."""


def shown(run: RunData) -> tuple[str, list[dict[str, Any]]]:
    """The measure by which the completions were ranked, and the completions themselves, from the record of a halt or else from
    the run's files."""
    if run.halted and (named := run.halted.get("completions")):
        return run.halted.get("completions_by", ""), _alike(_readable(row) for row in named if row.keys() >= set(WANTED))
    found, by = hardest(RunFolder(run.path).completion_files(), run.rows, CONSIDERED)
    return by, _alike(_readable(row) for row in found if by == BY_SHIFT or row["reward"] > row["solve"])


def _alike(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row for each different text of a completion in an environment: the first row with this text, to which are added
    `times`, the number of completions that have the text, and `prompts`, the number of prompts that they answer. At most `SHOWN`
    rows."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    prompts = defaultdict[tuple[str, str], set[str]](set)
    for row in rows:
        place = row["environment"], row["completion"].strip()
        prompts[place].add(row["prompt"])
        first = found.setdefault(place, {**row, "times": 0})
        first |= {"times": first["times"] + 1, "prompts": len(prompts[place])}
    return list(found.values())[:SHOWN]


def _readable(row: dict[str, Any]) -> dict[str, Any]:
    """A row with its flags decoded, its messages as text, and long texts cut."""
    flags = _decoded(row["flags"])
    return {**row, "flags": flags if isinstance(flags, dict) else {}, "prompt": readable_text(row["prompt"]),
            "completion": readable_text(row["completion"])}


def readable_text(text: str) -> str:
    """A stored prompt or completion as text. The messages of a chat or an episode come one after another, each preceded by its
    role. Long text is cut; other text is not changed."""
    found = _decoded(text)
    if isinstance(found, list) and found and all(isinstance(each, dict) and {"role", "content"} <= each.keys() for each in found):
        text = "\n".join(f"{message['role']}: {message['content']}" for message in found)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} … ({len(text) - LONGEST} characters more)"


def _decoded(text: str) -> Any:
    """The value of a JSON text. None for any other text, such as one that a model wrote, and for brackets that are nested too
    deeply for the parser."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
