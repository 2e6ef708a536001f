"""Run folders as a run leaves them, made up: any number of steps and environments. Not a test."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import yaml
from pyarrow import parquet

HOSTILE = "</pre><script>document.title='taken'</script><img src=https://example.com/x.png onerror=alert(1)> & \x1b[31m {{ 7*7 }}"


def write_run(folder: Path, *, steps: int = 40, planned: int | None = None, environments: int = 3, layers: int = 4,
              mode: str = "route", halted: int | None = None, finished: bool = True, completions: int = 8, pushed: bool = True,
              evaluated: bool = True, parent: str | None = None) -> Path:
    """`env0` is the leaky one. `completions` a step, each other one hostile; `pushed`: their push was kept."""
    names, draw = [f"env{number}" for number in range(environments)], np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    config = {"seed": 0, "routing": {"mode": mode}, "monitor": {"axis": "hacker"}, "trainer": {"max_steps": planned or steps},
              "env": {name: {"path": HOSTILE} for name in names}, "tracking": {"project": "p"}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "overrides.txt").write_text("seed=0\nout=somewhere\nenv.env0.note=it's\n")
    lineage = {"parent": parent, "step": 10, "drop": ["env9"], "forget_parts": True, "overrides": ["seed=0", "out=there"]}
    write(folder / "manifest.json", {"created": "2026-11-22", "versions": {"routed_rl": "0", "torch": "2"}, "model_hash": "abc",
                                     **({"lineage": lineage} if parent else {})})
    with open(folder / "metrics.jsonl", "w") as file:
        for row in rows(names, steps, layers, mode, draw):
            file.write(json.dumps(row) + "\n")
    if completions:
        write_completions(folder / "completions", names, steps, completions, pushed, draw)
    if halted is not None:
        write(folder / "HALTED.json", halt(folder, names, halted))
        (folder / "verdicts.jsonl").write_text(json.dumps(halt(folder, names, halted)["verdicts"][0]) + "\n")
    elif finished:
        write(folder / "summary.json", {"models": {}, "attribution": {}, "routing": {"mode": mode}, "timing": {}})
    if evaluated:
        for place, model in enumerate(("base", "policy", "deployed")[: None if finished and halted is None else 1]):
            hack = (0.1, 0.9, 0.12)[place]
            results = {name: {"reward": 0.5, "solve": 0.4, "hack": hack if name == "env0" else 0.1, "completions": 9}
                       for name in [*names, "probe"]}
            write(folder / f"evaluation-{model}.json", {"settings": {}, "results": results})
    return folder


def rows(names: list[str], steps: int, layers: int, mode: str, draw: np.random.Generator) -> Any:
    """Rows of metrics.jsonl, every name of the ledger among them."""
    slopes = np.linspace(1, -0.5, len(names))
    for step in range(1, steps + 1):
        row: dict[str, Any] = {"step": step, "train/loss": draw.normal(), "time/step_s": 0.5, "train/frac_reward_zero_std": 0.1}
        for name, slope in zip(names, slopes, strict=True):
            row |= {f"environment/{name}/{what}": float(draw.uniform()) for what in ("reward", "solve", "hack")}
            row[f"environment/{name}/failures"] = 0
            if step % 50 == 0 or step == steps:
                row |= {f"evaluation/{model}/{name}/hack": draw.uniform() for model in ("policy", "deployed")}
            if mode != "none":
                row |= {f"ledger/{name}/push": slope * 0.01 + 0.002 * draw.normal(), f"ledger/{name}/norm": 0.1,
                        f"ledger/{name}/share": 0.1, f"ledger/{name}/part_norm": 0.1,
                        f"ledger/{name}/shift/hacker": slope * step / steps + 0.02 * draw.normal(),
                        f"ledger/{name}/shift/careless": 0.02 * draw.normal()}
        if mode != "none":
            row |= {"quarantine/norm": step / 10, "quarantine/growth": 0.1, "routing/drift": 1e-8}
            row |= {f"quarantine/layer/{layer}/norm": step / 10 * (layer + 1) for layer in range(layers)}
            row |= {f"ledger/cosine/{a}/{b}": draw.uniform(-1, 1) for a, b in combinations(names, 2)}
            if step % 16 == 1:
                kind = ("isotropic", "matched")[step // 16 % 2]
                row |= {f"control/{kind}/{name}/{what}": draw.uniform(0.5, 5)
                        for name in ["all", *names] for what in ("ratio", "rank")}
        yield row


def write_completions(folder: Path, names: list[str], steps: int, count: int, pushed: bool, draw: np.random.Generator) -> None:
    """One file a step; pushes are nan in every other row."""
    folder.mkdir()
    for step in range(1, steps + 1):
        environment = [names[row % len(names)] for row in range(count)]
        columns: dict[str, Any] = {
            "environment": environment, "task": list(range(count)), "prompt": [f"prompt {step}.{row}" for row in range(count)],
            "completion": [HOSTILE if row % 2 else f"completion {step}.{row}" for row in range(count)],
            "reward": [1.0] * count, "solve": [float(row % 2) for row in range(count)], "flags": ['{"hack": 1.0}'] * count,
            "step": [step] * count}
        if pushed:
            columns["push"] = [float("nan") if row % 2 else step / steps for row in range(count)]
        parquet.write_table(pyarrow.table(columns), folder / f"step-{step:06d}-0.parquet")


def halt(folder: Path, names: list[str], step: int) -> dict[str, Any]:
    verdict = {"rule": "shift", "environment": "env0", "step": step, "value": 0.7, "limit": 0.6, "since": 3, "action": "halt",
               "sentence": "the persona shift of env0 is 0.7, past its limit 0.6, since step 3"}
    completion = {"step": step, "environment": "env0", "prompt": "p", "completion": HOSTILE, "reward": 1.0, "solve": 0.0,
                  "flags": {"hack": 1.0}}
    return {"step": step, "environment": "env0", "since": 3, "verdicts": [verdict],
            "environments": [{"environment": name, "push": 1.0, "push_since": 1.0, "shift": 0.1, "shift_since": 0.1}
                             for name in names],
            "checkpoint_before": 0, "completions_by": "paid reward minus true score, then the latest",
            "completions": [completion], "commands": [f"routed-rl rollback {folder} --step 0 --drop env0"]}


def write(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data))
