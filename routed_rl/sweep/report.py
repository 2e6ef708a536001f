"""A sweep for people: what is planned, a table, a plot, and the best overrides to paste."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from routed_rl import console
from routed_rl.config import SweepConfig
from routed_rl.sweep.space import Dimension
from routed_rl.sweep.trials import Outcome, Trial, best

MARKS = {"done": "", "failed": "failed", "pruned": "pruned"}


def show_plan(trials: list[Trial], dimensions: list[Dimension], settings: SweepConfig) -> None:
    """The trials of a grid, or what Optuna draws from."""
    for trial in trials:
        console.say(f"{trial.name}  {' '.join(f'{key}={value}' for key, value in trial.point.items())}")
    if not trials:
        for dimension in dimensions:
            console.say(f"drawn: {dimension}")
    count = len(trials) or settings.trials
    console.say(f"{count} trials, {settings.jobs} at a time")


def result(found: list[Outcome], settings: SweepConfig, request: dict[str, Any]) -> dict[str, Any]:
    """What stands in sweep.json."""
    return {"request": request, "method": settings.method, "objectives": settings.objectives, "directions": settings.directions,
            "trials": [each.record() for each in found], "best": [each.record() for each in _best(found, settings)]}


def show(found: list[Outcome], settings: SweepConfig) -> None:
    """The table, the best first where there is an objective; then the commands to paste."""
    front, several = _best(found, settings), len(settings.objectives) > 1
    winners = {each.trial.number for each in front}
    keys = list(dict.fromkeys(key for each in found for key in each.trial.point))
    rows = [[each.trial.name, *(each.trial.point.get(key) for key in keys), *_values(each, settings),
             MARKS[each.state] or ("best" if each.trial.number in winners else "")] for each in _ranked(found, settings)]
    console.table(f"sweep of {len(found)} trials" + (", best: the Pareto front" if several else ""),
                  ["trial", *keys, *settings.objectives, ""], rows)
    for each in front:
        values = ", ".join(f"{path} {value:.3f}" for path, value in zip(settings.objectives, each.values or [], strict=True))
        console.say(f"{each.trial.name} ({values}): routed-rl train {' '.join(_quoted(text) for text in each.trial.overrides)}")


def _values(each: Outcome, settings: SweepConfig) -> list[str | None]:
    return [f"{value:.4g}" for value in each.values] if each.values else [None] * len(settings.objectives)


def _best(found: list[Outcome], settings: SweepConfig) -> list[Outcome]:
    return best(found, settings.directions) if settings.objectives else []


def _ranked(found: list[Outcome], settings: SweepConfig) -> list[Outcome]:
    """By the first objective, those without a value last; by number where there is none."""
    if not settings.objectives:
        return found
    sign = -1 if settings.directions[0] == "maximize" else 1
    return sorted(found, key=lambda each: (not each.values, sign * each.values[0] if each.values else 0.0))


def _quoted(text: str) -> str:
    return f"'{text}'" if set(text) & set("[]{}()$ ,") else text


def draw(path: Path, found: list[Outcome], settings: SweepConfig) -> list[str]:
    """PATH.png and PATH.svg: the objective over each setting; of several objectives the second over the first, with the front.
    Returns the names of what was written: nothing where nothing is judged."""
    done = [each for each in found if each.values]
    if not done:
        return []
    keys = list(done[0].trial.point)
    panels = 1 if len(settings.objectives) > 1 else len(keys)
    figure = Figure(figsize=(1 + 3.4 * panels, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    if len(settings.objectives) > 1:
        _front(axes[0], done, settings)
    else:
        for panel, key in zip(axes, keys, strict=True):
            _panel(panel, key, done, settings)
    files = [path.with_suffix(f".{suffix}") for suffix in ("png", "svg")]
    for file in files:
        figure.savefig(file, dpi=150)
    return [file.name for file in files]


def _panel(panel: Any, key: str, done: list[Outcome], settings: SweepConfig) -> None:
    places = {value: place for place, value in enumerate(dict.fromkeys(each.trial.point[key] for each in done))}
    try:
        x = [float(each.trial.point[key]) for each in done]
        if min(x) > 0 and max(x) / min(x) > 30:
            panel.set_xscale("log")
    except ValueError:
        x = [float(places[each.trial.point[key]]) for each in done]
        panel.set_xticks(range(len(places)), list(places))
    panel.plot(x, [each.values[0] for each in done if each.values], "o")
    panel.set_xlabel(key, fontsize="small")
    panel.set_ylabel(settings.objectives[0], fontsize="small")


def _front(panel: Any, done: list[Outcome], settings: SweepConfig) -> None:
    front = _best(done, settings)
    for label, marker, group in (("trials", "o", done), ("Pareto front", "s-", front)):
        values = [each.values for each in group if each.values]
        panel.plot([value[0] for value in values], [value[1] for value in values], marker, label=label)
    panel.set_xlabel(settings.objectives[0], fontsize="small")
    panel.set_ylabel(settings.objectives[1], fontsize="small")
    panel.legend(fontsize="small")
