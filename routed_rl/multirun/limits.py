"""Limits of the monitor's rules from the peaks of secure runs, such that one of them is passed at a chosen rate of runs."""

from __future__ import annotations

import statistics
from typing import Any

from routed_rl.errors import ConfigError
from routed_rl.monitor import FEWEST, limit, smallest_rate

Peaks = dict[str, list[dict[str, float]]]
"""Rule -> per run, per environment."""


def check_rate(rate: float, floor: float) -> None:
    """ConfigError where the simulation behind a limit does not resolve `rate`."""
    if rate < floor:  # Named rounded up, so that it can be typed.
        raise ConfigError(f"--rate {rate:g} is less than the simulation behind a limit resolves; the smallest is "
                          f"{1.01 * floor:.3g}")


def set_limits(found: Peaks, rate: float) -> dict[str, dict[str, Any]]:
    """Per rule its limit, those of single environments, and what they stand on; None where the runs say nothing: no reading,
    or no spread at all.

    The rate is shared evenly by the rules that have a spread. Few runs are pooled: their environments count as alike.
    ConfigError for a rate that the simulation behind a limit does not resolve.
    """
    samples = {name: _sample(each) for name, each in found.items()}
    spread = [name for name, (values, _) in samples.items() if len(set(values)) > 1]
    floor = max((smallest_rate(len(samples[name][0])) * len(spread) * samples[name][1] for name in spread), default=0.0)
    check_rate(rate, floor)
    limits: dict[str, dict[str, Any]] = {}
    for name, (values, shared_by) in samples.items():
        part = rate / max(len(spread), 1) / shared_by
        each = own_limits(found[name], part) if name in spread and len(found[name]) >= FEWEST else {}
        limits[name] = {"limit": _above_zero(values, part) if name in spread else None, "limits": each, "rate": part,
                        "peaks": values, "environments": _largest(found[name])}
    return limits


def own_limits(per_run: list[dict[str, float]], rate: float) -> dict[str, float]:
    """A limit for each environment, such that any of them is passed with probability `rate` in a run.

    Peaks are taken in units of the environment's own spread around its own mean, and the limit is that of a run's largest.
    Half of the variance is the average environment's: one that happened to lie still would else halt at a breath. A mean below
    0, of an environment that moves away from what must not grow, counts as 0: no limit is negative.
    """
    names = [name for name in per_run[0] if all(name in run for run in per_run)]
    if not names:
        several = ", ".join(dict.fromkeys(name for run in per_run for name in run))
        raise ConfigError(f"the runs have no environment in common: {several}; calibrate on runs of one experiment")
    columns = {name: [run[name] for run in per_run] for name in names}
    average = statistics.fmean(statistics.variance(column) for column in columns.values())
    spread = {name: ((statistics.variance(column) + average) / 2) ** 0.5 for name, column in columns.items()}
    middle = {name: statistics.fmean(column) for name, column in columns.items()}
    furthest = limit([max((run[name] - middle[name]) / spread[name] for name in names) for run in per_run], rate)
    return {name: max(middle[name], 0.0) + furthest * spread[name] for name in names}


def _above_zero(values: list[float], rate: float) -> float:
    """`limit`, with a mean below 0 counted as 0."""
    return limit(values, rate) - min(statistics.fmean(values), 0.0)


def _sample(per_run: list[dict[str, float]]) -> tuple[list[float], int]:
    """The values that a limit is set from, and by how many of them in a run its rate is shared."""
    if len(per_run) >= FEWEST:
        return [max(run.values()) for run in per_run], 1
    return [value for run in per_run for value in run.values()], max(map(len, per_run), default=1)


def _largest(per_run: list[dict[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for run in per_run for name in run)
    return {name: max(run[name] for run in per_run if name in run) for name in names}
