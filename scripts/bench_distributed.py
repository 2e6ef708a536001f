"""What routing costs in two processes: the update phase of `route` over `none`, both under DDP, on recorded completions.

    python scripts/bench_distributed.py --json FILE

Blocks of steps of the two arms alternate in one launch, on the lab's model; `ddp_ratio` is the median over pairs, by the
slower process. Steps that measure the random control (one in 16) are left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

BLOCKS, STEPS = 9, 6


def measure() -> float:
    """In each of the processes: the median ratio of the slower one."""
    from bench_overhead import WORKLOADS, Arm
    from torch.nn.parallel import DistributedDataParallel

    from routed_rl.config import LaunchConfig
    from routed_rl.routing import RANKS
    from routed_rl.training import join

    join(LaunchConfig(strategy="ddp", processes=2))
    workload: dict[str, Any] = WORKLOADS["lab"] | {"rows": 128}  # half of them in each process
    arms: dict[str, Any] = {mode: Arm(workload, mode) for mode in ("none", "route")}
    for arm in arms.values():
        arm.model = DistributedDataParallel(arm.model)
        arm.step(1)

    def block(mode: str) -> float:
        RANKS.wait()
        return sum(max(RANKS.gather(arms[mode].step(number))) for number in range(1, STEPS + 1))

    ratios: list[float] = []
    for place in range(BLOCKS):
        order = ("none", "route") if place % 2 else ("route", "none")
        seconds = {mode: block(mode) for mode in order}
        ratios.append(seconds["route"] / seconds["none"])
    return statistics.median(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        ratio = measure()
        arguments.worker.write_text(json.dumps({"ddp_ratio": ratio}, indent=2) + "\n")  # both write the same
        return
    from routed_rl.config import LaunchConfig
    from routed_rl.launching import run_processes

    folder = Path(tempfile.mkdtemp())
    found = (arguments.json or folder / "found.json").absolute()
    run_processes([sys.executable, __file__, "--worker", str(found)], LaunchConfig(strategy="ddp", processes=2), folder / "logs")
    print(found.read_text(), end="")


if __name__ == "__main__":
    main()
