"""Checks that data from a file have the expected types, which JSON and YAML do not ensure."""

import sys
import types
import typing
from collections.abc import Mapping
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


def prompt_problem(prompt: Any) -> str:
    """The complaint about `prompt` if it is neither text nor chat messages; otherwise empty."""
    if isinstance(prompt, str):
        return ""
    if not isinstance(prompt, list) or not prompt:
        return f"is {prompt!r:.60}"
    for message in prompt:
        if not isinstance(message, Mapping):
            return f"has {message!r:.60} in place of a message"
        if not isinstance(message.get("role"), str):
            return f"has a message without a role: {message!r:.60}"
        if not isinstance(message.get("content"), str) and not (message.get("content") is None and message.get("tool_calls")):
            return f"has a message whose content is no text: {message!r:.60}"
    return ""
