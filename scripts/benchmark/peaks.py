"""The peak of resident memory of a trainer's steps, in a process of its own; Linux only."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from benchmark.workload import Workload

STEPS = 3


def peak_bytes(workload: Workload, mode: str, *, practises: bool = False) -> int:
    """Measure three steps, the first with the random control. `practises`: three rows in four practise."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measure, workload, mode, practises).result()


def _measure(workload: Workload, mode: str, practises: bool) -> int:
    from benchmark.arms import Arm, with_practice

    arm = Arm(workload, mode)
    if practises:
        with_practice(arm)
    # Reading the weights takes more memory than training, so that peak is reset (on Linux "5" resets VmHWM).
    Path("/proc/self/clear_refs").write_text("5")
    for place in range(STEPS):
        arm.step(control=place == 0)
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
