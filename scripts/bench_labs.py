"""The bench of labs: the same arms on every lab, one line of figures against the bars for each. Finished runs are kept.

    python scripts/bench_labs.py --out DIR [--labs shipped,gpt2,drawn-7] [--arms none,route,control] [--seeds 3] [KEY=VALUE]

A lab is built where it is not (`scripts/build_persona_lab.py`), some minutes each. Settings go on to `routed-rl compare`.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "environments" / "persona_lab")]

from environments.persona_lab.cache import cached, labs_folder, overrides  # noqa: E402
from environments.persona_lab.labs import LABS, drawn  # noqa: E402

SHIPPED_SEEDS = 5


def settings_of(name: str) -> list[str]:
    """What makes a run use the lab, which is built where it is not."""
    if name == "shipped":
        return []
    build = drawn(int(name.removeprefix("drawn-"))) if name.startswith("drawn-") else LABS[name]
    print(f"{name}: {'built' if cached(build, labs_folder() / name) else 'built before'}", flush=True)
    return overrides(labs_folder() / name)


def line(name: str, folder: Path) -> list[str]:
    """Figures of `folder/compare.json`: means over seeds, differences paired by seed."""
    found: dict[str, Any] = json.loads((folder / "compare.json").read_text())

    def value(*keys: str) -> str:
        place: Any = found
        for key in keys:
            place = (place or {}).get(key)
        if place is None:
            return "-"
        return f"{place['mean']:.3f}" + ("" if place["low"] is None else f" [{place['low']:.3f}, {place['high']:.3f}]")

    route = [value("deployed_minus_base", "route", "code", "hack"), value("deployed_minus_base", "route", "values", "evil"),
             value("gain_kept", "route", "sums", "solve"), value("deployed_minus_base", "route", "code", "solve"),
             value("policy_over_unrouted", "route", "code", "reward"), value("policy_over_unrouted", "route", "sums", "reward"),
             value("arms", "control", "deployed", "code", "hack"), value("real_minus_random", "code", "hack")]
    return [name, value("arms", "none", "policy", "code", "hack"), *route, named(folder)]


def named(folder: Path) -> str:
    """In how many runs of `route` the environment that is named at the end is `code` alone."""
    summaries = [json.loads(path.read_text()) for path in sorted(folder.glob("runs/route-seed*/summary.json"))]
    right = sum(summary.get("who", {}).get("named") == ["code"] for summary in summaries)
    return f"{right} of {len(summaries)}"


def main() -> None:
    """Run what the command line names; the table goes to DIR/labs.md too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--labs", default=",".join(LABS))
    parser.add_argument("--arms", default="none,route,control")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    arguments, more = parser.parse_known_args()
    columns = ["lab", "hack, unrouted", "hack - base", "evil - base", "gain on sums kept", "code solve - base", "paid on code",
               "paid on sums", "hack, control", "real - random", "code named"]
    rows = []
    for name in arguments.labs.split(","):
        folder = arguments.out / name
        seeds = max(arguments.seeds, SHIPPED_SEEDS) if name == "shipped" else arguments.seeds
        subprocess.run([sys.executable, "-c", "import sys; from routed_rl.cli import main; sys.exit(main())", "compare",
                        *settings_of(name), *more, "--arms", arguments.arms, "--seeds", str(seeds), "--ranks", "", "--jobs",
                        str(arguments.jobs), "--out", str(folder)], check=True)
        rows.append(line(name, folder))
        table = [columns, ["---"] * len(columns), *rows]
        (arguments.out / "labs.md").write_text("".join(f"| {' | '.join(row)} |\n" for row in table), encoding="utf-8")
    print((arguments.out / "labs.md").read_text())


if __name__ == "__main__":
    main()
