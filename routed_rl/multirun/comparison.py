"""Presents a comparison to people, with tables and a plot, which are made from the content of `compare.json` alone."""

from pathlib import Path
from typing import Any

from routed_rl.multirun.reporter import Table, panels


def tables(found: dict[str, Any], *, bounds: bool) -> list[Table]:
    """The tables of a comparison, made from `found`, the content of compare.json; empty tables are left out. `bounds` says
    whether intervals are shown with both bounds, or in a shorter form that fits a screen."""
    def table(title: str, columns: dict[str, dict[str, Any]], only: str | None = None) -> Table:
        """A table with a row per environment and metric and a column per key of `columns`, whose values are {environment:
        {metric: value}}. `only`: the one metric that is shown; None: all."""
        keys = dict.fromkeys((env, metric) for column in columns.values() for env, row in column.items() for metric in row
                             if only in (None, metric))
        return Table(title, ["", *columns], [
            [f"{env} {metric}".lstrip(), *(cell(column.get(env, {}).get(metric), bounds) for column in columns.values())]
            for env, metric in keys])

    arms, first = found["arms"], next(iter(found["arms"].values()), {})
    base = {"base": first.get("base", {})}
    made = [
        table("deployed model (quarantine discarded)", base | {arm: models["deployed"] for arm, models in arms.items()}),
        table("policy (quarantine on)", base | {arm: models["policy"] for arm, models in arms.items()}),
        table("deployed: route minus control (real minus random)", {"difference": found["real_minus_random"]}),
        table("deployed minus base", found["deployed_minus_base"]),
        table("policy, as a share of the unrouted run's", found["policy_over_unrouted"], only="reward"),
        table("deployed: kept share of the unrouted run's gain", found["gain_kept"]),
        table("route by rank", {f"rank {rank}": _of_rank(models) for rank, models in found["ranks"].items()}),
    ]
    return [table for table in made if table.rows]


def cell(value: dict[str, Any] | None, bounds: bool, digits: int = 3) -> str:
    """An interval as text, with `digits` decimals. With `bounds` it is `mean [low, high]`, otherwise `mean ±half`. Only the mean
    is shown if there is one seed, and a dash if there is no value."""
    if value is None:
        return "-"
    mean, low, high = value["mean"], value["low"], value["high"]
    if low is None:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} " + (f"[{low:.{digits}f}, {high:.{digits}f}]" if bounds else f"±{high - mean:.{digits}f}")


def _of_rank(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """A column of the table of ranks, {row: {metric: interval}}, made from `found`, the entry of a rank in compare.json: the
    policy's reward, the deployed model's other metrics, and the quarantine's share and routed fraction."""
    policy = {f"policy {env}": {"reward": row.get("reward")} for env, row in found["policy"].items()}
    deployed = {f"deployed {env}": {metric: value for metric, value in row.items() if metric != "reward"}
                for env, row in found["deployed"].items()}
    routing = found.get("routing") or {}
    return policy | deployed | {"": {name: routing.get(name) for name in ("quarantine_share", "routed_fraction")}}


def draw(path: Path, found: dict[str, Any]) -> list[str]:
    """Plot the metrics of the deployed models by arm, with intervals, and one panel per environment; a dotted line is the base
    model. Returns the names of the files that were written; there are none if nothing was evaluated."""
    arms = {arm: models for arm, models in found["arms"].items() if models.get("deployed")}
    environments = list(dict.fromkeys(env for models in arms.values() for env in models["deployed"]))
    if not environments:
        return []
    figure, axes = panels(len(environments), 3.2)
    for panel, env in zip(axes, environments, strict=True):
        _panel(panel, env, arms)
    figure.savefig(path, dpi=150)
    return [path.name]


def _panel(panel: Any, env: str, arms: dict[str, Any]) -> None:
    rows = [models["deployed"].get(env, {}) for models in arms.values()]
    metrics = list(dict.fromkeys(metric for row in rows for metric in row))
    base = next(iter(arms.values()))["base"].get(env, {})
    for place, metric in enumerate(metrics):
        offset = 0.15 * (place - (len(metrics) - 1) / 2)
        points = {index + offset: row[metric] for index, row in enumerate(rows) if metric in row}
        errors = [0.0 if value["low"] is None else value["high"] - value["mean"] for value in points.values()]
        panel.errorbar(list(points), [value["mean"] for value in points.values()], yerr=errors, fmt="o", capsize=3, label=metric,
                       color=f"C{place}")
        if metric in base:
            panel.axhline(base[metric]["mean"], linestyle=":", linewidth=0.8, color=f"C{place}")
    panel.set_xticks(range(len(arms)), list(arms))
    panel.set_title(f"{env}, deployed (dotted: base)", fontsize="medium")
    panel.set_xlim(-0.5, len(arms) - 0.5)
    panel.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=max(1, len(metrics)), frameon=False)
