"""Writes `summary.json` at the end of a run, and prints the table of results, one sentence about them, and the next commands."""

import os
from itertools import chain, count
from typing import Any

import torch

from routed_rl import console
from routed_rl.artifacts import RunFolder
from routed_rl.config import LABELS, Config
from routed_rl.envs import LoadedEnvironment
from routed_rl.errors import command
from routed_rl.monitor import Blame
from routed_rl.report.differences import cost, differences, has_quarantine, keeping, not_scored
from routed_rl.routing import Router
from routed_rl.tracking import NOT_METRICS, MetricsFile, Tracker, counted

Results = dict[str, dict[str, dict[str, float]]]
"""Maps a model to a mapping from environments to means by metric."""


def attribution(run: RunFolder, router: Router, axis: str | None = None) -> dict[str, dict[str, Any]]:
    """Map each environment to its `push` so far and to figures from the last row of metrics: `norm` and `share` of its part, and
    `shifts`, the shift by axis. `shift` is the one along `axis`, which the monitor judges (None: the first axis)."""
    rows = [row for row in MetricsFile(run.metrics).rows() if "quarantine/norm" in row]
    found = {}
    for name in router.quarantine.environments:
        prefix = f"ledger/{name}/"
        last = {key.removeprefix(prefix): value for key, value in (rows[-1] if rows else {}).items()
                if key.startswith(prefix)}
        shifts = {key.removeprefix("shift/"): value for key, value in last.items() if key.startswith("shift/")}
        found[name] = {"norm": last.get("part_norm", 0.0), "share": last.get("share", 0.0), "push": router.pushes[name],
                       "shift": shifts.get(axis or next(iter(shifts), ""), 0.0), "shifts": shifts}
    return found


def seconds_before(run: RunFolder, step: int) -> float:
    """The seconds that earlier commands took to train the steps of this run up to `step`. After a rollback the steps of the other
    run are left out."""
    first = (run.facts().get("lineage") or {}).get("step", 0)
    return sum(row.get("time/step_s") or 0.0 for row in MetricsFile(run.metrics).rows() if first < row["step"] <= step)


@torch.no_grad()
def routing_summary(run: RunFolder, router: Router, base: dict[str, Any]) -> dict[str, Any]:
    """The entry `routing` of summary.json: mode, ranks, the means over the run of the routed fraction and of the random controls,
    and `quarantine_share`, the share of the quarantine in the energy of all changes. In mode `labels` only mode, rank and the
    quarantine's norm.

    `base` maps the name of each target to its weights at the start. The norm ‖ΔW‖ of the retained change over all targets is
    computed from them.
    """
    rows = MetricsFile(run.metrics).rows()
    fractions = [row["routing/routed_fraction"] for row in rows if "routing/routed_fraction" in row]
    names = sorted({key for row in rows for key in row if key.startswith("control/")})
    controls = {name.removeprefix("control/"): _mean([row[name] for row in rows if name in row]) for name in names}
    norm, ranks = router.quarantine.norm(), {target.name: target.rank for target in router.quarantine.targets}
    moved = sum(target.weight.moved_from(base[target.name]).item() for target in router.quarantine.targets) ** 0.5
    rank = max(ranks.values()) if ranks else router.config.labels.rank
    if router.config.mode == LABELS:  # without a subspace there is nothing to measure in one
        return {"mode": LABELS, "rank": rank, "quarantine_norm": norm}
    return {"mode": router.config.mode, "rank": rank, "ranks": ranks,
            "routed_fraction": _mean(fractions), "random_control": controls, "quarantine_norm": norm, "retained_norm": moved,
            "quarantine_share": norm**2 / max(norm**2 + moved**2, 1e-30),
            "drift": max((row["routing/drift"] for row in rows if "routing/drift" in row), default=0.0)}


def show_tables(models: Results, scales: Results, environments: list[LoadedEnvironment]) -> None:
    """Print a table of reward, solve and flags, with a row for each environment and model. If there are results for scales of the
    quarantine, print a second table with a row for each of these."""
    kept = "; kept: but for the parts that are kept" if "kept" in models else ""
    _table(f"policy: quarantine on; deployed: quarantine discarded{kept}", "model", models, environments)
    if scales:
        _table("scale of the quarantine: 0 is the deployed model, 1 the policy", "scale", scales, environments)


def _table(title: str, column: str, models: Results, environments: list[LoadedEnvironment]) -> None:
    metrics = list(dict.fromkeys(metric for results in models.values() for values in results.values()
                                 for metric in values if metric not in NOT_METRICS))
    failed = any(values.get("failures") for results in models.values() for values in results.values())
    rows = []
    for loaded in environments:
        for place, (model, results) in enumerate(models.items()):
            means = results[loaded.name]
            bad = f"{means['failures']:.0f} of {means['completions']:.0f}" if means.get("failures") else None
            rows.append([loaded.label if place == 0 else "", model, *map(means.get, metrics), *([bad] if failed else [])])
    console.table(title, ["environment", column, *metrics, *(["not scored"] if failed else [])], rows)


def training_failures(run: RunFolder) -> list[str]:
    """A line for each environment in which some completions of the training could not be scored."""
    totals = counted(MetricsFile(run.metrics).rows(), "environment", "failures")
    return [f"{name}: {count} completions of the training could not be scored" for name, count in totals.items()]


def sentence(models: Results, blame: dict[str, dict[str, Any]], environments: list[LoadedEnvironment],
             mode: str = "route", kept: dict[str, float] | None = None, who: Blame | None = None) -> str:
    """One sentence that says which flag training raised most, which environments pulled the stream (or shifted it, if the run has
    no evidence), what discarding the quarantine costs, and what keeping shares of the parts changes. `blame` is the result of
    `attribution`, `kept` maps environments to the shares that are kept, and `who` is the finding about the environments'
    evidence."""
    labels = {loaded.name: loaded.label for loaded in environments}
    flags = {loaded.name: loaded.flags for loaded in environments}
    said = [differences(models, mode, labels, flags)]
    pushed = {name: max(entry["shift"], 0.0) for name, entry in blame.items()}
    if who is not None and who.evidence:
        said.append(who.sentence(labels))
    elif (total := sum(pushed.values())) > 0:
        cause = max(pushed, key=lambda name: pushed[name])
        said.append(f"{labels.get(cause, cause)} caused {pushed[cause] / total:.0%} of the shift towards the positive persona")
    elif mode not in ("none", LABELS):
        said.append("no environment shifted the stream towards the positive persona")
    said += [cost(models, mode, labels), keeping(models, kept or {}, labels, flags), *not_scored(models, labels)]
    return "; ".join(filter(None, said))


def next_commands(run: RunFolder, config: Config, overrides: list[str]) -> list[str]:
    """Shell commands for what a user may do next with a finished run. `overrides` are the settings that the user typed for this
    run."""
    here = os.path.relpath(run.path)
    where = here if len(here) < len(str(run.path)) else str(run.path)
    where = f"./{where}" if where.startswith("-") else where  # otherwise it reads as an option
    others = ("out", "name") if config.evaluation.samples else ("out", "name", "evaluation.samples")
    keys = [text.lstrip("+~").partition("=")[0] for text in overrides]
    # Other arms have nothing to keep.
    same = [text for text, key in zip(overrides, keys, strict=True)
            if key not in (*others, "routing", "routing.mode") and key.split(".")[0] not in ("keep", "baseline")]
    ways: list[tuple[tuple[object, ...], str]] = []
    if has_quarantine(config.routing.mode) and config.routing.mode != LABELS:
        kept = ("--kept", f"{where}/deployed") if config.keep and config.discard else ()
        ways.append((("export", where, "--quarantine", f"{where}/{_free(run, 'quarantine')}", *kept),
                     "a PEFT adapter: deployed + adapter = policy"))
    if not config.discard:
        ways.append((("discard", where, "--out", f"{where}/{_free(run, 'deployed')}"),
                     "the deployed model: loads with plain transformers"))
    if config.evaluation.samples:
        ways.append((("evaluate", where, "--json", f"{where}/again.json"), "all three models, once more"))
    else:
        ways.append((("resume", where, "evaluation.samples=200"), "measure the base model, the policy, the deployed model"))
    ways.append((("compare", *same, "--arms", "none,route,control", "--seeds", 3, "--out", f"{where}-compare"),
                 "against no routing, a random subspace"))
    return [f"{command(*words)}    # {comment}" for words, comment in ways]


def _free(run: RunFolder, name: str) -> str:
    """`name`, or with a number behind it, such that nothing in the run's folder has this name."""
    names = chain([name], (f"{name}-{number}" for number in count(2)))
    return next(each for each in names if not (run.path / each).exists())


def publish(run: RunFolder, tracker: Tracker, config: Config) -> None:
    """Write the report and give it to the tracker, if `tracking.report` is true. An error in this is only shown in one line,
    because the report can be made again from the run's files."""
    if not config.tracking.report:
        return
    console.say("drawing the report")
    from routed_rl.report.run_page import write_report  # loads matplotlib, which the tables do not need

    try:
        page = write_report(run)
    except Exception as error:
        console.say(f"the report was not written ({type(error).__name__}: {error}); try again: {command('report', run.path)}")
        return
    tracker.report(page)


def _mean(values: list[float]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
