"""The cost of routing in two processes: the time of the update phase of `route` over `none`, both under DDP, on recorded
completions.

    python scripts/bench_distributed.py --json FILE

Blocks of steps of the two arms alternate in one launch. Writes the flat keys `ddp_ratio` (SmolLM2, 16 x 128 tokens in each
process, K = 16, 8 environments) and `lab_ddp_ratio` (64 x 12 in each, its own K): medians over pairs of blocks, each timed by its
slower process. Steps that measure the random control (one in 16) are left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmark.workload import Workload

BLOCKS = 9
ARMS = ("none", "route")


def measure() -> dict[str, float]:
    """Measure, in each of the processes."""
    import dataclasses

    from bench_overhead import WORKLOADS

    from routed_rl.config import LaunchConfig
    from routed_rl.training.backends import join

    join(LaunchConfig(strategy="ddp", processes=2))
    return {"lab_ddp_ratio": ratio(dataclasses.replace(WORKLOADS["lab"], rows=64), steps=6),
            "ddp_ratio": ratio(WORKLOADS["smollm2"], steps=1)}


def ratio(workload: Workload, steps: int) -> float:
    """The time of route over none, with `rows` completions in each process."""
    from benchmark.arms import Arm
    from torch.nn.parallel import DistributedDataParallel

    from routed_rl.ranks import RANKS

    arms: dict[str, Any] = {mode: Arm(workload, mode) for mode in ARMS}
    for arm in arms.values():
        arm.model = DistributedDataParallel(arm.model)
        arm.step()

    def block(mode: str) -> float:
        RANKS.wait()
        return sum(max(RANKS.gather(arms[mode].step().clock)) for _ in range(steps))

    ratios: list[float] = []
    for place in range(BLOCKS):
        seconds = {mode: block(mode) for mode in (ARMS if place % 2 else ARMS[::-1])}
        ratios.append(seconds["route"] / seconds["none"])
        print(f"{workload.path}: block {place + 1}, {ratios[-1]:.3f}", flush=True)
    return statistics.median(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        arguments.worker.write_text(json.dumps(measure(), indent=2) + "\n")  # both processes write the same
        return
    from routed_rl.config import LaunchConfig
    from routed_rl.launching.processes import run_processes

    folder = Path(tempfile.mkdtemp())
    found = (arguments.json or folder / "found.json").absolute()
    run_processes([sys.executable, __file__, "--worker", str(found)], LaunchConfig(strategy="ddp", processes=2), folder / "logs")
    print(found.read_text(), end="")


if __name__ == "__main__":
    main()
