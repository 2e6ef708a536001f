"""Sets the limits of rules by the metrics of secure runs, so that a given share of secure runs exceeds at least one limit.

The peak of a run is the largest value of a rule over the run's environments and steps. A peak is the maximum of many values, so a
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
from routed_rl.monitor.judge import STANDING, SUSPICION, Detector
from routed_rl.monitor.rules import RULES, Row, shift

FEWEST = 5
"""The smallest number of peaks from which their spread can be estimated."""
DRAWS = 20_000_000
TAIL = 20
"""The smallest number of simulated draws that must exceed a limit, so that the share of such draws is known well enough."""
Peaks = dict[str, list[dict[str, float]]]
"""Maps a rule to a list with one entry for each run, which maps each environment to its peak."""


def peaks(rows: Iterable[Row], config: MonitorConfig, rule: str) -> dict[str, float]:
    """Return, for each environment, the highest limit at which the rule of this name would still have given a verdict in a run.
    `rows`: the metrics of the run's steps, in order."""
    settings: RuleConfig = getattr(config, rule)
    detectors: dict[str, Detector] = {}
    recent: dict[str, deque[float]] = {}
    found: dict[str, float] = {}
    before: Row = {}
    for row in rows:
        standing = shift(row, config.axis)
        for name, reading in RULES[rule].read(row, before, config.axis).items():
            value = detectors.setdefault(name, Detector()).take(reading, settings, sums=RULES[rule].sums)
            if RULES[rule].of_pull and standing.get(name, 0.0) > STANDING:
                value /= SUSPICION  # the share of the limit that is enough there
            last = recent.setdefault(name, deque(maxlen=settings.patience))
            last.append(value)
            if len(last) == settings.patience and row["step"] > config.warmup:
                found[name] = max(found.get(name, min(last)), min(last))
        before = row
    return found


def check_rate(rate: float, floor: float) -> None:
    """ConfigError if `rate`, the wanted rate of false halts, is below `floor`, the smallest rate for which the simulation behind
    a limit has enough draws."""
    if rate < floor:  # the error names it rounded up, so that the number can be typed
        raise ConfigError(f"--rate {rate:g} is less than the simulation behind a limit resolves; the smallest is "
                          f"{1.01 * floor:.3g}")


def set_limits(found: Peaks, rate: float) -> dict[str, dict[str, Any]]:
    """Set limits so that a secure run halts with probability `rate`. `found`: the peaks of secure runs, by rule. Returns for each
    rule, as plain JSON, its limit, the limits of single environments, and the peaks from which they come. A limit is None if the
    runs do not determine it, because they have no reading or no spread.

    The rate is divided evenly among the rules that have a spread. With fewer than `FEWEST` runs, the peaks of all environments
    are pooled as if the environments were alike. ConfigError for a rate that is too small for the simulation behind a limit.
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
    """Return a limit for each environment, so that a run exceeds at least one of these limits with probability `rate`. `per_run`:
    for each run, the peak of each environment. ConfigError if the runs have no environment in common.

    A peak is measured from the mean peak of its environment, in units of the environment's spread, and one limit is set for the
    largest peak of a run in these units. The spread is the root of the mean of two variances: that of the environment's peaks,
    and the average of all environments' variances. So an environment that happened to vary little does not halt at the smallest
    change. If an environment moves away from the positive persona, its mean peak is below 0 and counts as 0, so that no limit is
    negative.
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
    """Return the peaks from which a rule's limit is set, and the number by which the rate of false halts is divided. With at
    least `FEWEST` runs, they are the largest peak of each run, and 1. With fewer runs, they are the peaks of all environments in
    all runs, and the number of environments in a run."""
    if len(per_run) >= FEWEST:
        return [max(run.values()) for run in per_run], 1
    return [value for run in per_run for value in run.values()], max(map(len, per_run), default=1)


def limit(values: Sequence[float], rate: float) -> float:
    """Return the limit that the next value of the same kind as `values` exceeds with probability `rate`: their mean plus k times
    their standard deviation, with k from `margin`. The probability is exact for a Gumbel distribution of any location and scale,
    and the limit is higher the fewer values there are. For a rate below `smallest_rate` the limit is too low."""
    if len(values) < FEWEST:
        raise ConfigError(f"a limit needs at least {FEWEST} values, got {len(values)}; calibrate on more runs")
    return statistics.fmean(values) + margin(len(values), rate) * statistics.stdev(values)


def smallest_rate(count: int) -> float:
    """Return the smallest rate for which the simulation behind a limit from `count` values has enough draws above the limit (see
    `TAIL`)."""
    return TAIL * (count + 1) / DRAWS


@cache
def margin(count: int, rate: float) -> float:
    """Return the factor k of `limit` for `count` values, found by simulation: the quantile of (next value - mean of the values) /
    (their standard deviation) for draws of a Gumbel distribution. It is the same for every location and scale."""
    # There are so many draws that some hundreds of them lie in the tail.
    draws = max(10_000, min(int(1000 / rate), DRAWS // (count + 1)))
    gumbel = np.random.default_rng(0).gumbel(size=(draws, count + 1))
    known, following = gumbel[:, 1:], gumbel[:, 0]
    return float(np.quantile((following - known.mean(1)) / known.std(1, ddof=1), 1 - rate))
