"""Compares plain values from a jail with expected ones. This is done outside the jail, and never runs code that belongs to a
value."""

import json
import re
from typing import Any

MAX_DEPTH = 64
MAX_ITEMS = 100_000
PLAIN = {type(None), bool, int, float, str, list, dict}
BRACKETS = re.compile(r'"(?:[^"\\]|\\.?)*+(?:"|\Z)|[\[{\]}]')
"""Pattern that finds brackets outside of strings. Its possessive quantifier never backtracks, so a text whose string does not end
takes no longer than any other."""


def same_value(a: Any, b: Any) -> bool:
    """Whether two JSON values are the same in type and content.

    True is not 1, 1 is not 1.0, nan equals nothing, and a type that JSON does not have (a subclass, a tuple) equals
    nothing. Values nested deeper than `MAX_DEPTH`, or more than `MAX_ITEMS` values, count as different.
    """
    waiting: list[tuple[Any, Any, int]] = [(a, b, 0)]
    for _ in range(MAX_ITEMS):
        if not waiting:
            return True
        a, b, depth = waiting.pop()
        if type(a) not in PLAIN or type(a) is not type(b) or depth > MAX_DEPTH:
            return False
        if type(a) is list or type(a) is dict:
            if len(a) != len(b):
                return False
            if type(a) is dict and not (all(type(key) is str for key in (*a, *b)) and a.keys() == b.keys()):
                return False
            places = a if type(a) is dict else range(len(a))
            waiting += [(a[place], b[place], depth + 1) for place in places]
        elif a != b:
            return False
    return not waiting


def read_json(data: bytes) -> Any:
    """The JSON value in `data`; ValueError if it is not JSON, or is nested deeper than `MAX_DEPTH`."""
    text, depth = data.decode("utf-8"), 0
    for found in BRACKETS.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(found[0], 0)
        if depth > MAX_DEPTH + 2:
            raise ValueError(f"nested deeper than {MAX_DEPTH}")
    return json.loads(text)
