"""Draws the pictures of the README and of the page on arms, each for light and dark pages, into docs/pictures.

    routed-rl compare --arms none,route,control --seeds 5 --ranks "" --out DIR evaluation.samples=2000
    python scripts/draw_pictures.py DIR/compare.json              # the README's two pictures
    python scripts/draw_pictures.py OUT/evasion.json              # what scripts/bench_evasion.py --out OUT has found
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"
THEMES: dict[str, dict[str, str]] = {
    "light": {"text": "#1f2328", "faint": "#59636e", "box": "#f6f8fa", "edge": "#d1d9e0", "model": "#0969da",
              "quarantine": "#bc4c00"},
    "dark": {"text": "#f0f6fc", "faint": "#9198a1", "box": "#151b23", "edge": "#3d444d", "model": "#4493f8",
             "quarantine": "#f0883e"}}
STYLE: dict[Any, Any] = {"svg.fonttype": "path", "svg.hashsalt": "routed_rl", "font.size": 10, "figure.facecolor": "none",
                         "axes.facecolor": "none", "savefig.transparent": True}
PANELS = {"code: games the check": ("code", "hack"), "sums: solved": ("sums", "solve"),
          "values: evil answers": ("values", "evil")}
BARS = {"base model": ("none", "base", "faint"), "RL without routing": ("none", "deployed", "quarantine"),
        "routed: policy": ("route", "policy", "quarantine"), "routed: deployed": ("route", "deployed", "model"),
        "random subspace: deployed": ("control", "deployed", "faint")}
"""Bar -> arm and model of compare.json, and its colour."""
EVASION = {"deployed model: games the check": "hack", "policy: what it is paid": "paid"}
BLOCKING = {"erase": "quarantine", "caft": "faint", "projection_penalty": "quarantine"}
"""The colours of the arms that block or punish."""


def draw_result(found: dict[str, Any], colours: dict[str, str]) -> Figure:
    """A panel for each metric and a bar for each model: means with 95 % intervals over seeds."""
    figure = Figure(figsize=(9, 2.7), layout="constrained")
    for place, (panel, (title, (env, metric))) in enumerate(zip(figure.subplots(1, 3, sharey=True), PANELS.items(), strict=True)):
        for row, (arm, model, colour) in enumerate(BARS.values()):
            value = found["arms"][arm][model][env][metric]
            panel.barh(row, value["mean"], color=colours[colour], height=0.62)
            reach = value["high"] - value["mean"]
            panel.errorbar(value["mean"], row, xerr=reach, color=colours["text"], capsize=2, linewidth=1)
            panel.text(value["mean"] + reach + 0.02, row, f"{value['mean']:.2f}", va="center", color=colours["text"])
        panel.set(xlim=(0, 1.18), xticks=[0, 0.5, 1])
        panel.set_yticks(range(len(BARS)), list(BARS), color=colours["text"])
        panel.set_title(title, loc="left", color=colours["text"], fontsize=10.5)
        panel.tick_params(colors=colours["faint"], length=0, labelleft=place == 0)
        panel.tick_params(axis="y", labelcolor=colours["text"])
        panel.spines[:].set_visible(False)
    figure.axes[0].invert_yaxis()
    return figure


def draw_evasion(found: dict[str, Any], colours: dict[str, str]) -> Figure:
    """A panel for each figure, with a group of bars for each way in which the subspace is worse: means, and a dot for each
    seed."""
    figure = Figure(figsize=(9, 3), layout="constrained")
    arms = list(dict.fromkeys(arm for each in found.values() for arm in each))
    shades = [colours[BLOCKING.get(arm, "model")] for arm in arms]
    for place, (panel, (title, name)) in enumerate(zip(figure.subplots(1, 2, sharey=True), EVASION.items(), strict=True)):
        for row, (arm, colour) in enumerate(zip(arms, shades, strict=True)):
            values = [each.get(arm, {}).get(name, []) for each in found.values()]
            at = [group + (row - (len(arms) - 1) / 2) * 0.8 / len(arms) for group in range(len(found))]
            means = [sum(each) / len(each) if each else 0.0 for each in values]
            panel.bar(at, means, width=0.7 / len(arms), color=colour, alpha=1.0 if row == 0 else 0.9 - 0.22 * row, label=arm)
            dots = [(x, value) for x, each in zip(at, values, strict=True) for value in each]
            panel.scatter(*zip(*dots, strict=True), color=colours["text"], s=5, zorder=3)
        panel.set(ylim=(0, 1.04), yticks=[0, 0.5, 1])
        panel.set_xticks(range(len(found)), [_words(condition) for condition in found], color=colours["text"])
        panel.set_title(title, loc="left", color=colours["text"], fontsize=10.5)
        panel.tick_params(colors=colours["faint"], length=0, labelleft=place == 0, labelcolor=colours["text"])
        panel.spines[:].set_visible(False)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(arms), frameon=False,
                  labelcolor=colours["text"])
    return figure


def _words(condition: str) -> str:
    kind, _, value = condition.partition("=")
    return {"rank": f"rank {value}", "angle": f"turned by {value}°", "missing": f"{float(value):.0%} missing"}[kind]


def draw_split(colours: dict[str, str]) -> Figure:
    """How one change of a weight is split, where its parts go, and what becomes of them."""
    figure = Figure(figsize=(9, 3.1))
    panel = figure.add_axes((0, 0, 1, 1))
    panel.set(xlim=(0, 90), ylim=(0, 31))
    panel.axis("off")
    _box(panel, (1, 11.5), (17, 8), "reward", ["environments pay", "completions"], colours, "text")
    _box(panel, (25, 11.5), (17, 8), "gradient", ["of a weight that writes", "to the residual stream"], colours, "text")
    _box(panel, (52, 20.5), (17, 8), "weights", ["outside the subspace:", "skill"], colours, "model")
    _box(panel, (52, 2.5), (17, 8), "quarantine", ["inside the subspace:", "persona, by environment"], colours, "quarantine")
    _box(panel, (76, 20.5), (13, 8), "deployed", ["what you keep"], colours, "model")
    _box(panel, (76, 2.5), (13, 8), "discarded", ["or kept in part"], colours, "quarantine")
    _arrow(panel, (18, 15.5), (25, 15.5), colours["faint"])
    _arrow(panel, (42, 16.5), (52, 24.5), colours["model"])
    _arrow(panel, (42, 14.5), (52, 6.5), colours["quarantine"])
    _arrow(panel, (69, 24.5), (76, 24.5), colours["model"])
    _arrow(panel, (69, 6.5), (76, 6.5), colours["quarantine"])
    panel.text(46, 15.5, "split at the subspace", ha="left", va="center", color=colours["faint"], fontsize=9)
    panel.text(60.5, 18.6, "policy = weights + quarantine", ha="center", va="center", color=colours["faint"], fontsize=9)
    panel.text(60.5, 12.4, "monitor: who filled it? halt, go back", ha="center", va="center", color=colours["faint"], fontsize=9)
    return figure


def _box(panel: Axes, corner: tuple[float, float], size: tuple[float, float], title: str, said: list[str],
         colours: dict[str, str], colour: str) -> None:
    (left, low), (width, height) = corner, size
    edge = colours["edge" if colour == "text" else colour]
    panel.add_patch(FancyBboxPatch(corner, width, height, boxstyle="round,pad=0,rounding_size=1", facecolor=colours["box"],
                                   edgecolor=edge, linewidth=1.4))
    centred: dict[str, Any] = {"ha": "center", "va": "center"}
    panel.text(left + width / 2, low + height - 2, title, color=colours[colour], fontsize=11, weight="bold", **centred)
    panel.text(left + width / 2, low + (height - 3) / 2, "\n".join(said), color=colours["text"], fontsize=8.5, **centred)


def _arrow(panel: Axes, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
    panel.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=12, color=colour, linewidth=1.6, shrinkA=1,
                                    shrinkB=1))


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python scripts/draw_pictures.py DIR/compare.json, of a `compare` with the arms none, route and control, "
                 "or OUT/evasion.json")
    found = json.loads(Path(sys.argv[1]).read_text())
    PICTURES.mkdir(exist_ok=True)
    with matplotlib.rc_context(STYLE):
        for theme, colours in THEMES.items():
            figures = ({"split": draw_split(colours), "result": draw_result(found, colours)} if "arms" in found else
                       {"evasion": draw_evasion(found, colours)})
            for name, figure in figures.items():
                figure.savefig(PICTURES / f"{name}-{theme}.svg", metadata={"Date": None})
                print(PICTURES / f"{name}-{theme}.svg")


if __name__ == "__main__":
    main()
