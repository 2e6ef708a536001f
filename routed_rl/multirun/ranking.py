"""Presents a sweep to people: the plan, a table, a plot, and the commands that train the best trials again."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from routed_rl.config import SweepConfig
from routed_rl.errors import command
from routed_rl.multirun.job import Job
from routed_rl.multirun.reporter import Table, panels
from routed_rl.multirun.results import known_metrics
from routed_rl.multirun.trials import Dimension, Outcome, best
from routed_rl.report.differences import not_scored


def plan_lines(trials: list[Job], dimensions: list[Dimension], settings: SweepConfig) -> list[str]:
    """Lines that show the trials of a grid, or, for a sweep without listed trials, the dimensions from which Optuna draws."""
    listed = [f"{trial.name}  {' '.join(f'{key}={value}' for key, value in trial.point.items())}" for trial in trials]
    return [*(listed or [f"drawn: {dimension}" for dimension in dimensions]),
            f"{len(trials) or settings.trials} trials, {settings.jobs} at a time"]


def result(found: list[Outcome], settings: SweepConfig, request: dict[str, Any]) -> dict[str, Any]:
    """The content of sweep.json. `request` is the record of what the user asked for."""
    return {"request": request, "method": settings.method, "objectives": settings.objectives, "directions": settings.directions,
            "trials": [each.record() for each in found], "best": [each.record() for each in best(found, settings.directions)]}


def table(found: list[Outcome], settings: SweepConfig) -> Table:
    """The table of a sweep, with a row for each trial, the best first. Without an objective it has a row for each trial and
    environment, with the metrics of the policy and the deployed model."""
    keys = list(dict.fromkeys(key for each in found for key in each.trial.point))
    if not settings.objectives:
        return _figures(found, keys)
    winners = [each.trial.name for each in best(found, settings.directions)]
    sign = -1 if settings.directions[0] == "maximize" else 1
    rows: list[list[str]] = []
    for each in sorted(found, key=lambda each: (not each.values, sign * each.values[0] if each.values else 0.0)):
        values = [f"{value:.4g}" for value in each.values] if each.values else ["-"] * len(settings.objectives)
        rows.append([*_names(each, keys), *values, "best" if each.trial.name in winners else _mark(each)])
    return Table(f"sweep of {len(found)} trials" + (", best: the Pareto front" if len(settings.objectives) > 1 else ""),
                 ["trial", *keys, *settings.objectives, ""], rows)


def _figures(found: list[Outcome], keys: list[str]) -> Table:
    known = known_metrics([each.summary for each in found if each.summary])
    metrics = list(dict.fromkeys(metric for names in known.values() for metric in names))
    rows: list[list[str]] = []
    for each in found:
        models = each.summary.get("models", {})
        names, mark = _names(each, keys), _mark(each)
        for env in [env for env in known if env in models.get("policy", {})] or [""]:
            rows.append([*names, env, *(_pair(models, env, metric) for metric in metrics), mark])
            names, mark = [""] * len(names), ""  # only in the first row of a trial
    return Table(f"sweep of {len(found)} trials: policy / deployed model, one number where they are the same",
                 ["trial", *keys, "environment", *metrics, ""], rows)


def _pair(models: dict[str, Any], env: str, metric: str) -> str:
    values = [models[model][env].get(metric) for model in ("policy", "deployed") if env in models.get(model, {})]
    return " / ".join(dict.fromkeys("-" if value is None else f"{value:.2f}" for value in values))


def notes(found: list[Outcome], settings: SweepConfig) -> list[str]:
    said = [f"{each.trial.name}: {line}" for each in found for line in not_scored(each.summary.get("models", {}))]
    if settings.objectives:
        return said
    if not any(each.summary.get("models", {}).get("policy") for each in found):
        return ["no trial was evaluated, so there is nothing to compare; set evaluation.samples=200, or read the report of each "
                "trial"]
    return [*said, "no objective is set, so no trial is the best; sweep.objective=models.deployed.ENV.solve ranks them"]


def commands(found: list[Outcome], settings: SweepConfig) -> Iterator[str]:
    """The commands that train the best trials again, each with the trial's name and its values of the objectives."""
    for each in best(found, settings.directions):
        values = ", ".join(f"{path} {value:.3f}" for path, value in zip(settings.objectives, each.values or [], strict=True))
        yield f"{each.trial.name} ({values}): {command('train', *each.trial.overrides)}"


def _mark(each: Outcome) -> str:
    return "" if each.state == "done" else each.state


def _names(each: Outcome, keys: list[str]) -> list[str]:
    return [each.trial.name, *(each.trial.point.get(key, "-") for key in keys)]


def draw(path: Path, found: list[Outcome], settings: SweepConfig) -> list[str]:
    """Write PATH.png and PATH.svg: the objective over each setting, or, with several objectives, the second objective over the
    first with the Pareto front. Returns the names of the files that were written; there are none if no trial has a value of the
    objective."""
    done, several = [each for each in found if each.values], len(settings.objectives) > 1
    if not done:
        return []
    keys = list(done[0].trial.point)
    figure, axes = panels(1 if several else len(keys), 3.4)
    if several:
        _front(axes[0], done, settings)
    else:
        for panel, key in zip(axes, keys, strict=True):
            _panel(panel, key, done, settings)
    for suffix in ("png", "svg"):
        figure.savefig(f"{path}.{suffix}", dpi=150)
    return [f"{path.name}.png", f"{path.name}.svg"]


def _panel(panel: Any, key: str, done: list[Outcome], settings: SweepConfig) -> None:
    x: list[Any] = [each.trial.point[key] for each in done]
    with suppress(ValueError):  # words stay words, each at its own place
        x = [float(value) for value in x]
        if min(x) > 0 and max(x) / min(x) > 30:
            panel.set_xscale("log")
    panel.plot(x, [each.values[0] for each in done if each.values], "o")
    panel.set_xlabel(key, fontsize="small")
    panel.set_ylabel(settings.objectives[0], fontsize="small")


def _front(panel: Any, done: list[Outcome], settings: SweepConfig) -> None:
    for label, marker, group in (("trials", "o", done), ("Pareto front", "s-", best(done, settings.directions))):
        values = [each.values for each in group if each.values]
        panel.plot([value[0] for value in values], [value[1] for value in values], marker, label=label)
    panel.set_xlabel(settings.objectives[0], fontsize="small")
    panel.set_ylabel(settings.objectives[1], fontsize="small")
    panel.legend(fontsize="small")
