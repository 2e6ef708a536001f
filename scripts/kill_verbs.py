"""`kill -9` at random moments of train, resume, rollback, compare, sweep and extract, each in a process of its own.

    python scripts/kill_verbs.py FOLDER [--kills 200]

Each round makes one result in a fresh folder. Its command is killed (alone, or with all its children), typed again, and at last
left to end; the result must then equal that of an uninterrupted command, to the bit. In one round the clock is set back
before the run goes on. FOLDER keeps the count, so that the same call continues where it was stopped. The processes are
forked from this one, which has loaded all that a command loads, and go through the command line's own `main`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

STEPS, DAY_S = 6, 86400
ROUNDS = {"train": 10, "rollback": 8, "compare": 9, "sweep": 9, "extract": 5}
"""The number of kills in one round of each; the first two go on with resume."""
ORDER = ["train", "rollback", "train", "compare", "sweep", "extract"]


def command(verb: str, parts: Path, out: Path, old: Path) -> list[str] | None:
    """The command that a person types now to get `out`; None if extract has made it."""
    from tests.parts import typed

    quick = [f"env.{name}.isolate=false" for name in "abp"]
    settings = [*typed(parts, out, *quick, "trainer.save_steps=1", f"trainer.max_steps={STEPS}",
                       "evaluation.samples=4")]
    if verb == "extract":
        return None if out.exists() else ["extract", *settings]
    if verb == "compare":
        return ["compare", "--arms", "none,route", "--seeds", "1", "--jobs", "1", "--ranks", "", "--out", str(out), *settings[1:]]
    if verb == "sweep":
        return ["sweep", *settings, "seed=0,1", "sweep.jobs=1"]
    if (out / "config.yaml").exists():
        return ["resume", str(out)]
    return ["train", *settings] if verb == "train" else ["rollback", str(old), "--step", "2", "--drop", "a", f"out={out}"]


def started(words: list[str], log: Path, slow_s: int = 0) -> int:
    """Start `routed-rl` with `words` in a process with its own group, and return its id; its clock is `slow_s` behind."""
    from routed_rl import cli

    for module in ("rollback", "verbs"):  # before the fork, so that each command finds them loaded
        importlib.import_module(f"routed_rl.pipeline.{module}")
    if child := os.fork():
        return child
    os.setsid()
    now, now_ns = time.time, time.time_ns
    time.time, time.time_ns = lambda: now() - slow_s, lambda: now_ns() - slow_s * 10**9
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.argv = ["routed-rl", *words]
    os._exit(cli.main(words))


def ended(process: int, wait: bool = False) -> bool:
    """Whether the process has ended; AssertionError if it failed."""
    found, status = os.waitpid(process, 0 if wait else os.WNOHANG)
    assert not found or os.waitstatus_to_exitcode(status) == 0, f"exit code {os.waitstatus_to_exitcode(status)}, see its log"
    return bool(found)


def killed(process: int, draw: random.Random, whole_s: float) -> bool:
    """Kill the process at a random moment, alone or with its children; False if it had already ended."""
    until = time.monotonic() + draw.uniform(0, 0.6 * whole_s)
    while time.monotonic() < until:
        if ended(process):
            return False
        time.sleep(0.002)
    (os.killpg if draw.random() < 0.5 else os.kill)(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return True


def state(out: Path) -> dict[str, Any]:
    """All that was made, without what depends on the clock or the place; tensors by their hash."""
    import pandas as pd
    import torch
    from safetensors.torch import load_file

    from routed_rl.artifacts import RunFolder, damage

    found: dict[str, Any] = {}
    for config in sorted(out.rglob("config.yaml")):
        run, name = RunFolder(config.parent), str(config.parent.relative_to(out))
        rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
        assert [row["step"] for row in rows] == list(range(1, STEPS + 1)), "a step is missing, or is there twice"
        assert damage(run.checkpoint(STEPS)) is None, run.steps()
        summary = {key: value for key, value in json.loads(run.summary.read_text()).items() if key != "timing"}
        tables = pd.concat([pd.read_parquet(path) for path in run.completion_files()])
        found[name] = {"rows": [{key: value for key, value in row.items() if "time" not in key} for row in rows],
                       "summary": summary, "completions": tables.to_json(orient="records"),
                       "weights": {f"{file.parent.name}/{file.name}": _hashes(load_file(file))
                                   for file in sorted(run.path.rglob("*.safetensors"))},
                       "optimizer": str(torch.load(run.checkpoint(STEPS) / "optimizer.pt", weights_only=True)["state"])}
    if not found:
        found = {file.name: _hashes(load_file(file)) for file in out.glob("*.safetensors")}
    assert found and not list(out.rglob(".*.partial")), "nothing was made, or something half made is left"
    return found


def set_back(out: Path) -> int:
    """Date every file in the future; returns by how many seconds the clock shall be slow."""
    then = time.time() + DAY_S
    for path in out.rglob("*"):
        os.utime(path, (then, then))
    return DAY_S


def _hashes(tensors: dict[str, Any]) -> dict[str, str]:
    import hashlib

    return {name: hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest() for name, value in tensors.items()}


class Kills:
    """The rounds so far, in FOLDER/kills.json."""

    def __init__(self, folder: Path) -> None:
        from tests.parts import write_parts

        self.folder, self.file, self.parts, self.old = folder, folder / "kills.json", folder / "parts", folder / "old"
        folder.mkdir(parents=True, exist_ok=True)
        self.record: dict[str, Any] = json.loads(self.file.read_text()) if self.file.exists() else {
            "kills": [], "rounds": [], "whole_s": {}, "clock": 0}
        if not self.parts.exists():
            write_parts(self.parts)
        if "old" not in self.record["whole_s"]:
            self.finish("train", self.old)
            self.record["whole_s"]["old"] = 0.0
        for verb in ROUNDS:
            if verb not in self.record["whole_s"]:
                self.record["whole_s"][verb] = self.finish(verb, folder / f"whole-{verb}")
                self.write()

    def write(self) -> None:
        self.file.write_text(json.dumps(self.record, indent=1))

    def finish(self, verb: str, out: Path) -> float:
        """Let the command run to its end; returns the seconds."""
        begin = time.monotonic()
        if (words := command(verb, self.parts, out, self.old)) is not None:
            ended(started(words, out.with_suffix(".log")), wait=True)
        return time.monotonic() - begin

    def round(self, verb: str) -> None:
        """Kill the command, go on with it, and compare the result."""
        number = len(self.record["rounds"])
        out, draw = self.folder / f"round-{number}-{verb}", random.Random(number * 1000 + len(self.record["kills"]))
        log, left = out.with_suffix(".log"), ROUNDS[verb]
        while left and (words := command(verb, self.parts, out, self.old)) is not None:
            back = not self.record["clock"] and words[0] == "resume" and left < ROUNDS[verb] - 3
            if not killed(started(words, log, set_back(out) if back else 0), draw, self.record["whole_s"][verb]):
                break
            self.record["kills"].append(words[0])
            self.record["clock"] += back
            left -= 1
            self.write()
        self.finish(verb, out)
        whole = self.folder / f"whole-{verb}"
        assert state(out) == state(whole), f"{out} is not what {whole} is"
        self.record["rounds"].append([verb, ROUNDS[verb] - left])
        self.write()
        print(f"{len(self.record['kills'])} kills, round {number}: {verb}, the same bits", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=200)
    arguments = parser.parse_args()
    kills = Kills(arguments.folder.absolute())
    while len(kills.record["kills"]) < arguments.kills:
        kills.round(ORDER[len(kills.record["rounds"]) % len(ORDER)])
    print(json.dumps(Counter(kills.record["kills"])), f"the clock set back {kills.record['clock']} time(s)", flush=True)


if __name__ == "__main__":
    main()
