"""Law 7 at any moment: killed fifty times, halting on the way, a run ends where an undisturbed one ends."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from routed_rl.artifacts import RunFolder
from routed_rl.config import MonitorConfig, RuleConfig
from routed_rl.errors import Halted
from routed_rl.monitor import Monitor
from tests import pipeline
from tests.parts import own_config, write_parts

STEPS, KILLS = 160, 50
WEIGHTS = {"none": "model.safetensors", "lora": "adapter_model.safetensors"}
"""What a checkpoint has of the deployed model, by `model.adapter`."""


def config(parts: Path, out: Path, adapter: str, *, halts: bool):
    # At least half a point a step is paid for nothing: it halts, is told to go on, and halts again some steps later.
    gap = RuleConfig(limit=4.0, action="halt" if halts else "report")
    model = {"path": str(parts / "model"), "adapter": {"kind": adapter} | ({"r": 4} if adapter == "lora" else {})}
    wanted = own_config(parts, out, model=model, trainer={"max_steps": STEPS, "save_steps": 3, "save_total_limit": 4})
    wanted.monitor = MonitorConfig(warmup=0, gap=gap)
    return wanted


def go_on(wanted) -> None:
    """Start the run, or go on with what is there, as a user would: over and over until it is done."""
    out = Path(wanted.out)
    while True:
        try:
            if (out / "config.yaml").exists():
                pipeline.resume(str(out), [], lambda _: wanted)
            else:
                shutil.rmtree(out, ignore_errors=True)
                pipeline.train(wanted, [])
            return
        except Halted:
            continue


def forked(wanted, moment: random.Random | None) -> bool:
    """`go_on` in a process of its own, killed within five steps at any moment of one; True when it came to its end."""
    reach = steps(wanted) + moment.randint(0, 4) if moment else 0
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        try:
            go_on(wanted)
            os._exit(0)
        finally:
            os._exit(1)
    while moment and steps(wanted) < reach and not exited(child):
        time.sleep(0.002)
    if moment:
        time.sleep(moment.uniform(0, 0.3))
        os.kill(child, signal.SIGKILL)  # A child that has ended by itself does not mind: nobody has waited for it.
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, -signal.SIGKILL), "going on failed"
    return code == 0


def exited(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def steps(wanted) -> int:
    """Lines of the metrics so far."""
    path = Path(wanted.out) / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def metrics(run: Path) -> list[dict]:
    """Without what depends on the clock."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if "time" not in key} for row in rows]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("adapter", WEIGHTS)
def test_killed_at_fifty_random_moments_and_halting_on_the_way_it_ends_where_an_undisturbed_run_ends(tmp_path, adapter):
    parts, moment, reached = write_parts(tmp_path / "parts"), random.Random(0), list[int]()
    whole, wanted = (config(parts, tmp_path / name, adapter, halts=name == "run") for name in ("whole", "run"))
    assert forked(whole, None)
    while len(reached) < KILLS and not forked(wanted, moment):
        reached.append(steps(wanted))
    assert len(reached) == KILLS, f"done after {len(reached)} kills already: they must come sooner"
    assert len(set(reached)) > 20, "the kills must meet many different steps"
    assert forked(wanted, None)
    whole, run = Path(whole.out), Path(wanted.out)
    assert [row["step"] for row in metrics(run)] == list(range(1, STEPS + 1))
    assert metrics(run) == metrics(whole)
    for name in (WEIGHTS[adapter], "quarantine.safetensors"):
        ours, theirs = (load_file(RunFolder(each).checkpoint(STEPS) / name) for each in (run, whole))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in theirs), name
    halts = sorted(int(path.stem[5:]) for path in (run / "halts").glob("*.json"))
    assert len(halts) > 10 and halts == to_halt(metrics(whole), wanted.monitor), "every halt was said, none twice"


def to_halt(rows: list[dict], settings: MonitorConfig) -> list[int]:
    """Steps at which a run with these rows halts that is told to go on each time."""
    monitor, found = Monitor(settings), list[int]()
    for row in rows:
        if any(verdict.halts for verdict in monitor.judge(row)):
            found.append(row["step"])
            monitor.rearm()
    return found
