"""From the runs' `summary.json` to `compare.json`. Shape of `Summaries`: arm -> seed -> summary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from routed_rl.multirun.intervals import fold, interval, paired_difference, paired_ratio
from routed_rl.tracking import MODELS, NOT_METRICS

UNROUTED, ROUTED, CONTROL = "none", "route", "control"
"""The arms that others are measured against."""

Summaries = dict[str, dict[int, dict[str, Any]]]
Values = Mapping[int, float]
"""Seed -> value."""


def results(arms: Summaries, ranks: Mapping[int, dict[int, dict[str, Any]]]) -> dict[str, Any]:
    """Everything in `compare.json` that is a number.

    Every leaf is `{mean, low, high, seeds}`; differences and ratios are taken per seed, so seeds that only one side has
    do not count, nor do those in which a model's evaluation never named the metric.
    """
    known = known_metrics([summary for runs in [*arms.values(), *ranks.values()] for summary in runs.values()])
    tables = Tables(known)
    unrouted = arms.get(UNROUTED, {})
    return {
        "arms": {arm: tables.models(runs) for arm, runs in arms.items()},
        "routing": _folded(arms, "routing"),
        "attribution": _folded(arms, "attribution"),
        "timing": _folded(arms, "timing"),
        "real_minus_random": tables.paired(paired_difference, (arms.get(ROUTED, {}), "deployed"),
                                           (arms.get(CONTROL, {}), "deployed")),
        "deployed_minus_base": {arm: tables.paired(paired_difference, (runs, "deployed"), (runs, "base"))
                                for arm, runs in arms.items()},
        "policy_minus_base": {arm: tables.paired(paired_difference, (runs, "policy"), (runs, "base"))
                              for arm, runs in arms.items()},
        "policy_minus_unrouted": {arm: tables.paired(paired_difference, (runs, "policy"), (unrouted, "policy"))
                                  for arm, runs in arms.items() if arm != UNROUTED and unrouted},
        "policy_over_unrouted": {arm: tables.paired(paired_ratio, (runs, "policy"), (unrouted, "policy"))
                                 for arm, runs in arms.items() if arm != UNROUTED and unrouted},
        "gain_kept": {arm: tables.gain_kept(runs, unrouted) for arm, runs in arms.items() if arm != UNROUTED and unrouted},
        "ranks": {str(rank): {**tables.models(runs), "routing": fold([run.get("routing") for run in runs.values()])}
                  for rank, runs in ranks.items() if runs},
    }


class Tables:
    """Nested tables {environment: {metric: interval}} over the metrics that any run knows."""

    def __init__(self, known: dict[str, list[str]]) -> None:
        self.known = known

    def each(self, cell: Callable[[str, str], dict[str, Any] | None]) -> dict[str, dict[str, Any]]:
        """The table of `cell(environment, metric)`, without the cells that are None."""
        table = {env: {metric: found for metric in metrics if (found := cell(env, metric)) is not None}
                 for env, metrics in self.known.items()}
        return {env: row for env, row in table.items() if row}

    def models(self, runs: Mapping[int, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """{model: table} of one arm."""
        def cell(model: str, env: str, metric: str) -> dict[str, Any] | None:
            found = values(runs, model, env, metric)
            return interval([found[seed] for seed in sorted(found)]) if found else None

        return {model: self.each(lambda env, metric, model=model: cell(model, env, metric)) for model in MODELS}

    def paired(self, combine: Callable[[Values, Values], dict[str, Any] | None],
               first: tuple[Mapping[int, dict[str, Any]], str], second: tuple[Mapping[int, dict[str, Any]], str],
               ) -> dict[str, dict[str, Any]]:
        """The table of `combine(first, second)`; each is (runs of an arm, model)."""
        return self.each(lambda env, metric: combine(values(*first, env, metric), values(*second, env, metric)))

    def gain_kept(self, runs: Mapping[int, dict[str, Any]], unrouted: Mapping[int, dict[str, Any]]) -> dict[str, Any]:
        """The deployed model's gain in `solve` over base as a share of the unrouted run's."""
        def cell(env: str, metric: str) -> dict[str, Any] | None:
            if metric != "solve":
                return None
            return paired_ratio(gain(runs, "deployed", env, metric), gain(unrouted, "policy", env, metric))

        return self.each(cell)


def known_metrics(summaries: list[dict[str, Any]]) -> dict[str, list[str]]:
    """{environment: metrics} that any model of any run reports, in the order of appearance."""
    known: dict[str, dict[str, None]] = {}
    for summary in summaries:
        for table in summary["models"].values():
            for env, means in table.items():
                known.setdefault(env, {}).update(dict.fromkeys(name for name in means if name not in NOT_METRICS))
    return {env: list(names) for env, names in known.items()}


def values(runs: Mapping[int, dict[str, Any]], model: str, env: str, metric: str) -> dict[int, float]:
    """Seed -> value, over the runs in which this model has the metric on this environment."""
    return {seed: float(value) for seed, run in runs.items()
            if (value := run["models"].get(model, {}).get(env, {}).get(metric)) is not None}


def gain(runs: Mapping[int, dict[str, Any]], model: str, env: str, metric: str) -> dict[int, float]:
    """Seed -> value over the base model's."""
    base = values(runs, "base", env, metric)
    return {seed: value - base[seed] for seed, value in values(runs, model, env, metric).items() if seed in base}


def _folded(arms: Summaries, key: str) -> dict[str, Any]:
    folded = {arm: fold([run.get(key) for run in runs.values()]) for arm, runs in arms.items() if runs}
    return {arm: value for arm, value in folded.items() if value}
