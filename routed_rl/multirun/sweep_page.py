"""Makes the verdict of a sweep in sentences, and the page of the sweep, OUT/sweep.html."""

from pathlib import Path
from statistics import median

from routed_rl.config import SweepConfig
from routed_rl.multirun.job import Job
from routed_rl.multirun.ranking import commands, notes, table
from routed_rl.multirun.trials import Outcome, best
from routed_rl.report.page import write_page
from routed_rl.report.parts import Bar, Page, Panel, Section, Table

MOST = 12
"""Largest number of trials in a picture of the page."""


def verdict(found: list[Outcome], settings: SweepConfig) -> list[str]:
    """Sentences that say which trials are best, what the median trial reaches, and what to do next; empty without an
    objective."""
    done, winners = [each for each in found if each.values], best(found, settings.directions)
    if not settings.objectives:
        return []
    if not winners:
        return ["No trial has a value of the objective, so none is the best.", "Next: read the logs of the trials that failed."]
    named = "; ".join(_described(each, settings) for each in winners[:3])
    if len(settings.objectives) > 1:
        said = f"{len(winners)} of {len(done)} trials are beaten by no other in every objective (the Pareto front): {named}"
        said += "; and more" if len(winners) > 3 else ""
    else:
        middle = median(each.values[0] for each in done if each.values)
        said = f"The best of {len(done)} trials {'is' if len(winners) == 1 else 'are'} {named}; the median trial has {middle:.3f}"
    return [f"{said}.", "Next: train it under other seeds before you trust it, because the best of many trials looks better than "
            "it is."]


def write_sweep(file: Path, found: list[Outcome], settings: SweepConfig) -> Path:
    """Write the page of a sweep to `file`, and return that path."""
    lead, *more = verdict(found, settings) or [f"{len(found)} trials ended, and no objective ranks them."]
    title, columns, rows = table(found, settings)
    sections = [Section("trials", "All trials", "", "No trial has ended.", tables=[Table(f"{title}.", columns, rows)]),
                Section("notes", "What to keep in mind", "", "Nothing went wrong.", lines=notes(found, settings)),
                Section("commands", "Train the best again", commands=list(commands(found, settings)))]
    failed = sum(each.state == "failed" for each in found)
    status = f"{len(found)} trials have ended" + (f", {failed} of them failed" if failed else "") + "."
    return write_page(Page("Sweep by routed_rl", file.parent.name, status, _panels(found, settings), more, None, sections,
                           "summary.json of every trial", lead, alarm=bool(failed)), file)


def _panels(found: list[Outcome], settings: SweepConfig) -> list[Panel]:
    """A panel for each objective that is a share, with the trials that are best by this objective, the best first. None without
    objectives, for which `settings.directions` nevertheless has the default."""
    if not settings.objectives:
        return []
    winners = {each.trial.name for each in best(found, settings.directions)}
    made = []
    for place, (path, direction) in enumerate(zip(settings.objectives, settings.directions, strict=True)):
        done = [(each.values[place], each.trial) for each in found if each.values]
        done.sort(key=lambda pair: pair[0], reverse=direction == "maximize")
        if done and all(0 <= value <= 1 for value, _ in done):
            bars = [Bar(_point(trial), value, None, "deployed" if trial.name in winners else "other")
                    for value, trial in done[:MOST]]
            shown = f"the best {MOST} of {len(done)} trials" if len(done) > MOST else "all trials"
            made.append(Panel(path, f"{direction}; {shown}", bars, digits=3))
    return made


def _described(each: Outcome, settings: SweepConfig) -> str:
    values = ", ".join(f"{path} {value:.3f}" for path, value in zip(settings.objectives, each.values or [], strict=True))
    return f"{each.trial.name} ({_point(each.trial)}) with {values}"


def _point(trial: Job) -> str:
    return " ".join(f"{key}={value}" for key, value in trial.point.items())
