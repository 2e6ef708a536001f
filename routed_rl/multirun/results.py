"""Turns the files `summary.json` of several runs into `compare.json`."""

from collections.abc import Mapping
from typing import Any

from routed_rl.multirun.arms import CONTROL, ROUTED, UNROUTED
from routed_rl.multirun.intervals import Cells, fold, intervals, minus, over
from routed_rl.tracking import MODELS, NOT_METRICS

Runs = Mapping[int, dict[str, Any]]
"""Maps a seed to the summary of its run."""


def results(arms: Mapping[str, Runs], ranks: Mapping[int, Runs]) -> dict[str, Any]:
    """The content of `compare.json`. `arms` has the runs of each arm, and `ranks` those of the arm `route` at each rank that was
    asked for.

    Every leaf is `{mean, low, high, seeds}`, except below the key `flags`, which holds the names of flags. Differences and ratios
    are taken per seed. A seed counts only if both runs that are compared have it, and if both evaluations report the metric. A
    flag that an evaluation does not name was never seen there, so it counts as 0.
    """
    summaries = [summary for runs in [*arms.values(), *ranks.values()] for summary in runs.values()]
    known, flags = known_metrics(summaries), known_flags(summaries)

    def measured(runs: Runs) -> dict[str, Cells]:
        return {model: {(env, metric): _values(runs, model, env, metric, flag=metric in (flags or {}).get(env, ()))
                        for env, metrics in known.items() for metric in metrics} for model in MODELS}

    def means(models: dict[str, Cells]) -> dict[str, Any]:
        return {model: intervals(cells) for model, cells in models.items()}

    found = {arm: measured(runs) for arm, runs in arms.items()}
    unrouted, routed, control = (found.get(arm, measured({})) for arm in (UNROUTED, ROUTED, CONTROL))
    others = {arm: models for arm, models in found.items() if arm != UNROUTED and arms.get(UNROUTED)}
    gain = minus(unrouted["policy"], unrouted["base"])
    return {
        "flags": flags,
        "arms": {arm: means(models) for arm, models in found.items()},
        **{key: {arm: each for arm, runs in arms.items() if runs and (each := fold([run.get(key) for run in runs.values()]))}
           for key in ("routing", "attribution", "timing")},
        "time_over_unrouted": _times(arms),
        "real_minus_random": intervals(minus(routed["deployed"], control["deployed"])),
        **{f"{model}_minus_base": {arm: intervals(minus(models[model], models["base"])) for arm, models in found.items()}
           for model in ("deployed", "policy")},
        "deployed_minus_unrouted": {arm: intervals(minus(models["deployed"], unrouted["deployed"]))
                                    for arm, models in others.items()},
        "policy_minus_unrouted": {arm: intervals(minus(models["policy"], unrouted["policy"])) for arm, models in others.items()},
        "policy_over_unrouted": {arm: intervals(over(models["policy"], unrouted["policy"])) for arm, models in others.items()},
        "gain_kept": {arm: intervals(over(minus(models["deployed"], models["base"]), gain), only="solve")
                      for arm, models in others.items()},
        "ranks": {str(rank): {**means(measured(runs)), "routing": fold([run.get("routing") for run in runs.values()])}
                  for rank, runs in ranks.items() if runs},
    }


def known_metrics(summaries: list[dict[str, Any]]) -> dict[str, list[str]]:
    """{environment: metrics} with every metric that any model of any run reports, in the order in which they first appear."""
    known: dict[str, dict[str, None]] = {}
    for summary in summaries:
        for table in summary["models"].values():
            for env, means in table.items():
                known.setdefault(env, {}).update(dict.fromkeys(name for name in means if name not in NOT_METRICS))
    return {env: list(names) for env, names in known.items()}


def known_flags(summaries: list[dict[str, Any]]) -> dict[str, list[str]] | None:
    """{environment: flags} with every flag that any run records; None if some run does not record flags, because an older version
    made it."""
    if not all("flags" in summary for summary in summaries):
        return None
    names = dict.fromkeys(env for summary in summaries for env in summary["flags"])
    return {env: sorted({flag for summary in summaries for flag in summary["flags"].get(env, [])}) for env in names}


def _values(runs: Runs, model: str, env: str, metric: str, *, flag: bool) -> dict[int, float]:
    """{seed: value} of `metric`, for the runs whose `model` was evaluated on `env` and reports the metric. If `flag` is true, the
    metric is a flag, and a model that was evaluated on `env` without reporting it has 0."""
    found = {seed: means.get(metric, 0.0 if flag else None) for seed, run in runs.items()
             if (means := run["models"].get(model, {}).get(env))}
    return {seed: float(value) for seed, value in found.items() if value is not None}


def _times(arms: Mapping[str, Runs]) -> dict[str, Any]:
    """For each arm, the seconds of training divided by those of the unrouted run of the same seed."""
    cell = ("", "train_s")
    spent: dict[str, Cells] = {arm: {cell: {seed: run["timing"]["train_s"] for seed, run in runs.items()
                                            if "train_s" in run.get("timing", {})}} for arm, runs in arms.items()}
    found = {arm: intervals(over(each, spent.get(UNROUTED, {cell: {}}))) for arm, each in spent.items()}
    return {arm: each[""]["train_s"] for arm, each in found.items() if each}
