"""Reads files of JSON lines. An error names the file and the line."""

import json
from pathlib import Path
from typing import Any

from routed_rl.errors import RoutedRLError, reading


def json_lines(path: Path, what: str, kind: type[RoutedRLError]) -> list[tuple[int, dict[str, Any]]]:
    """The number, counted from 1, and the object of each line that is not blank. `what` names the file in messages. An error of
    the class `kind` if the file cannot be read as UTF-8 text, or if a line is no JSON object."""
    with reading(kind, f"{what} cannot be read"):
        data = path.read_bytes()
    with reading(kind, f"{what} is not UTF-8 text"):
        lines = data.decode("utf-8-sig").split("\n")  # `splitlines` would divide at characters that JSON allows inside of a text
    found = list[tuple[int, dict[str, Any]]]()
    for number, line in enumerate(lines, 1):
        if line.strip():
            with reading(kind, f"{what}, line {number} is not JSON"):
                record = json.loads(line)
            if not isinstance(record, dict):
                raise kind(f"{what}, line {number} is a {type(record).__name__}, not an object")
            found.append((number, record))
    return found
