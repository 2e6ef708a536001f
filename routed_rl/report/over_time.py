"""Makes pictures of lines over the steps of a run. Each picture comes with its content in words and as numbers, and with marks at
events."""

import pandas as pd

from routed_rl.report.charts import Mark, panels
from routed_rl.report.charts import lines as draw_lines
from routed_rl.report.data import RunData, thinned
from routed_rl.report.parts import Chart, by_step
from routed_rl.report.story import culprit

POINTS, FEW = 240, 100
"""Largest number of points of a line: `POINTS` in a large picture, `FEW` in a small panel."""


def marks(run: RunData) -> list[Mark]:
    """Marks for the steps at which the run halted, and for the step from which a rollback made the run."""
    halts = [*run.halts, *([run.halted] if run.halted else [])]
    found = [Mark(halt["step"], f"halted, step {halt['step']}") for halt in halts]
    if run.lineage and run.lineage["step"]:
        found.append(Mark(run.lineage["step"], f"went back to step {run.lineage['step']}"))
    return found


def line_chart(run: RunData, name: str, title: str, lines: dict[str, pd.Series], label: str, *, level: float | None = None,
               log: bool = False, mean: bool = False) -> Chart:
    """A picture with a line for each key of `lines`. `name` is the id of the picture in the page, and `label` is the text at its
    vertical axis; `level` is a horizontal line, and `log` asks for a logarithmic scale. Long lines are thinned: each point is the
    mean of a stretch of steps, or, with `mean` false, the last value of the stretch."""
    thin = {key: thinned(series, POINTS, mean=mean) for key, series in lines.items()}
    ends = sorted(((float(series.iloc[-1]), key) for key, series in lines.items() if len(series)), reverse=True)
    longest = max(lines.values(), key=len)
    removed = run.removed()
    said = [f"{key} {end:.3g}{f' until step {lines[key].index[-1]}, then removed' if key in removed else ''}"
            for end, key in ends]
    words = (f"{len(lines)} lines over {run.last_step} steps. At the end: {', '.join(said)}."
             + stretch(longest, POINTS, mean=mean))
    svg = draw_lines(name, thin, label, marks(run), run.last_step, run.environments(), bold=culprit(run),
                       level=level, log=log)
    return Chart(name, title, words, svg, by_step(f"{title}.", lines))


def panel_chart(run: RunData, name: str, title: str, grid: dict[str, dict[str, pd.Series]]) -> Chart:
    """A picture with a small panel for each key of `grid`. The value of the key has the panel's lines by name, and the names are
    the same in all panels. `name` is the id of the picture in the page."""
    keys = dict.fromkeys(key for lines in grid.values() for key in lines)
    longest = max((series for lines in grid.values() for series in lines.values()), key=len)
    thin = {env: {key: thinned(series, FEW, mean=True) for key, series in lines.items()} for env, lines in grid.items()}
    words = f"A panel for each of {len(grid)} environments: {', '.join(keys)} by step.{stretch(longest, FEW, mean=True)}"
    flat = {f"{env}, {key}": series for env, lines in grid.items() for key, series in lines.items()}
    return Chart(name, title, words, panels(name, thin, marks(run), run.last_step), by_step(f"{title}.", flat))


def stretch(series: pd.Series, points: int, *, mean: bool) -> str:
    """A sentence on how many steps of `series` one point of its line stands for, if the line is thinned to `points` points, and
    on whether the point is their mean (`mean`) or the last of them. Empty if `series` has at most `points` steps."""
    if len(series) <= points:
        return ""
    return f" A point is {'the mean' if mean else 'the last'} of up to {-(-len(series) // points)} steps."
