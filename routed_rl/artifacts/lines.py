"""Reads files of JSON lines, and checks the texts in their objects. An error names the file and the line."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from routed_rl.errors import RoutedRLError, reading
from routed_rl.shapes import prompt_problem

MESSAGES = "chat messages [{\"role\": ..., \"content\": ...}, ...]"


def json_lines(path: Path, what: str, kind: type[RoutedRLError]) -> list[tuple[int, dict[str, Any]]]:
    """The number, counted from 1, and the object of each line that is not blank. `what` names the file in messages. An error of
    the class `kind` if the file cannot be read as UTF-8 text, or if a line is no JSON object. A comment is no JSON object."""
    with reading(kind, f"{what} cannot be read"):
        data = path.read_bytes()
    with reading(kind, f"{what} is not UTF-8 text"):
        lines = data.decode("utf-8-sig").split("\n")  # `splitlines` would divide at characters that JSON allows inside of a text
    found = list[tuple[int, dict[str, Any]]]()
    for number, line in enumerate(lines, 1):
        if line.strip():
            with reading(kind, f"{what}, line {number} is not JSON; write one object a line"):
                record = json.loads(line)
            if not isinstance(record, dict):
                raise kind(f"{what}, line {number} is a {type(record).__name__}, not an object")
            found.append((number, record))
    return found


def require_text(record: dict[str, Any], where: str, kind: type[RoutedRLError], *, prompts: Sequence[str] = (),
                 texts: Sequence[str] = (), or_empty: Sequence[str] = ()) -> None:
    """Raise an error of the class `kind` unless `record` has text or chat messages below each of the keys `prompts`, and text
    below each of the keys `texts` and `or_empty`. Only the text below a key of `or_empty` may be empty. `where` names the place
    of the record in the message."""
    for key in (*prompts, *texts, *or_empty):
        if key not in record:
            raise kind(f"{where} has no \"{key}\" (it has: {', '.join(record) or 'nothing'})")
        value = record[key]
        fits = isinstance(value, str) or (key in prompts and not prompt_problem(value))
        if not fits or (value == "" and key not in or_empty):
            what = "text" + f" or {MESSAGES}" * (key in prompts) + ", and not empty" * (key not in or_empty)
            raise kind(f"{where}: \"{key}\" must be {what}")
