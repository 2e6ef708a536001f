"""Whole runs as a user starts them, each a process of its own: `routed-rl train`, and the script that uses TRL alone."""

from __future__ import annotations

import atexit
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmark.repeated import ROOT, Found

PLAIN_SCRIPT = "plain_trl.py"
Command = Sequence[str]
"""A first word `plain_trl.py` starts that script with the rest as its arguments; otherwise they are settings of `routed-rl
train`."""


def runs(commands: Mapping[str, Command], settings: Sequence[str]) -> Callable[[int], Found]:
    """Measures each of the commands once; `settings` are added to those of `routed-rl train`. Even repetitions begin with the
    last of them."""
    def measure(place: int) -> Found:
        return {name: whole_run(commands[name], settings) for name in list(commands)[::1 if place % 2 else -1]}

    return measure


def whole_run(command: Command, settings: Sequence[str]) -> dict[str, float]:
    """Seconds of a whole process by the clock and of the CPU, and those of each phase that it tells. RuntimeError if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        if plain := command[0] == PLAIN_SCRIPT:
            words = [sys.executable, f"scripts/{PLAIN_SCRIPT}", "--out", str(out), *command[1:]]
        else:
            words = [sys.executable, "-m", "routed_rl.cli", "train", f"out={out}", *command, *settings]
        before, begin = cpu_of_children(), time.perf_counter()
        done = subprocess.run(words, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
        spent = {"clock": time.perf_counter() - begin, "cpu": cpu_of_children() - before}
        if done.returncode:
            raise RuntimeError(f"{' '.join(words[1:])} failed: {done.stderr.strip().splitlines()[-1:]}")
        phases = json.loads(done.stdout.splitlines()[-1] if plain else (out / "summary.json").read_text())
        phases = phases if plain else {name.removesuffix("_s"): seconds for name, seconds in phases["timing"].items()}
        return spent | {name: seconds for name, seconds in phases.items() if isinstance(seconds, float)}


def cpu_of_children() -> float:
    """CPU seconds of all processes that this one has started and waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def saved_model(path: str) -> str:
    """A folder in Hugging Face format with the model at `path`, which stays until this process ends."""
    from routed_rl.model.load import load_model, load_tokenizer

    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    load_model(path).save_pretrained(folder.name)
    load_tokenizer(path).save_pretrained(folder.name)
    return folder.name
