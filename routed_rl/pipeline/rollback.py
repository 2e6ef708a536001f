"""`rollback`: a new run from an earlier checkpoint of another, with other environments. The old run stays as it is.

Without a change the new run is the old one at that step, bit for bit on a CPU. With other environments the mixture starts
afresh, from tasks that were not seen; steps, schedules, weights and optimizer go on.
"""

from __future__ import annotations

import dataclasses
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

from routed_rl.artifacts import RunFolder, broken_seal, read_json, sealed_folder, write_json
from routed_rl.checkpoint import move_quarantine, start_afresh
from routed_rl.config import Config
from routed_rl.envs import load_environments, trained
from routed_rl.errors import CheckpointError, ConfigError
from routed_rl.pipeline.halting import inherited
from routed_rl.pipeline.train import Compose, difference, read_config, resume, write_config
from routed_rl.tracking import MetricsFile

FIXED = ("seed", "model", "subspace", "routing")
"""What a checkpoint stands on: its weights, its bases, its parts."""
LINEAGE = "lineage"


def rollback(folder: str, step: int, drop: list[str], forget: bool, overrides: list[str], compose: Compose) -> Path:
    """Make the new run and train it to its end; returns its folder."""
    old = RunFolder.open(folder)
    was, typed = read_config(old), (old.path / "overrides.txt").read_text().splitlines()
    config = changed(was, compose([*typed, *overrides]), drop)
    config.out = next((text[4:] for text in reversed(overrides) if text.startswith("out=")), None)
    new = RunFolder(config.out or f"runs/{datetime.now().strftime('%Y-%m-%d-%H%M%S')}-{config.name}")
    new.refuse_if_taken()
    check_step(old, step)
    config.out = str(new.path)
    fresh = was.env != config.env
    before, after = (inherited_of(old, was), [loaded.name for loaded in trained(load_environments(config.env))])
    kept = [] if forget else [name for name in before if name not in after]
    new.path.mkdir(parents=True, exist_ok=True)
    write_config(new, config, [*typed, *overrides])
    copy_until(old, new, step)
    if step and fresh:
        with sealed_folder(new.checkpoint(step)) as partial:
            shutil.copytree(old.checkpoint(step), partial, dirs_exist_ok=True, ignore=shutil.ignore_patterns("COMPLETE.json"))
            start_afresh(partial)
            if was.routing.mode != "none":
                move_quarantine(partial, after, kept)
    elif step:
        shutil.copytree(old.checkpoint(step), new.checkpoint(step))
    lineage = {"parent": str(old.path), "step": step, "drop": drop, "forget_parts": forget, "overrides": overrides}
    tell(new, {LINEAGE: lineage, "inherited": kept, "fresh_from_step": step if fresh else None})
    children = read_json(old.manifest).get("children", [])
    tell(old, {"children": [*children, {"run": str(new.path), "step": step}]})
    return resume(str(new.path), [], compose)


def changed(was: Config, wanted: Config, drop: list[str]) -> Config:
    """The new run's config; ConfigError for a change that no checkpoint can follow, or an environment that is not there."""
    for name in FIXED:
        if (before := getattr(was, name)) != (after := getattr(wanted, name)):
            raise ConfigError(f"rollback cannot change {name}: {difference(before, after)}; start a new run with it")
    if missing := [name for name in drop if name not in wanted.env]:
        raise ConfigError(f"--drop {missing[0]}: the run has no such environment; it has {', '.join(wanted.env)}")
    return dataclasses.replace(wanted, env={name: settings for name, settings in wanted.env.items() if name not in drop})


def check_step(run: RunFolder, step: int) -> None:
    """Refuse a step without a whole checkpoint; 0 is the base model."""
    have = [0, *(each for each in run.steps() if broken_seal(run.checkpoint(each)) is None)]
    if step not in have:
        raise CheckpointError(f"--step {step}: {run.path} has no whole checkpoint there; it has {', '.join(map(str, have))} "
                              "(0 is the base model)")


def inherited_of(run: RunFolder, config: Config) -> list[str]:
    """Environments that have a part in the run's quarantine: those it trains, and those it inherited."""
    return [*(loaded.name for loaded in trained(load_environments(config.env))), *inherited(run)]


def copy_until(old: RunFolder, new: RunFolder, step: int) -> None:
    """Subspace, base evaluation, metrics and completions up to `step`."""
    if old.subspace.exists():
        shutil.copytree(old.subspace, new.subspace)
    for name in ("evaluation-base.json", "metrics.jsonl", "verdicts.jsonl"):
        if (old.path / name).exists():
            shutil.copy(old.path / name, new.path / name)
    MetricsFile(new.metrics).truncate(step)
    MetricsFile(new.verdicts).truncate(step)
    for file in sorted(old.completions.glob("step-*.parquet")):
        if int(file.name.split("-")[1]) <= step:
            new.completions.mkdir(exist_ok=True)
            shutil.copy(file, new.completions / file.name)


def tell(run: RunFolder, facts: dict[str, Any]) -> None:
    """Into a run's manifest."""
    write_json(run.manifest, read_json(run.manifest) | facts)
