"""Draws the picture of a check: separation and agreement by layer, and steering compared with random directions."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure


def draw_check(found: dict[str, Any], path: Path, shown: int) -> None:
    """Draw the figures `found`, the result of `check.check`, and write the picture as a PNG. At most `shown` axes are drawn. A
    panel whose figures were not measured says so."""
    figure = Figure(figsize=(13, 4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    _separation(left, found["axes"], shown)
    _agreement(middle, found["quality"])
    _steering(right, found["causal"])
    figure.savefig(path, dpi=110)


def _separation(panel: Axes, axes: dict[str, Any] | None, shown: int) -> None:
    panel.set(title="held-out separation", xlabel="layer", ylabel="AUROC", ylim=(0, 1.05))
    if axes is None:
        return _unmeasured(panel)
    layers = [row["layer"] for row in axes["layers"]]
    for name in axes["names"][:shown]:
        values = [row["auroc"].get(name) for row in axes["layers"]]
        if any(value is not None for value in values):
            panel.plot(layers, np.array(values, dtype=float), marker=".", label=name)
    if drawn := [row for row in axes["layers"] if row["random"] is not None]:
        panel.fill_between([row["layer"] for row in drawn], [row["random"] for row in drawn],
                           [row["random_best"] for row in drawn], color="0.8", label="random: mean to best")
    panel.legend(fontsize=6)


def _agreement(panel: Axes, quality: dict[str, Any]) -> None:
    panel.set(title="two halves of the pairs", xlabel="layer", ylim=(0, 1.05))
    for key, label in (("stability", "mean squared cosine"), ("captured", "held-out energy captured"),
                       ("captured_random", "by a random basis")):
        values = [(row["layer"], row[key]) for row in quality["layers"] if row.get(key) is not None]
        if values:
            panel.plot(*zip(*values, strict=True), marker=".", label=label)
    if not panel.lines:
        return _unmeasured(panel)
    panel.legend(fontsize=6)


def _steering(panel: Axes, causal: dict[str, Any]) -> None:
    panel.set(title="steering against random directions", xlabel="nat per token, positive minus negative answers")
    if "missing" in causal:
        return _unmeasured(panel)
    panel.hist(causal["random"]["steering"], bins=20, color="0.8", label=f"{len(causal['random']['steering'])} random")
    for place, axis in enumerate(causal["axes"]):
        panel.axvline(axis["steering"], color=f"C{place}", label=f"{axis['axis']} (p = {axis['p_corrected']:.3f} corrected)")
    panel.set_title(f"steering at layer {causal['layer']} against random directions")
    panel.legend(fontsize=6)


def _unmeasured(panel: Axes) -> None:
    panel.text(0.5, 0.5, "not measured", ha="center", transform=panel.transAxes)
