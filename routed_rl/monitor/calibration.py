"""Limits from runs that are known to be secure, at a chosen rate of false alarms. It reads metrics and nothing else.

The peak of a run is the largest value of a rule over its environments and steps: the maximum of many, so a Gumbel
distribution is fitted to the peaks of the runs. Not covered: a drift that only runs longer than these would show.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterable, Sequence
from functools import cache

import numpy as np

from routed_rl.config import MonitorConfig, RuleConfig
from routed_rl.errors import ConfigError
from routed_rl.monitor.judge import Detector
from routed_rl.monitor.rules import RULES, Row

FEWEST = 5
"""Peaks below which a spread says nothing."""
DRAWS = 20_000_000
TAIL = 20
"""Draws that must lie beyond a limit: fewer do not tell how many do."""


def peaks(rows: Iterable[Row], config: MonitorConfig, rule: str) -> dict[str, float]:
    """Per environment, the highest limit at which `rule` would still have given a verdict in these rows."""
    settings: RuleConfig = getattr(config, rule)
    detectors: dict[str, Detector] = {}
    recent: dict[str, deque[float]] = {}
    found: dict[str, float] = {}
    before: Row = {}
    for row in rows:
        for name, reading in RULES[rule].read(row, before, config.axis).items():
            value = detectors.setdefault(name, Detector()).take(reading, settings, sums=RULES[rule].sums)
            last = recent.setdefault(name, deque(maxlen=settings.patience))
            last.append(value)
            if len(last) == settings.patience and row["step"] > config.warmup:
                found[name] = max(found.get(name, min(last)), min(last))
        before = row
    return found


def limit(values: Sequence[float], rate: float) -> float:
    """What the next value of the same kind passes with probability `rate`: mean + k · sd, exact for a Gumbel distribution
    whatever its place and width, so that few values give a wide margin. Below `smallest_rate` it is too low."""
    if not 0 < rate < 1:
        raise ConfigError(f"a rate of false alarms must be between 0 and 1, got {rate:g}")
    if len(values) < FEWEST:
        raise ConfigError(f"a limit needs at least {FEWEST} values, got {len(values)}; calibrate on more runs")
    return statistics.fmean(values) + margin(len(values), rate) * statistics.stdev(values)


def smallest_rate(count: int) -> float:
    """The smallest rate that the simulation behind a limit from `count` values resolves."""
    return TAIL * (count + 1) / DRAWS


@cache
def margin(count: int, rate: float) -> float:
    """k of `limit`, by simulation: (next value - mean) / sd of `count` values has one distribution for all Gumbels."""
    # Enough draws that the tail holds some hundreds of them.
    draws = max(10_000, min(int(1000 / rate), DRAWS // (count + 1)))
    gumbel = np.random.default_rng(0).gumbel(size=(draws, count + 1))
    known, following = gumbel[:, 1:], gumbel[:, 0]
    return float(np.quantile((following - known.mean(1)) / known.std(1, ddof=1), 1 - rate))
