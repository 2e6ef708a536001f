"""Sets limits from secure runs, so that a given share of secure runs exceeds any of them. It reads nothing but metrics.

The peak of a run is the largest value of a rule over its environments and steps. Because it is the maximum of many values, a
Gumbel distribution is fitted to the peaks of the runs. Not covered: a drift that would only show in longer runs.
"""

import statistics
from collections import deque
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import numpy as np

from routed_rl.config import MonitorConfig, RuleConfig
from routed_rl.errors import ConfigError
from routed_rl.monitor.judge import Detector
from routed_rl.monitor.rules import RULES, Row

FEWEST = 5
"""Least number of peaks from which a spread can be estimated."""
DRAWS = 20_000_000
TAIL = 20
"""Smallest number of simulated draws beyond a limit with which their share is known well enough."""
Peaks = dict[str, list[dict[str, float]]]
"""Maps a rule to one entry for each run: the peak of each environment."""


def peaks(rows: Iterable[Row], config: MonitorConfig, rule: str) -> dict[str, float]:
    """For each environment, the highest limit at which `rule` would still have given a verdict in these rows."""
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


def check_rate(rate: float, floor: float) -> None:
    """ConfigError if `rate` is below `floor`, the smallest rate of false halts for which the simulation behind a limit has enough
    draws."""
    if rate < floor:  # the error names it rounded up, so that the number can be typed
        raise ConfigError(f"--rate {rate:g} is less than the simulation behind a limit resolves; the smallest is "
                          f"{1.01 * floor:.3g}")


def set_limits(found: Peaks, rate: float) -> dict[str, dict[str, Any]]:
    """For each rule its limit, the limits of single environments, and the peaks behind them. The limit is None if the runs do not
    determine it, because they have no reading or no spread.

    The rate is divided evenly among the rules that have a spread. With few runs, all environments are pooled as if they were
    alike. ConfigError for a rate that the simulation behind a limit does not resolve.
    """
    samples = {name: _sample(each) for name, each in found.items()}
    spread = [name for name, (values, _) in samples.items() if len(set(values)) > 1]
    floor = max((smallest_rate(len(samples[name][0])) * len(spread) * samples[name][1] for name in spread), default=0.0)
    check_rate(rate, floor)
    limits: dict[str, dict[str, Any]] = {}
    for name, (values, shared_by) in samples.items():
        part = rate / max(len(spread), 1) / shared_by
        own = own_limits(found[name], part) if name in spread and len(found[name]) >= FEWEST else {}
        # A mean below 0 counts as 0.
        whole = limit(values, part) - min(statistics.fmean(values), 0.0) if name in spread else None
        environments = dict.fromkeys(environment for run in found[name] for environment in run)
        largest = {each: max(run[each] for run in found[name] if each in run) for each in environments}
        limits[name] = {"limit": whole, "limits": own, "rate": part, "peaks": values, "environments": largest}
    return limits


def own_limits(per_run: list[dict[str, float]], rate: float) -> dict[str, float]:
    """A limit for each environment, so that a run exceeds any of them with probability `rate`.

    Peaks are measured from the mean of their environment in units of its spread, and the limit is set for the largest peak of a
    run. Half of the variance is that of the average environment; otherwise an environment that happened to vary little would halt
    at the smallest change. If an environment moves away from the positive persona, its mean is below 0 and counts as 0, so that
    no limit is negative.
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


def _sample(per_run: list[dict[str, float]]) -> tuple[list[float], int]:
    """The values from which a limit is set, and how many values of a run share its rate."""
    if len(per_run) >= FEWEST:
        return [max(run.values()) for run in per_run], 1
    return [value for run in per_run for value in run.values()], max(map(len, per_run), default=1)


def limit(values: Sequence[float], rate: float) -> float:
    """The limit that the next value of the same kind exceeds with probability `rate`: mean + k · sd. It is exact for a Gumbel
    distribution of any location and scale, so few values give a wide margin. For a rate below `smallest_rate` it is too low."""
    if len(values) < FEWEST:
        raise ConfigError(f"a limit needs at least {FEWEST} values, got {len(values)}; calibrate on more runs")
    return statistics.fmean(values) + margin(len(values), rate) * statistics.stdev(values)


def smallest_rate(count: int) -> float:
    """The smallest rate of false halts for which the simulation behind a limit from `count` values has enough draws."""
    return TAIL * (count + 1) / DRAWS


@cache
def margin(count: int, rate: float) -> float:
    """The factor k of `limit`, found by simulation. It does not depend on the location and scale of the Gumbel distribution,
    because (next value - mean) / sd of `count` values has the same distribution for all of them."""
    # There are so many draws that some hundreds of them lie in the tail.
    draws = max(10_000, min(int(1000 / rate), DRAWS // (count + 1)))
    gumbel = np.random.default_rng(0).gumbel(size=(draws, count + 1))
    known, following = gumbel[:, 1:], gumbel[:, 0]
    return float(np.quantile((following - known.mean(1)) / known.std(1, ddof=1), 1 - rate))
