"""The pictures of a report, drawn by matplotlib as SVG. Their colours are CSS variables of the page, so that they follow the
page's light, dark and print styles.

A line is recognised by its dashes and by the name at its end as well as by its colour. Text in a picture is stored as text and
not as outlines.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

TEXT, GRID, MARK = "#010001", "#010002", "#010003"
COLOURS = [f"#0100{place:02x}" for place in range(0x10, 0x16)]
VARIABLES = {TEXT: "--text", GRID: "--grid", MARK: "--mark"} | {colour: f"--c{place}" for place, colour in enumerate(COLOURS)}
"""Maps the placeholder colours with which matplotlib draws to the variables of page.css that replace them."""
DASHES: list[Any] = ["-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (7, 2, 1.5, 2))]
LOOKS = {"base": 5, "policy": 1, "deployed": 0, "kept": 2}
"""For each model, the index of its colour, which is the same as in the picture at the top of the page."""
MARKERS = {"base": "o", "policy": "s", "deployed": "D", "kept": "^"}
WIDTH = 4.7
"""Width of a picture in inches of 72 units. The page scales a picture by about 1.4 on a desktop screen and by 1 on a phone, so
that its text can be read there."""
LETTERS = 12.5
"""Least distance between two names at the ends of lines, in points."""
STYLE: dict[Any, Any] = {
    # Names may contain dollar signs, which must not begin a formula.
    "text.parse_math": False,
    "svg.fonttype": "none", "svg.hashsalt": "routed_rl", "font.size": 9, "text.color": TEXT, "axes.edgecolor": GRID,
    "axes.labelcolor": TEXT, "axes.titlecolor": TEXT, "xtick.color": TEXT, "ytick.color": TEXT, "axes.grid": True,
    "grid.color": GRID, "grid.linewidth": 0.5, "axes.spines.top": False, "axes.spines.right": False, "figure.facecolor": "none",
    "axes.facecolor": "none", "axes.titlesize": 9, "legend.frameon": False, "legend.labelcolor": TEXT}


@dataclass(frozen=True)
class Mark:
    """An event at a step, which is marked in the pictures."""

    step: int
    label: str


def lines(name: str, series: dict[str, pd.Series], label: str, marks: Sequence[Mark], until: int, order: Sequence[str], *,
          bold: str | None = None, level: float | None = None, log: bool = False) -> Markup:
    """A picture with a line for each series up to step `until`, with the name of the series at the end of its line. `name` is the
    id of the picture in the page, and `label` is the text at the vertical axis. `marks` are events to show. The line `bold`
    stands out, and `level` is a horizontal line for comparison; `log` asks for a logarithmic scale.

    The index of a name in `order` decides the look of its line, which is the same in all pictures. A line whose name is not in
    `order` has the colour of text.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, max(2.6, 0.19 * len(series) + 1)))
        panel = figure.subplots()
        figure.subplots_adjust(left=0.13, right=0.72, top=0.9, bottom=0.17)
        for key, one in series.items():
            _line(panel, one, order.index(key) if key in order else None, 2.6 if key == bold else 1.3, label=key)
        panel.set(xlabel="step", ylabel=label, xlim=(0, until), yscale="log" if log else "linear")
        if log:
            panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.yaxis.set_major_formatter("{x:g}")
            panel.yaxis.set_minor_locator(NullLocator())
        if level is not None:
            panel.axhline(level, color=MARK, linewidth=0.9)
        _marks(panel, marks, named=True)
        _names(panel, series, order, bold)
        return _svg(figure, name)


def panels(name: str, grid: dict[str, dict[str, pd.Series]], marks: Sequence[Mark], until: int, *, across: int = 2) -> Markup:
    """A picture of small panels, `across` of them side by side, with one scale and one legend for all. Each panel has lines of
    the same few names. `grid` maps the title of a panel to {name: line}, and `name` is the id of the picture in the page."""
    with matplotlib.rc_context(STYLE):
        rows = -(-len(grid) // across)
        figure = Figure(figsize=(WIDTH, 0.7 + 1.45 * rows), layout="constrained")
        axes = figure.subplots(rows, across, sharex=True, sharey=True, squeeze=False).flatten()
        keys = list(dict.fromkeys(key for some in grid.values() for key in some))
        for panel, (title, some) in zip(axes, grid.items(), strict=False):
            panel.set_title(title)
            for key, one in some.items():
                _line(panel, one, keys.index(key), 1.5, label=key)
            _marks(panel, marks, named=False)
        axes[0].set_xlim(0, until)
        for panel in axes[len(grid):]:
            panel.set_axis_off()
        handles = {handle.get_label(): handle for panel in axes for handle in panel.get_lines() if handle.get_label() in keys}
        figure.legend([handles[key] for key in keys if key in handles], [key for key in keys if key in handles],
                      loc="outside upper left", ncols=3, handlelength=2.5)
        figure.supxlabel("step", fontsize=9, color=TEXT)
        return _svg(figure, name)


def dots(name: str, found: dict[str, dict[str, dict[str, float]]]) -> Markup:
    """A picture with a panel for each metric, one above the other. A panel has a row for each environment that has the metric,
    and a mark for each model. Metrics that are shares have one scale. `found` maps a metric to {model: {environment: value}}, and
    `name` is the id of the picture in the page."""
    rows = [list(dict.fromkeys(env for per in models.values() for env in per)) for models in found.values()]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.6 + sum(0.55 + 0.26 * len(each) for each in rows)), layout="constrained")
        axes = figure.subplots(len(found), 1, squeeze=False, height_ratios=[len(each) for each in rows])[:, 0]
        for panel, environments, (metric, models) in zip(axes, rows, found.items(), strict=True):
            values = [value for per in models.values() for value in per.values()]
            if min(values) >= 0 and max(values) <= 1:
                panel.set_xlim(-0.03, 1.03)
            for place, (model, per) in enumerate(models.items()):
                heights = [environments.index(env) for env in per]
                panel.plot(list(per.values()), heights, MARKERS[model], label=model, markersize=6, color=COLOURS[LOOKS[model]],
                           markerfacecolor="none" if place == 0 else COLOURS[LOOKS[model]])
            panel.set_title(metric, loc="left")
            panel.set(yticks=range(len(environments)), yticklabels=environments)
            panel.set_ylim(len(environments) - 0.5, -0.5)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=4, handletextpad=0.2, columnspacing=1.2)
        return _svg(figure, name)


def heatmap(name: str, values_LS: np.ndarray, steps: np.ndarray, label: str) -> Markup:
    """A picture of `values_LS`, a value for each layer (upwards) and each of the `steps` (to the right). Its colours run from
    dark to light, so that it can be read in print and by the colour-blind. `label` names the value, and `name` is the id of the
    picture in the page."""
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(WIDTH, min(1.6 + 0.16 * len(values_LS), 5)))
        panel, scale = figure.subplots(1, 2, width_ratios=[40, 1])
        figure.subplots_adjust(left=0.13, right=0.86, top=0.95, bottom=0.2, wspace=0.06)
        top = float(values_LS.max()) or 1.0
        shown: dict[str, Any] = {"cmap": "cividis", "interpolation": "none", "origin": "lower", "aspect": "auto"}
        half = (steps[-1] - steps[0]) / max(len(steps) - 1, 1) / 2 or 0.5
        panel.imshow(values_LS, vmin=0, vmax=top, extent=(steps[0] - half, steps[-1] + half, -0.5, len(values_LS) - 0.5), **shown)
        panel.set(xlabel="step", ylabel="layer")
        panel.yaxis.get_major_locator().set_params(integer=True)
        scale.imshow(np.linspace(0, 1, 64)[:, None], extent=(0, 1, 0, top), **shown)
        scale.set_xticks([])
        scale.yaxis.tick_right()
        scale.set_ylabel(label)
        scale.yaxis.set_label_position("right")
        return _svg(figure, name)


def _line(panel: Axes, series: pd.Series, place: int | None, width: float, label: str) -> None:
    colour, dashes = (TEXT, "-") if place is None else (COLOURS[place % len(COLOURS)], DASHES[place % len(DASHES)])
    panel.plot(series.index, series, color=colour, linestyle=dashes, linewidth=width, label=label,
               marker="o" if len(series) == 1 else None, markersize=4)


def _marks(panel: Axes, marks: Sequence[Mark], *, named: bool) -> None:
    for mark in marks:
        panel.axvline(mark.step, color=MARK, linewidth=1.1, linestyle=(0, (2, 2)))
        if named:
            left = mark.step > np.mean(panel.get_xlim())
            panel.annotate(mark.label, (mark.step, 1.02), xycoords=("data", "axes fraction"), ha="right" if left else "left",
                           color=MARK, fontsize=8)


def _names(panel: Axes, series: dict[str, pd.Series], order: Sequence[str], bold: str | None) -> None:
    """Write each line's name at its end, and move names apart where lines end together."""
    panel.set_ylim(panel.get_ylim())  # fixed, so that the positions computed here still hold when it is drawn
    to_axes, height = panel.transData + panel.transAxes.inverted(), panel.get_window_extent().height
    ends = sorted((float(to_axes.transform((one.index[-1], one.iloc[-1]))[1]), key) for key, one in series.items() if len(one))
    gap = min(LETTERS * panel.figure.dpi / 72 / height, 1 / max(len(ends), 1))
    for (_, key), at in zip(ends, spread([end for end, _ in ends], gap), strict=True):
        one, colour = series[key], COLOURS[order.index(key) % len(COLOURS)] if key in order else TEXT
        leader = {"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0, "relpos": (0, 0.5)}
        panel.annotate(key if len(key) < 18 else f"{key[:16]}…", (one.index[-1], one.iloc[-1]), (1.03, at),
                       textcoords="axes fraction", color=colour, va="center", fontweight="bold" if key == bold else "normal",
                       annotation_clip=False, arrowprops=leader)


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Heights close to those in `wanted`, which must be sorted. They are at least `gap` apart, and within [0, 1] if that is
    possible."""
    found: list[float] = []
    for height in wanted:
        found.append(max(height, found[-1] + gap) if found else max(height, 0.0))
    ceiling = max(1.0, gap * (len(found) - 1))
    for place in reversed(range(len(found))):
        found[place] = min(found[place], ceiling)
        ceiling = found[place] - gap
    return found


def _svg(figure: Figure, name: str) -> Markup:
    """The picture as an SVG element, with ids that are unique in the page and the variables of the page as colours."""
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True)
    svg = text.getvalue()
    svg = svg[svg.index("<svg"):]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="(?!m|p|image|clip)[^"]*"', "", svg)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(url\(|href=")#', rf"\1#{name}-", svg)
    svg = re.sub(r"font: ((?:bold |italic |\d+ )*[\d.]+px) [^;\"]*", r"font: \1 var(--font)", svg)
    for stand_in, variable in VARIABLES.items():
        svg = svg.replace(stand_in, f"var({variable})")
    svg = re.sub(r"\n\s*", "\n", re.sub(r'(<svg[^>]*?) (?:height|width)="[^"]*pt"', r"\1", svg, count=2))
    return Markup(svg.replace("<svg", f'<svg role="img" aria-labelledby="{name}-title {name}-words" focusable="false"', 1))
