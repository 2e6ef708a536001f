"""Sections of a report on the quarantine: which environments filled it, in which layers it lies, and whether it holds more than a
random subspace would."""

import numpy as np
import pandas as pd

from routed_rl.report.charts import heatmap
from routed_rl.report.data import RunData, thinned
from routed_rl.report.over_time import line_chart, stretch
from routed_rl.report.parts import Chart, Section, Table, by_step
from routed_rl.report.story import culprit

COLUMNS = 180
"""Largest number of columns in the picture of layers by steps."""
NOT_ROUTED = "This run has no ledger: nothing was routed (routing.mode=none), or no step is written yet."


def pushes(run: RunData) -> Section:
    """The section on push and shift of each environment over time."""
    section = Section(
        "push", "Who fed the quarantine, and where to",
        "Shift is what an environment's part does to the stream along the named axis: above 0 is towards the persona that "
        "must not grow. Push is the growth of the quarantine that it caused, whatever its direction; the pushes of all sum to "
        "the quarantine's size. Both are exact bookkeeping of what gradients did, not what would have happened without the "
        "environment.",
        NOT_ROUTED)
    names, axes = run.environments(), run.axes()
    if axes:
        lines = {name: run.series(f"ledger/{name}/shift/{axes[0]}") for name in names}
        section.charts.append(line_chart(run, "shift-chart", f"Shift by environment along {axes[0]}", lines, "shift so far",
                                         level=0.0))
        rows = [[name, *(run.last(f"ledger/{name}/shift/{axis}") for axis in axes)] for name in names]
        section.tables.append(Table("Shift so far along every named axis.", ["environment", *axes], rows, marked=culprit(run)))
    lines = {name: series.cumsum() for name in names if len(series := run.series(f"ledger/{name}/push"))}
    if lines:
        section.charts.append(line_chart(run, "push-chart", "Push by environment, added up", lines, "push so far"))
    return section


def cosines(run: RunData) -> Section:
    """The section on the cosines between the environments' parts."""
    section = Section("cosines", "Do the environments pull the same way?",
                      "Cosine between the parts of two environments at the last step: near 1 they feed the same change, below 0 "
                      "they work against each other.", NOT_ROUTED)
    names, known = run.cosines()
    if names:
        rows = [[name, *values] for name, values in zip(names, known, strict=True)]
        section.tables.append(Table("Cosine between the environments' parts of the quarantine.", ["", *names], rows, tinted=True))
    return section


def layers(run: RunData) -> Section:
    """The section with the picture of the quarantine's size by layer and step."""
    section = Section("layers", "Where in the model it lies", "Size of the quarantine by layer and step.",
                      "The metrics of this run do not say what lies in which layer.")
    found = {int(name.split("/")[2]): series for name in run.names if name.startswith("quarantine/layer/")
             and len(series := run.series(name))}
    if not found:
        return section
    shown = thinned(pd.DataFrame(found).sort_index().ffill(), COLUMNS, mean=False)
    values = shown.reindex(columns=range(max(found) + 1)).fillna(0.0).to_numpy().T
    most = int(np.argmax(values[:, -1]))
    words = (f"Map of {len(values)} layers by {run.last_step} steps; at the last step layer {most} holds most, "
             f"{values[most, -1]:.3g}." + stretch(found[most], COLUMNS, mean=False))
    numbers = by_step("The quarantine's size by layer.", {f"layer {layer}": one for layer, one in sorted(found.items())})
    section.charts.append(Chart("layer-chart", "The quarantine's size by layer and step", words,
                                heatmap("layer-chart", values, shown.index.to_numpy(), "size"), numbers))
    return section


def control(run: RunData) -> Section:
    """The section that compares the routed energy with that of random bases."""
    section = Section(
        "control", "Is it more than chance?",
        "Energy that the subspace takes out of each environment's gradient, over the mean of random subspaces of the same rank. "
        "1 is chance. Isotropic bases point anywhere; matched ones have the stream's own covariance and are the harder "
        "comparison. A rank of 1 means that no random basis took more.",
        "This run did not measure random bases (routing.random_control.every), or has no ledger.")
    kinds = list(dict.fromkeys(name.split("/")[1] for name in run.names if name.startswith("control/")))
    names = ["all", *run.environments()]
    for kind in kinds:
        lines = {name: series for name in names if len(series := run.series(f"control/{kind}/{name}/ratio"))}
        if lines:
            section.charts.append(line_chart(run, f"control-{kind}", f"Routed energy over {kind} random bases", lines,
                                             "ratio, log scale", level=1.0, log=True, mean=True))
    if kinds:
        columns = [(kind, what) for kind in kinds for what in ("ratio", "rank")]
        rows = [[name, *(run.series(f"control/{kind}/{name}/{what}").mean() for kind, what in columns)] for name in names]
        section.tables.append(Table("Means over the run.", ["environment", *(f"{kind}, {what}" for kind, what in columns)], rows,
                                    marked=culprit(run)))
    return section
