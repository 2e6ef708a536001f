"""`same_value` is equality of JSON values by type and content, and runs no code of theirs."""

from __future__ import annotations

import copy
import json
import math
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routed_rl.sandbox import same_value
from routed_rl.sandbox.values import MAX_DEPTH, MAX_ITEMS, read_json

NUMBERS = st.integers(-4, 4) | st.integers() | st.floats(allow_nan=False) | st.sampled_from([0.0, 1.0])
LEAVES = st.none() | st.booleans() | NUMBERS | st.text(max_size=3)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=4), max_leaves=12)


def canonical(value):
    """The same question asked another way: values tagged with their types."""
    if isinstance(value, list):
        return ("list", tuple(map(canonical, value)))
    if isinstance(value, dict):
        return ("dict", frozenset((key, canonical(each)) for key, each in value.items()))
    return (type(value).__name__, value)


@given(VALUES)
def test_a_value_is_the_same_as_its_copy_and_as_its_json(value):
    assert same_value(value, copy.deepcopy(value))
    assert same_value(value, read_json(json.dumps(value).encode()))


@given(VALUES, VALUES)
def test_it_agrees_with_comparing_tagged_values_and_is_symmetric(a, b):
    assert same_value(a, b) == same_value(b, a) == (canonical(a) == canonical(b))


@given(VALUES, st.data())
def test_a_nan_anywhere_is_never_equal(value, data):
    holder = data.draw(st.sampled_from([[value, math.nan], {"a": [math.nan]}, math.nan]))
    assert not same_value(holder, holder)


DIFFERENT = [(True, 1), (1, 1.0), (0, False), (0, None), ("1", 1), ([], {}), ("", []), ([1], [1, 1]), ({"a": 1}, {"b": 1})]


@pytest.mark.parametrize(("a", "b"), DIFFERENT)
def test_types_count(a, b):
    assert not same_value(a, b)


class Equal:
    def __eq__(self, other: object) -> bool:
        raise AssertionError("code of the value ran")

    __hash__ = None


@pytest.mark.parametrize("kind", [int, str, list, dict, float])
def test_no_code_of_a_value_runs(kind):
    tricky = type("Tricky", (Equal, kind), {})()
    for pair in ((tricky, kind()), (kind(), tricky), ([tricky], [tricky]), ({"a": tricky}, {"a": kind()}), (Equal(), 1)):
        assert not same_value(*pair)


def test_no_code_of_a_key_runs():
    key = type("Key", (Equal, str), {"__hash__": str.__hash__})("a")
    assert not same_value({key: 1}, {"a": 1}) and not same_value({"a": 1}, {key: 1})


@pytest.mark.parametrize("value", [(), (1, 2), {1}, b"", 1j, {1: 2}, object()])
def test_what_json_does_not_have_equals_nothing(value):
    assert not same_value(value, value)


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


def test_depth_and_size_are_bounded():
    assert same_value(nested(MAX_DEPTH), nested(MAX_DEPTH)) and not same_value(nested(MAX_DEPTH + 1), nested(MAX_DEPTH + 1))
    wide = [0] * (MAX_ITEMS - 1)
    assert same_value(wide, list(wide)) and not same_value([*wide, 0], [*wide, 0])


def test_json_is_read_to_a_depth_and_brackets_in_text_do_not_count():
    assert read_json(b'["[[[", "\\"[[["]') == ["[[[", '"[[[']
    assert read_json(json.dumps("[" * 1000).encode()) == "[" * 1000
    with pytest.raises(ValueError, match="nested deeper than"):
        read_json(b"[" * 1000 + b"]" * 1000)
    for broken in (b"", b"{", b"\xff", b"[1] 2"):
        with pytest.raises(ValueError):
            read_json(broken)


@pytest.mark.parametrize("text", ['"' + '\\"' * 500_000, '["' * 500_000, '"' + "\\" * 1_000_001, "{" * 1_000_000])
def test_attack_text_that_takes_long_to_read(text):
    """Paired with a reader that goes back on what it took: for the first its time grows with the square."""
    began = time.process_time()
    with pytest.raises(ValueError):
        read_json(text.encode())
    assert time.process_time() - began < 2


def test_the_naive_reader_takes_long():
    def seconds(length):
        began = time.process_time()
        list(re.finditer(r'"(?:[^"\\]|\\.)*"', '"' + '\\"' * length))
        return time.process_time() - began

    assert seconds(4000) > 8 * seconds(1000)
