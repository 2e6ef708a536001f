"""A comparison for people: its tables and its plot, from the content of `compare.json` alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from routed_rl.multirun.reporter import Table, panels, save

Cell = Callable[[dict[str, Any]], str]


def tables(found: dict[str, Any], cell: Cell) -> list[Table]:
    """The tables of a comparison, without the empty ones; `cell` writes an interval."""
    arms, first = found["arms"], next(iter(found["arms"].values()), {})
    base = {"base": first.get("base", {})}
    made = [
        _by_arm(cell, "deployed model (quarantine discarded)", base | {arm: models["deployed"] for arm, models in arms.items()}),
        _by_arm(cell, "policy (quarantine on)", base | {arm: models["policy"] for arm, models in arms.items()}),
        _by_arm(cell, "deployed: route minus control (real minus random)", {"difference": found["real_minus_random"]}),
        _by_arm(cell, "deployed minus base", found["deployed_minus_base"]),
        _by_arm(cell, "policy, as a share of the unrouted run's", found["policy_over_unrouted"], only="reward"),
        _by_arm(cell, "deployed: share of the unrouted run's gain kept", found["gain_kept"]),
        _ranks(cell, found["ranks"]),
    ]
    return [table for table in made if table.rows]


def with_bounds(value: dict[str, Any]) -> str:
    """`mean [low, high]`, or the mean alone where there is one seed."""
    bounds = "" if value["low"] is None else f" [{value['low']:.3f}, {value['high']:.3f}]"
    return f"{value['mean']:.3f}{bounds}"


def with_half_width(value: dict[str, Any]) -> str:
    """`mean ±half the interval`, which fits a screen."""
    half = "" if value["low"] is None else f" ±{value['high'] - value['mean']:.3f}"
    return f"{value['mean']:.3f}{half}"


def draw(path: Path, found: dict[str, Any]) -> list[str]:
    """The deployed models' metrics by arm, with intervals, one panel per environment; the base model is a dotted line. Returns
    the names of what was written: nothing where nothing was evaluated."""
    arms = {arm: models for arm, models in found["arms"].items() if models.get("deployed")}
    environments = list(dict.fromkeys(env for models in arms.values() for env in models["deployed"]))
    if not environments:
        return []
    figure, axes = panels(len(environments), 3.2)
    for panel, env in zip(axes, environments, strict=True):
        _panel(panel, env, arms)
    return [save(figure, path)]


def _panel(panel: Any, env: str, arms: dict[str, Any]) -> None:
    metrics = list(dict.fromkeys(metric for models in arms.values() for metric in models["deployed"].get(env, {})))
    base = next(iter(arms.values()))["base"].get(env, {})
    for place, metric in enumerate(metrics):
        points = [(index, models["deployed"][env][metric]) for index, models in enumerate(arms.values())
                  if metric in models["deployed"].get(env, {})]
        errors = [0.0 if value["low"] is None else value["high"] - value["mean"] for _, value in points]
        offset = 0.15 * (place - (len(metrics) - 1) / 2)
        panel.errorbar([index + offset for index, _ in points], [value["mean"] for _, value in points], yerr=errors,
                       fmt="o", capsize=3, label=metric, color=f"C{place}")
        if metric in base:
            panel.axhline(base[metric]["mean"], linestyle=":", linewidth=0.8, color=f"C{place}")
    panel.set_xticks(range(len(arms)), list(arms))
    panel.set_title(f"{env}, deployed (dotted: base)", fontsize="medium")
    panel.set_xlim(-0.5, len(arms) - 0.5)
    panel.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=max(1, len(metrics)), frameon=False)


def _by_arm(cell: Cell, title: str, columns: dict[str, dict[str, Any]], only: str | None = None) -> Table:
    """A row per environment and metric, a column per key of `columns`, which hold {environment: {metric: value}}."""
    keys = dict.fromkeys((env, metric) for table in columns.values() for env, row in table.items() for metric in row
                         if only in (None, metric))
    rows = [[f"{env} {metric}", *(_or_dash(cell, table.get(env, {}).get(metric)) for table in columns.values())]
            for env, metric in keys]
    return Table(title, ["", *columns], rows)


def _ranks(cell: Cell, ranks: dict[str, Any]) -> Table:
    """A column per rank: the policy's reward, the deployed model's flags and solve, and what the quarantine holds."""
    lines: dict[str, list[str]] = {}
    for position, found in enumerate(ranks.values()):
        entries = {f"policy {env} reward": row.get("reward") for env, row in found["policy"].items()}
        entries |= {f"deployed {env} {metric}": value for env, row in found["deployed"].items()
                    for metric, value in row.items() if metric != "reward"}
        routing = found.get("routing") or {}
        entries |= {name: routing.get(name) for name in ("quarantine_share", "routed_fraction")}
        for name, value in entries.items():
            lines.setdefault(name, ["-"] * len(ranks))[position] = _or_dash(cell, value)
    return Table("route by rank", ["", *(f"rank {rank}" for rank in ranks)], [[name, *row] for name, row in lines.items()])


def _or_dash(cell: Cell, value: dict[str, Any] | None) -> str:
    return "-" if value is None else cell(value)
