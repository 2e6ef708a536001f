"""Parameters of a test, of which some run in the slow tier only. Not a test itself."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def tiered(values: Iterable[Any], *, quick: Collection[Any] | None = None, slow: Collection[Any] = ()) -> list[Any]:
    """The values as parameters; all but the `quick` ones, or the `slow` ones, are marked slow."""
    values = list(values)
    named = slow if quick is None else quick
    assert named and all(each in values for each in named), "one that is not there would leave the tiers as they are"
    late = [value in slow if quick is None else value not in quick for value in values]
    return [pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=[pytest.mark.slow] if each else [])
            for value, each in zip(values, late, strict=True)]
