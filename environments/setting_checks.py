"""Checks of settings that the classes here share. A ValueError of one line names the setting, its value and the values
allowed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def one_of(name: str, value: Any, known: Iterable[str]) -> str:
    """`value` if it is one of `known`."""
    if value not in (names := list(known)):
        raise ValueError(f"{name}={value!r} is none of {', '.join(names)}")
    return value


def truth(name: str, value: Any) -> bool:
    """`value` if it is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, got {value!r}")
    return value


def whole(name: str, value: Any, low: int, high: int) -> int:
    """`value` if it is a whole number from `low` to `high`."""
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{name} must be a whole number from {low} to {high}, got {value!r}")
    return value


def text(name: str, value: Any) -> str:
    """`value` if it is text."""
    if not isinstance(value, str):
        raise ValueError(f"{name} must be text, got {value!r}")
    return value
