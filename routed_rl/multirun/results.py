"""From the runs' `summary.json` to `compare.json`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from routed_rl.multirun.intervals import fold, interval, paired_difference, paired_ratio
from routed_rl.tracking import MODELS, NOT_METRICS

UNROUTED, ROUTED, CONTROL = "none", "route", "control"
"""The arms that others are measured against."""

Runs = Mapping[int, dict[str, Any]]
"""Seed -> summary."""
Values = Mapping[int, float]
"""Seed -> value."""


def results(arms: Mapping[str, Runs], ranks: Mapping[int, Runs]) -> dict[str, Any]:
    """Everything in `compare.json` that is a number.

    Every leaf is `{mean, low, high, seeds}`; differences and ratios are taken per seed, so seeds that only one side has
    do not count, nor do those in which a model's evaluation never named the metric.
    """
    known = known_metrics([summary for runs in [*arms.values(), *ranks.values()] for summary in runs.values()])
    unrouted = arms.get(UNROUTED, {})
    others = {arm: runs for arm, runs in arms.items() if arm != UNROUTED and unrouted}

    def table(combine: Callable[..., dict[str, Any] | None], *sides: tuple[Runs, str], only: str | None = None) -> dict[str, Any]:
        """{environment: {metric: `combine` of each side's values}}, without the cells that are None; a side is (runs, model)."""
        rows = {env: {metric: found for metric in metrics if only in (None, metric)
                      and (found := combine(*(values(*side, env, metric) for side in sides))) is not None}
                for env, metrics in known.items()}
        return {env: row for env, row in rows.items() if row}

    def models(runs: Runs) -> dict[str, Any]:
        return {model: table(_mean, (runs, model)) for model in MODELS}

    return {
        "arms": {arm: models(runs) for arm, runs in arms.items()},
        **{key: {arm: each for arm, runs in arms.items() if runs and (each := fold([run.get(key) for run in runs.values()]))}
           for key in ("routing", "attribution", "timing")},
        "real_minus_random": table(paired_difference, (arms.get(ROUTED, {}), "deployed"), (arms.get(CONTROL, {}), "deployed")),
        "deployed_minus_base": {arm: table(paired_difference, (runs, "deployed"), (runs, "base")) for arm, runs in arms.items()},
        "policy_minus_base": {arm: table(paired_difference, (runs, "policy"), (runs, "base")) for arm, runs in arms.items()},
        "policy_minus_unrouted": {arm: table(paired_difference, (runs, "policy"), (unrouted, "policy"))
                                  for arm, runs in others.items()},
        "policy_over_unrouted": {arm: table(paired_ratio, (runs, "policy"), (unrouted, "policy"))
                                 for arm, runs in others.items()},
        "gain_kept": {arm: table(_gain_kept, (runs, "deployed"), (runs, "base"), (unrouted, "policy"), (unrouted, "base"),
                                 only="solve") for arm, runs in others.items()},
        "ranks": {str(rank): {**models(runs), "routing": fold([run.get("routing") for run in runs.values()])}
                  for rank, runs in ranks.items() if runs},
    }


def known_metrics(summaries: list[dict[str, Any]]) -> dict[str, list[str]]:
    """{environment: metrics} that any model of any run reports, in the order of appearance."""
    known: dict[str, dict[str, None]] = {}
    for summary in summaries:
        for table in summary["models"].values():
            for env, means in table.items():
                known.setdefault(env, {}).update(dict.fromkeys(name for name in means if name not in NOT_METRICS))
    return {env: list(names) for env, names in known.items()}


def values(runs: Runs, model: str, env: str, metric: str) -> dict[int, float]:
    """Seed -> value, over the runs in which this model has the metric on this environment."""
    return {seed: float(value) for seed, run in runs.items()
            if (value := run["models"].get(model, {}).get(env, {}).get(metric)) is not None}


def _mean(found: Values) -> dict[str, Any] | None:
    return interval([found[seed] for seed in sorted(found)]) if found else None


def _gain_kept(deployed: Values, base: Values, unrouted: Values, unrouted_base: Values) -> dict[str, Any] | None:
    """The deployed model's gain over its base as a share of the unrouted policy's."""
    gains = [{seed: value - before[seed] for seed, value in after.items() if seed in before}
             for after, before in ((deployed, base), (unrouted, unrouted_base))]
    return paired_ratio(*gains)
