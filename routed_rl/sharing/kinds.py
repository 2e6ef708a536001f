"""The kinds of files that can carry a canary, by suffix in `KINDS`. A file carries it in a column, in a key of every object, or
in its first line. For every kind, `unmark(mark(data, canary))` is `data`, byte for byte.

Not covered: CSV, whose readers would take a first line for a row; markup; anything compressed.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from routed_rl.canary import KEY, PROJECT
from routed_rl.sharing import parquet
from routed_rl.sharing.unfit import Unfit

BOM = b"\xef\xbb\xbf"
FIELD = re.compile(rb'(?<=\{)(?:"%s": "[^"\\]*"(?:, )?)+' % KEY.encode())
"""Pattern of the canary's key at the beginning of an object. It does not match within a JSON string, where the key's quotes have
backslashes."""
LINE = re.compile(rb"\A(%s)?(?:(?:# |<!-- )%s(?: [0-9a-f-]{36})?(?: -->)?\n)+" % (BOM, PROJECT.encode()))


@dataclass(frozen=True)
class Kind:
    """A kind of file. `mark` raises Unfit, with the reason, if the content of a file does not fit its name."""

    mark: Callable[[bytes, str], bytes]
    """Function that gets the bytes of a file and a canary, and returns the file with the canary in every row, or in the first
    line."""
    unmark: Callable[[bytes], bytes]
    """Function that returns the file without any canary of this project. A file without a canary comes back unchanged."""


def mark_jsonl(data: bytes, canary: str) -> bytes:
    """Put `canary` into the object on each line, as its first key. Blank lines stay."""
    mark, lines = data[:len(BOM)] if data.startswith(BOM) else b"", data.removeprefix(BOM).split(b"\n")
    return mark + b"\n".join(_with_key(line, canary, f"line {number}") if line.strip() else line
                             for number, line in enumerate(lines, 1))


def mark_json(data: bytes, canary: str) -> bytes:
    """Put `canary` into the object that a file holds, or into each object of its list."""
    text = _utf8(data)
    first = len(text) - len(text.lstrip())
    if text[first:first + 1] != "[":
        return _with_key(data, canary, "it")
    pieces, last = list[str](), 0
    for start, end in _objects(text, first + 1):
        pieces += [text[last:start], _with_key(text[start:end].encode(), canary, "an element").decode()]
        last = end
    return "".join([*pieces, text[last:]]).encode()


def mark_text(data: bytes, canary: str, comment: str = "# {}") -> bytes:
    """Insert a comment with `canary` as the first line. `comment` is the form of a comment, in which {} stands for the canary."""
    _utf8(data)
    bom = BOM if data.startswith(BOM) else b""
    return bom + comment.format(canary).encode() + b"\n" + data.removeprefix(BOM)


def mark_markdown(data: bytes, canary: str) -> bytes:
    return mark_text(data, canary, "<!-- {} -->")


def unmark_json(data: bytes) -> bytes:
    return FIELD.sub(b"", data) if KEY.encode() in data else data


def unmark_text(data: bytes) -> bytes:
    return LINE.sub(rb"\1", data)


TEXT = Kind(mark_text, unmark_text)
KINDS = {".parquet": Kind(parquet.mark, parquet.unmark), ".jsonl": Kind(mark_jsonl, unmark_json),
         ".json": Kind(mark_json, unmark_json), ".md": Kind(mark_markdown, unmark_text),
         ".txt": TEXT, ".yaml": TEXT, ".yml": TEXT}


def _utf8(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise Unfit("is not UTF-8 text") from None


def _loaded(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise Unfit(f"{what} is not JSON") from None


def _with_key(text: bytes, canary: str, what: str) -> bytes:
    """Return the JSON object `text` with the canary as its first key. Unfit if `text` is no JSON object; `what` names it in the
    message."""
    if not isinstance(_loaded(_utf8(text), what), dict):
        raise Unfit(f"{what} is no JSON object, so it has no place for a canary")
    before, inside = text.split(b"{", 1)
    end = "" if inside.lstrip().startswith(b"}") else ", "
    return before + f'{{"{KEY}": "{canary}"{end}'.encode() + inside


def _objects(text: str, place: int) -> list[tuple[int, int]]:
    """Find where each element of a list begins and ends in its text. `place` is the position after the opening bracket."""
    _loaded(text, "it")
    decoder, found = json.JSONDecoder(), list[tuple[int, int]]()
    gap = re.compile(r"[\s,]*")
    while text[place := gap.match(text, place).end()] != "]":  # pyright: ignore[reportOptionalMemberAccess]
        start, place = place, decoder.raw_decode(text, place)[1]
        found.append((start, place))
    return found
