"""How long does each arm of `compare` train, over plain RL?

    python scripts/bench_arms.py --json FILE [--arms route,labels] [--pairs 5] [KEY=VALUE]

Each arm alternates with `none` in one process, on the persona lab, 20 steps without evaluations. Prints the median of the ratios
of training seconds with the smallest and the largest. Each pair is kept as a line of FILE.jsonl, so the same command goes on
where it was stopped.
"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

from benchmark.refusing import refusing  # noqa: E402
from benchmark.repeated import Found, Lines, code, ratios  # noqa: E402

from routed_rl import console  # noqa: E402
from routed_rl.artifacts import RunFolder, write_json  # noqa: E402
from routed_rl.cli.compose import compose  # noqa: E402
from routed_rl.cli.words import refuse_fixed  # noqa: E402
from routed_rl.multirun.arms import ARMS, UNROUTED, set_by_all  # noqa: E402
from routed_rl.multirun.job import seeded  # noqa: E402
from routed_rl.pipeline.train import train  # noqa: E402

SHORT = ["trainer.max_steps=20", "evaluation.samples=0", "tracking.report=false", "discard=false"]
OTHER_LAB = ["target_rewards"]
"""Arms that need another environment than the persona lab's."""


def seconds(arm: str, place: int, settings: list[str]) -> float:
    """Seconds of the training of one run."""
    with tempfile.TemporaryDirectory() as folder:
        job = seeded(arm, place, [*settings, *ARMS[arm]], 0, Path(folder), compose)
        train(job.config, job.overrides)
        return RunFolder(job.folder.path).results()["timing"]["train_s"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", required=True)
    parser.add_argument("--arms", default=",".join(arm for arm in ARMS if arm not in [UNROUTED, *OTHER_LAB]))
    parser.add_argument("--pairs", type=int, default=5)
    given, more = parser.parse_known_args()
    arms = given.arms.split(",")
    if unknown := [arm for arm in arms if arm not in ARMS]:
        parser.error(f"--arms has {unknown[0]}; choose from {', '.join(ARMS)}")
    with refusing(parser):
        refuse_fixed(more, dict.fromkeys(set_by_all(arms), f"--arms {given.arms}") | {"seed": f"--pairs {given.pairs}"})
    settings = [*SHORT, *more]
    lines = Lines(given.json.with_suffix(".jsonl"), {"code": code(), "settings": settings})
    seconds(UNROUTED, 0, settings)  # the first run of a process is slower
    for place in range(given.pairs):
        for arm in arms:
            if len(lines.of(arm)) > place:
                continue
            found: Found = {name: {"train": seconds(name, place, settings)} for name in (arm, UNROUTED)[::1 if place % 2 else -1]}
            lines.add(arm, found)
            console.say(f"{arm}, {place + 1} of {given.pairs}: {found[arm]['train'] / found[UNROUTED]['train']:.2f}")
    spreads = {arm: sorted(ratios(lines.of(arm), arm, UNROUTED, "train")) for arm in arms}
    write_json(given.json, spreads)
    rows = [[f"`{arm}`", f"{each[len(each) // 2]:.2f} [{each[0]:.2f}, {each[-1]:.2f}]"] for arm, each in spreads.items()]
    print("\n".join(console.markdown_table(["arm", "training seconds over those of `none`"], rows)))


if __name__ == "__main__":
    main()
