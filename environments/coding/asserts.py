"""The plain asserts of a test suite, and a wrong value for one of them: near the right one, of its type, never equal to it."""

from __future__ import annotations

import ast
import random
from typing import Any

LONGEST = 160
"""The most characters that a shown assert may have."""
LONGEST_VALUE = 20_000
"""The most characters of a value that is read."""


def plain_asserts(tests: str) -> list[tuple[str, str]]:
    """Pairs of (arguments as a tuple's literal, value as a literal) from the asserts `candidate(...) == VALUE` in the body of
    `check` that hold only literals. There is one pair for each different call, and long ones are left out."""
    [check] = [node for node in ast.parse(tests).body if isinstance(node, ast.FunctionDef) and node.name == "check"]
    found: dict[str, str] = {}
    for node in check.body:
        match node:
            case ast.Assert(test=ast.Compare(left=ast.Call(func=ast.Name(id="candidate"), args=given, keywords=[]),
                                             ops=[ast.Eq()], comparators=[right])):
                try:
                    call, value = repr(tuple(ast.literal_eval(each) for each in given)), repr(ast.literal_eval(right))
                except ValueError:  # The assert has names, or calls.
                    continue
                if len(call) + len(value) <= LONGEST:
                    found.setdefault(call, value)
    return list(found.items())


def equal(said: str | None, value: str) -> bool:
    """Whether the literal `said`, which untrusted code wrote, equals `value` by Python's ==."""
    try:
        return said is not None and len(said) <= LONGEST_VALUE and ast.literal_eval(said) == ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return False


def wrong(value: Any, rng: random.Random) -> Any:
    """Another value of the same type; None if no plausible one exists (for True, False, None and empty values)."""
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
    """A copy of a list or a dict in which one item is wrong; None if no item can be wrong."""
    for place in rng.sample(places, len(places)):
        if (other := wrong(values[place], rng)) is not None:
            copy = values.copy()
            copy[place] = other
            return copy
    return None


def _swapped(values: Any, rng: random.Random) -> list[Any] | None:
    """The values with two different neighbours exchanged; None if all are alike."""
    places = [place for place in range(len(values) - 1) if values[place] != values[place + 1]]
    if not places:
        return None
    place, items = rng.choice(places), list(values)
    items[place], items[place + 1] = items[place + 1], items[place]
    return items


def _repeated(values: str, rng: random.Random) -> list[str] | None:
    """The characters with one of them doubled; None if there are none."""
    if not values:
        return None
    place = rng.randrange(len(values))
    return [*values[:place], values[place], *values[place:]]
