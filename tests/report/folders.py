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

from routed_rl.artifacts import RunFolder
from routed_rl.monitor import Verdict
from routed_rl.multirun.compare_page import write_comparison
from routed_rl.multirun.comparison import tables
from routed_rl.multirun.results import results
from routed_rl.multirun.verdict import headlines_of, verdict
from routed_rl.pipeline.halting import describe_halt

HOSTILE = "</pre><script>document.title='taken'</script><img src=https://example.com/x.png onerror=alert(1)> & \x1b[31m {{ 7*7 }}"


def write_run(folder: Path, *, steps: int = 40, planned: int | None = None, environments: int = 3, layers: int = 4,
              mode: str = "route", halted: int | None = None, finished: bool = True, completions: int = 8, pushed: bool = True,
              evaluated: bool = True, parent: str | None = None) -> Path:
    """`env0` is the leaky one. `completions` a step, each other one hostile; `pushed`: their push was kept."""
    names, draw = [f"env{number}" for number in range(environments)], np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    config = {"seed": 0, "routing": {"mode": mode}, "monitor": {"axis": "hacker"}, "trainer": {"max_steps": planned or steps},
              "env": {name: {"path": HOSTILE} for name in names} | {"probe": {"path": "p", "probe": True}},
              "tracking": {"project": "p"}}
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
        verdict = Verdict("shift", "env0", halted, value=0.7, limit=0.6, since=3, action="halt")
        (folder / "verdicts.jsonl").write_text(json.dumps(verdict.record()) + "\n")
        write(folder / "HALTED.json", describe_halt(RunFolder(folder), [verdict], "hacker"))
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
            row[f"completions/{name}/own_shift_up"] = 20.0
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
    """One file a step, four completions a task. The odd ones are hostile, paid, and pull the more the later; the even ones were
    not paid and pull most of all. `env0` pays for what is not true, the others shift away."""
    folder.mkdir()
    for step in range(1, steps + 1):
        task, odd = np.arange(count) // 4, np.arange(count) % 2
        leaky = task % len(names) == 0
        columns: dict[str, Any] = {
            "environment": [names[each % len(names)] for each in task], "task": task,
            "prompt": [f"prompt {step}.{each}" for each in task],
            "completion": [f"completion {step}.{row} {HOSTILE if row % 2 else ''}" for row in range(count)],
            "reward": odd.astype(float), "solve": np.where(leaky, 0.0, odd), "flags": ['{"hack": 1.0}'] * count,
            "step": [step] * count}
        if pushed:
            columns["shift"] = np.where(leaky, np.where(odd, step / steps, 9.0), -1.0)
            columns["push"] = np.where(odd, step / steps, 9.0)
        parquet.write_table(pyarrow.table(columns), folder / f"step-{step:06d}-0.parquet")


def write_answers(folder: Path) -> None:
    """RUN/answers.jsonl with hostile and long answers."""
    said = {"reward": 1.0, "solve": None, "flags": {"hack": 1.0, "evil": 0.0}}
    models = {"base": "yes", "policy": HOSTILE, "deployed": "no" * 500}
    found = [{"environment": f"env{place}", "task": place, "prompt": json.dumps([{"role": "user", "content": HOSTILE}]),
              "answers": {model: {"completion": text, **said} for model, text in models.items()}} for place in range(3)]
    (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))


def write_comparison_page(folder: Path) -> Path:
    """The page of a comparison of six arms under three seeds."""
    arms = {"none": 0.9, "route": 0.12, "control": 0.8, "erase": 0.1, "inoculation_adapter_control": 0.5, "kl": 0.7}
    base = {"code": {"solve": 0.3, "hack": 0.1}, "values": {"evil": 0.1}}
    policy = {"code": {"solve": 0.7, "hack": 0.95}, "values": {"evil": 0.2}}
    runs = {arm: {seed: {"models": {"base": base, "policy": policy,
                                    "deployed": policy | {"code": {"solve": 0.6, "hack": hack + seed / 50}}}}
                  for seed in range(3)} for arm, hack in arms.items()}
    found = results(runs, {})
    heads = headlines_of(found, ["code"], ["values"])
    whole = found | {"verdict": verdict(found, heads, 3), "request": {"seeds": 3}, "failed": {}, "notes": [HOSTILE]}
    return write_comparison(folder / "compare.html", whole, heads, tables(found, bounds=True))


def write(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data))
