"""How fast training is beside TRL's own trainer: updates, memory, whole runs, and how the cost grows.

    python scripts/bench_end_to_end.py --json FILE [--only half,lab] [--pairs 9] [--settings trainer.lean=false]

Everything is a ratio to TRL, the median of `--pairs` measurements with its quartiles. The arms alternate: in one process for
updates, whose completions are simulated, and as whole processes for runs and for peaks of memory. `none` and `route` are modes of
routing. Updates are those of SmolLM2, and for the growth those of a small model with random weights. Each measurement is kept as
a line of FILE.jsonl, so the same command goes on where it was stopped. Quantities are seconds by the clock (`clock`), of the CPU
(`cpu`), and of the training alone (`train`).
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

from benchmark.growth import BARS, growth  # noqa: E402
from benchmark.repeated import Found, Lines, Spread, code, ratios  # noqa: E402
from benchmark.rows import GROWTH, ROWS, Row  # noqa: E402

from routed_rl import console  # noqa: E402
from routed_rl.artifacts import write_json  # noqa: E402

QUANTITIES = ("clock", "cpu")
"""The growth is shown of both: seconds by the clock, and of the CPU."""


def measured(name: str, row: Row, lines: Lines, pairs: int, settings: Sequence[str]) -> list[Found]:
    """Measure what is missing of a row, and return all of it; [] if a library that it needs is not there."""
    if row.needs and importlib.util.find_spec(row.needs) is None:
        console.say(f"{name}: not measured, {row.needs} is not installed")
        return []
    if len(lines.of(name)) < pairs:
        console.say(f"{name}: {row.what}")
        gc.collect()  # the arms of the row before are large and refer to each other
        measure = row.open(settings)
        while (place := len(lines.of(name))) < pairs:
            found = measure(place)
            lines.add(name, found)
            said = [f"{arm} {values[row.quantities[0]]:.4g}" for arm, values in sorted(found.items())]
            console.say(f"{name}, {place + 1} of {pairs}: {', '.join(said)}")
    return lines.of(name)


def compared(row: Row, found: list[Found]) -> dict[str, Any]:
    """For each arm and quantity, the spread of its ratio to TRL."""
    return {arm: {quantity: Spread.of(each) for quantity in row.quantities
                  if (each := ratios(found, arm, row.base, quantity))} for arm in row.arms}


def ratio_table(results: dict[str, dict[str, Any]]) -> list[str]:
    rows = [[ROWS[name].what, arm, "" if (bar := ROWS[name].bar) is None else f"<= {bar:.2f}", *first(spreads),
             ", ".join(f"{quantity} {spread}" for quantity, spread in list(spreads.items())[1:])]
            for name, arms in results.items() for arm, spreads in arms.items() if spreads]
    return console.markdown_table(["over TRL", "arm", "bar", "median [quartiles]", "pairs", "beside it"], rows)


def first(spreads: dict[str, Spread]) -> list[str]:
    spread = next(iter(spreads.values()))
    return [f"{spread}", f"{spread.count}"]


def growth_table(found: dict[str, list[Found]]) -> list[str]:
    rows = []
    for axis, each in found.items():
        for quantity in QUANTITIES:
            grows = growth(each, quantity)
            rows.append([f"{axis}, {quantity}", BARS.get(axis, ""), f"{grows.exponent:.2f}", f"{grows.straight:.1%}",
                         ", ".join(f"{value}: {spread.median:.3f}" for value, spread in grows.ratios.items()), f"{len(each)}"])
    return console.markdown_table(["grows with", "bar", "exponent", "off a straight line", "over the cost at the first value",
                                   "pairs"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--only", default=",".join(ROWS), metavar="ROW[,ROW]", help=", ".join(ROWS))
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--settings", nargs="*", default=[], metavar="KEY=VALUE", help="further settings of our arms")
    given = parser.parse_args()
    names = given.only.split(",")
    if unknown := [name for name in names if name not in ROWS]:
        parser.error(f"--only has {unknown[0]}; choose from {', '.join(ROWS)}")
    about = {"code": code(), "settings": given.settings}
    try:
        lines = Lines(given.json and given.json.with_suffix(".jsonl"), about)
    except ValueError as error:
        parser.error(str(error))
    found = {name: each for name in names if (each := measured(name, ROWS[name], lines, given.pairs, given.settings))}
    results = {name: compared(ROWS[name], each) for name, each in found.items() if name not in GROWTH}
    grown = {name: each for name, each in found.items() if name in GROWTH}
    for line in [*(ratio_table(results) if results else []), "", *(growth_table(grown) if grown else [])]:
        print(line)
    if given.json:
        spreads = {name: {arm: {key: asdict(each) for key, each in of.items()} for arm, of in arms.items()}
                   for name, arms in results.items()}
        grows = {name: {quantity: asdict(growth(each, quantity)) for quantity in QUANTITIES} for name, each in grown.items()}
        write_json(given.json, about | {"ratios": spreads, "growth": grows})


if __name__ == "__main__":
    main()
