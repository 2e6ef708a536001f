"""What is varied: one dimension for each override that gives several values."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from routed_rl.errors import ConfigError


@dataclass(frozen=True)
class Dimension:
    """A choice, whose values are listed: `KEY=A,B`, `KEY=choice(A,B)`, or `KEY=range(1,5)`. Or an interval:
    `KEY=interval(LOW,HIGH)`; whole numbers: `int(interval(1,8))`; even in the logarithm: `tag(log,interval(1e-4,1))`."""

    key: str
    values: list[Any]
    """Of a choice as overrides write them; of an interval its two ends, whole numbers where both are."""
    interval: bool = False
    log: bool = False

    def __str__(self) -> str:
        if self.interval:
            return f"{self.key}={'log ' if self.log else ''}{self.values}"
        return f"{self.key}={','.join(self.values)}"


def grid(dimensions: list[Dimension]) -> list[dict[str, str]]:
    """Every combination, the last dimension running fastest, as {key: value}."""
    for each in dimensions:
        if each.interval:
            raise ConfigError(f"{each.key} is given an interval, of which a grid cannot try every value; list values "
                              f"({each.key}={each.values[0]},{each.values[1]}), or set sweep=optuna")
    keys = [each.key for each in dimensions]
    return [dict(zip(keys, point, strict=True)) for point in itertools.product(*(each.values for each in dimensions))]


def text_of(value: Any) -> str:
    """A value as an override writes it."""
    return value if isinstance(value, str) else repr(value)
