"""The page of a comparison, OUT/compare.html: verdict, forest plots, tables. It is made from the content of compare.json and from
tables."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from routed_rl.multirun.arms import ROUTED, UNROUTED
from routed_rl.multirun.reporter import Table as Numbers
from routed_rl.report.headline import Headline
from routed_rl.report.page import write_page
from routed_rl.report.parts import Bar, Page, Panel, Section, Table
from routed_rl.tracking import NOT_METRICS

LOOKS = {ROUTED: "deployed", UNROUTED: "policy"}
"""Maps an arm to a model: the arm has the colour that this model has in the report of a run. Other arms are grey."""
READING = ("Each point is the mean of an arm's deployed models with its 95 % interval over seeds; the dotted line is the base "
           "model.")


def write_comparison(file: Path, found: dict[str, Any], heads: list[Headline], tables: Sequence[Numbers]) -> Path:
    """Write the page of a comparison to `file`, and return that path. `found` is the content of compare.json, and `heads` are the
    figures in the picture at the top."""
    request, failed = found["request"], found["failed"]
    status = (f"{len(found['arms'])} arms with {request['seeds']} {'seed' if request['seeds'] == 1 else 'seeds'} each"
              + (f"; {len(failed)} runs failed" if failed else "") + f". {READING}")
    lead, *more = found["verdict"]
    page = Page("Comparison by routed_rl", file.parent.name, status, [_forest(found, head, head.words) for head in heads],
                more, None, _sections(found, heads, tables), "compare.json", lead, alarm=bool(failed))
    return write_page(page, file)


def _sections(found: dict[str, Any], heads: list[Headline], tables: Sequence[Numbers]) -> list[Section]:
    shown = {(head.env, head.metric) for head in heads}
    first = next(iter(found["arms"].values()), {})
    others = [(env, metric) for env, row in first.get("deployed", {}).items() for metric in row
              if metric not in ("reward", *NOT_METRICS) and (env, metric) not in shown]
    forests = Section("forests", "The other figures", READING, "There are no other figures.",
                      panels=[_forest(found, Headline("", *place)) for place in others if _is_share(found, *place)])
    numbers = Section("tables", "All figures", "Means, and 95 % intervals over seeds in brackets. Differences are taken seed by "
                      "seed.", "Nothing was evaluated.",
                      tables=[Table(f"{title}.", columns, [list(row) for row in rows]) for title, columns, rows in tables])
    wrong = Section("notes", "What to keep in mind", "", "Nothing went wrong.", lines=found["notes"])
    return [forests, numbers, wrong]


def _forest(found: dict[str, Any], head: Headline, words: str = "") -> Panel:
    """A panel for the figure `head`, with a point and its interval for the base model and for each arm's deployed model. `words`
    is the text below the panel's title."""
    models = {"base": next(iter(found["arms"].values()), {}).get("base", {})}
    models |= {arm: each.get("deployed", {}) for arm, each in found["arms"].items()}
    bars = [Bar(name, value["mean"], None if value["low"] is None else (value["low"], value["high"]), LOOKS.get(name, "other"))
            for name, table in models.items() if (value := table.get(head.env, {}).get(head.metric))]
    level = models["base"].get(head.env, {}).get(head.metric, {}).get("mean")
    return Panel(head.title, words, bars, 0.0 if level is None else level, digits=3)


def _is_share(found: dict[str, Any], env: str, metric: str) -> bool:
    values = [each["deployed"][env][metric]["mean"] for each in found["arms"].values() if metric in each["deployed"].get(env, {})]
    return all(0 <= value <= 1 for value in values)
