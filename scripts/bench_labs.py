"""The bench of labs: the same arms on every lab, with one line of figures for each lab. Finished runs are kept.

    python scripts/bench_labs.py --out DIR [--labs shipped,gpt2,drawn-7] [--arms none,route] [--seeds 3] [--at 60] [KEY=VALUE]

A lab is built if needed (`scripts/build_persona_lab.py`), some minutes each. Settings are passed on to `routed-rl compare`. With
`--at` the runs' checkpoints of that step are evaluated too, and get a table of their own.
"""

import argparse
import itertools
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "environments" / "persona_lab")]

from benchmark.refusing import refusing  # noqa: E402
from benchmark.verb import verb  # noqa: E402

from environments.persona_lab.labs import LABS  # noqa: E402
from environments.persona_lab.use import build_of, settings_of  # noqa: E402
from routed_rl.cli.compose import compose  # noqa: E402
from routed_rl.cli.words import refuse_fixed  # noqa: E402
from routed_rl.console import markdown_table  # noqa: E402
from routed_rl.multirun.arms import set_by_all  # noqa: E402
from routed_rl.multirun.compare import plan_runs  # noqa: E402
from routed_rl.multirun.comparison import cell  # noqa: E402
from routed_rl.multirun.results import results  # noqa: E402

SHIPPED_SEEDS = 5


COLUMNS = ["lab", "hack, unrouted", "hack - base", "evil - base", "gain on sums kept", "code solve - base", "paid on code",
           "paid on sums", "values, unrouted", "values, routed policy", "hack, control", "real - random", "code named"]


def line(name: str, found: dict[str, Any], runs: Path, seeds: int) -> list[str]:
    """Figures of a comparison: means over as many seeds as `seeds`, differences paired by seed."""
    def value(*keys: str) -> str:
        place: Any = found
        for key in keys:
            place = (place or {}).get(key)
        return cell(place, bounds=True)

    return [name, value("arms", "none", "policy", "code", "hack"), value("deployed_minus_base", "route", "code", "hack"),
            value("deployed_minus_base", "route", "values", "evil"), value("gain_kept", "route", "sums", "solve"),
            value("deployed_minus_base", "route", "code", "solve"), value("policy_over_unrouted", "route", "code", "reward"),
            value("policy_over_unrouted", "route", "sums", "reward"), value("arms", "none", "policy", "values", "solve"),
            value("arms", "route", "policy", "values", "solve"), value("arms", "control", "deployed", "code", "hack"),
            value("real_minus_random", "code", "hack"), named(runs, seeds)]


def at_step(step: int, runs: Path, arms: list[str], seeds: int) -> dict[str, Any]:
    """The comparison of the checkpoints of an earlier step, of these arms and as many seeds as `seeds`; existing evaluations are
    kept."""
    found: dict[str, dict[int, dict[str, Any]]] = {arm: {} for arm in arms}
    for arm, seed in itertools.product(found, range(seeds)):
        run = runs / f"{arm}-seed{seed}"
        file = runs.parent / f"at-{step}" / f"{run.name}.json"
        file.parent.mkdir(exist_ok=True)
        if not file.exists():
            verb("evaluate", str(run), "--step", str(step), "--json", str(file))
        found[arm][seed] = json.loads(file.read_text())
    return results(found, {})


def named(runs: Path, seeds: int) -> str:
    """The number of `route` runs, of as many seeds as `seeds`, in which `code` is the only environment that is named at the
    end."""
    files = [runs / f"route-seed{seed}" / "summary.json" for seed in range(seeds)]
    summaries = [json.loads(path.read_text()) for path in files if path.exists()]
    right = sum(summary.get("who", {}).get("named") == ["code"] for summary in summaries)
    return f"{right} of {len(summaries)}"


def main() -> None:
    """Run the comparisons that the command line names; the tables are printed and written into DIR."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--labs", default=",".join(LABS))
    parser.add_argument("--arms", default="none,route,control")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--at", type=int, metavar="STEP", help="evaluate the checkpoints of this step too")
    arguments, more = parser.parse_known_args()
    with refusing(parser):  # before a lab is built
        for name in arguments.labs.split(","):
            build_of(name)
        if options := [word for word in more if word.startswith("-")]:
            raise ValueError(f"{options[0]} is no option of this script")
        if arguments.jobs < 1 or (arguments.at is not None and arguments.at < 1):
            raise ValueError(f"--jobs and --at must be at least 1, got {arguments.jobs} and {arguments.at}")
        refuse_fixed(more, dict.fromkeys(set_by_all(arguments.arms.split(",")), f"--arms {arguments.arms}"))
        plan_runs(more, arguments.arms.split(","), arguments.seeds, arguments.out, compose)
    tables: dict[str, list[list[str]]] = {}
    for name in arguments.labs.split(","):
        folder = arguments.out / name
        seeds = max(arguments.seeds, SHIPPED_SEEDS) if name == "shipped" else arguments.seeds
        verb("compare", *settings_of(name), *more, "--arms", arguments.arms, "--seeds", str(seeds), "--ranks", "", "--jobs",
             str(arguments.jobs), "--out", str(folder))
        found = {"labs.md": json.loads((folder / "compare.json").read_text())}
        if arguments.at:
            found[f"labs-at-{arguments.at}.md"] = at_step(arguments.at, folder / "runs", arguments.arms.split(","), seeds)
        for file, comparison in found.items():
            rows = tables.setdefault(file, [])
            rows.append(line(name, comparison, folder / "runs", seeds))
            (arguments.out / file).write_text("\n".join(markdown_table(COLUMNS, rows)) + "\n", encoding="utf-8")
    for file in tables:
        print((arguments.out / file).read_text())


if __name__ == "__main__":
    main()
