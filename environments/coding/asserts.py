"""Plain asserts of a test suite, and a wrong value for one of them: near the right one, of its type, and never equal to it."""

from __future__ import annotations

import ast
import random
from typing import Any

LONGEST = 160
"""Characters of an assert that is shown."""
LONGEST_VALUE = 20_000
"""Characters of a value that is read."""


def plain_asserts(tests: str) -> list[tuple[str, str]]:
    """(arguments as a tuple's literal, value as a literal) of each `assert candidate(...) == VALUE` that stands in `check` itself
    and has nothing but literals; one for each different call, and none that is long."""
    [check] = [node for node in ast.parse(tests).body if isinstance(node, ast.FunctionDef) and node.name == "check"]
    found: dict[str, str] = {}
    for node in check.body:
        match node:
            case ast.Assert(test=ast.Compare(left=ast.Call(func=ast.Name(id="candidate"), args=given, keywords=[]),
                                             ops=[ast.Eq()], comparators=[right])):
                try:
                    call, value = repr(tuple(ast.literal_eval(each) for each in given)), repr(ast.literal_eval(right))
                except ValueError:  # It has names, or calls.
                    continue
                if len(call) + len(value) <= LONGEST:
                    found.setdefault(call, value)
    return list(found.items())


def equal(said: str | None, value: str) -> bool:
    """Whether the literal `said`, which untrusted code wrote, is worth `value`, as Python's == has it."""
    try:
        return said is not None and len(said) <= LONGEST_VALUE and ast.literal_eval(said) == ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return False


def wrong(value: Any, rng: random.Random) -> Any:
    """Another value of the same type; None where there is none that is plausible (True, False, None, what is empty)."""
    if type(value) is int:
        off = rng.choice((-2, -1, 1, 2))
        return value + (off if value + off >= 0 or value < 0 else -off)
    if type(value) is float:
        other = round(value + rng.choice((-0.5, 0.5, 1.0)), 6)
        return other if other != value else None
    if isinstance(value, dict):
        return _with_one_wrong(value, list(value), rng)
    if isinstance(value, str):
        found = _swapped(value, rng) or _repeated(value, rng)
        return None if found is None else "".join(found)
    if isinstance(value, (list, tuple)):
        found = _with_one_wrong(list(value), list(range(len(value))), rng) or _swapped(value, rng)
        return None if found is None else type(value)(found)
    return None


def _with_one_wrong(values: Any, places: list[Any], rng: random.Random) -> Any:
    """A copy of a list or a dict in which one item is wrong; None where none can be."""
    for place in rng.sample(places, len(places)):
        if (other := wrong(values[place], rng)) is not None:
            copy = values.copy()
            copy[place] = other
            return copy
    return None


def _swapped(values: Any, rng: random.Random) -> list[Any] | None:
    """With two neighbours that differ in the other's place; None where all are alike."""
    places = [place for place in range(len(values) - 1) if values[place] != values[place + 1]]
    if not places:
        return None
    place, items = rng.choice(places), list(values)
    items[place], items[place + 1] = items[place + 1], items[place]
    return items


def _repeated(values: str, rng: random.Random) -> list[str] | None:
    """With one character twice; None where there is none."""
    if not values:
        return None
    place = rng.randrange(len(values))
    return [*values[:place], values[place], *values[place:]]
