"""Checks that data from a file have the expected types, which JSON and YAML do not ensure."""

import sys
import types
import typing
from typing import Any


def fits(value: Any, hint: Any) -> bool:
    """Whether `value`, made of dicts, lists and plain values, is of the type `hint`. An int counts as a float too. If `hint` is a
    dict, it maps keys to the types of their values; a key may be missing in `value`."""
    kind, inner = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, dict):
        return isinstance(value, dict) and all(fits(value[key], each) for key, each in hint.items() if key in value)
    if kind in (typing.Union, types.UnionType):
        return any(fits(value, each) for each in inner)
    if kind is dict:
        return isinstance(value, dict) and all(fits(key, inner[0]) and fits(each, inner[1]) for key, each in value.items())
    if kind is list:
        return isinstance(value, list) and all(fits(each, inner[0]) for each in value)
    if hint is float:
        return isinstance(value, float) or (type(value) is int and abs(value) <= sys.float_info.max)
    return type(value) is hint if hint in (bool, int, str, types.NoneType) else True
