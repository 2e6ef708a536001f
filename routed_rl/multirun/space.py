"""What is varied: one dimension for each override that gives several values."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from routed_rl.errors import ConfigError


@dataclass(frozen=True)
class Choice:
    """`KEY=A,B`, `KEY=choice(A,B)`, or `KEY=range(1,5)`, whose values are listed."""

    key: str
    values: list[str]
    """As overrides write them."""

    def ends(self) -> list[str]:
        return self.values

    def __str__(self) -> str:
        return f"{self.key}={','.join(self.values)}"


@dataclass(frozen=True)
class Interval:
    """`KEY=interval(LOW,HIGH)`; whole numbers: `int(interval(1,8))`; even in the logarithm: `tag(log,interval(1e-4,1))`."""

    key: str
    low: float
    high: float
    log: bool
    """Whole numbers where both ends are."""

    def ends(self) -> list[str]:
        return [repr(self.low), repr(self.high)]

    def __str__(self) -> str:
        return f"{self.key}={'log ' if self.log else ''}[{self.low}, {self.high}]"


Dimension = Choice | Interval


def grid(dimensions: list[Dimension]) -> list[dict[str, str]]:
    """Every combination, the last dimension running fastest, as {key: value}."""
    choices: list[list[tuple[str, str]]] = []
    for dimension in dimensions:
        if isinstance(dimension, Interval):
            raise ConfigError(f"{dimension.key} is given an interval, of which a grid cannot try every value; list values "
                              f"({dimension.key}={dimension.low},{dimension.high}), or set sweep=optuna")
        choices.append([(dimension.key, value) for value in dimension.values])
    return [dict(combination) for combination in itertools.product(*choices)]


def overrides_of(point: dict[str, str]) -> list[str]:
    return [f"{key}={value}" for key, value in point.items()]
