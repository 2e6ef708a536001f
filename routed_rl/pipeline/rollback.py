"""`rollback`: a new run from an earlier checkpoint of another, with other environments. The old run stays as it is.

Without a change the new run is the old one at that step, bit for bit on a CPU. With other environments the mixture starts
afresh, from tasks that were not seen; steps, schedules, weights and optimizer go on.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from routed_rl.artifacts import RunFolder, broken_seal, read_json, sealed_folder, step_of
from routed_rl.checkpoint import move_quarantine, quarantined, start_afresh
from routed_rl.config import Compose, Config
from routed_rl.envs import EnvironmentProcess, load_environments, trained
from routed_rl.errors import CheckpointError, ConfigError
from routed_rl.pipeline.record import (
    fresh_from_step,
    new_folder,
    read_config,
    read_overrides,
    refuse_changes,
    tell,
    write_config,
)
from routed_rl.pipeline.train import resume
from routed_rl.tracking import MetricsFile

FIXED = ("seed", "model", "subspace", "routing")
"""What a checkpoint stands on: its weights, its bases, its parts."""
LINEAGE = "lineage"


def rollback(folder: str, step: int, drop: list[str], forget: bool, overrides: list[str], compose: Compose) -> Path:
    """Make the new run and train it to its end; returns its folder."""
    old = RunFolder.open(folder)
    was, typed = read_config(old), read_overrides(old)
    config = changed(was, compose([*typed, *overrides]), drop)
    config.out = next((text[4:] for text in reversed(overrides) if text.startswith("out=")), None)
    new = new_folder(config)
    check_step(old, step)
    config.out = str(new.path)
    fresh = was.env != config.env
    after, routed = trained_names(config), step > 0 and was.routing.mode != "none"
    kept = [name for name in quarantined(old.checkpoint(step)) if name not in after] if routed and not forget else []
    new.path.mkdir(parents=True, exist_ok=True)
    write_config(new, config, [*typed, *overrides])
    copy_until(old, new, step)
    if step and fresh:
        with sealed_folder(new.checkpoint(step)) as partial:
            shutil.copytree(old.checkpoint(step), partial, dirs_exist_ok=True, ignore=shutil.ignore_patterns("COMPLETE.json"))
            start_afresh(partial)
            if routed:
                move_quarantine(partial, after, kept)
    elif step:
        shutil.copytree(old.checkpoint(step), new.checkpoint(step))
    lineage = {"parent": str(old.path), "step": step, "drop": drop, "forget_parts": forget, "overrides": overrides}
    tell(new, {LINEAGE: lineage, "inherited": kept, "fresh_from_step": step if fresh else min(fresh_from_step(old), step)})
    children = read_json(old.manifest).get("children", [])
    tell(old, {"children": [*children, {"run": str(new.path), "step": step}]})
    return resume(str(new.path), [], compose)


def changed(was: Config, wanted: Config, drop: list[str]) -> Config:
    """The new run's config; ConfigError for a change that no checkpoint can follow, or an environment that is not there."""
    refuse_changes(was, wanted, FIXED, "rollback")
    if missing := [name for name in drop if name not in wanted.env]:
        raise ConfigError(f"--drop {missing[0]}: the run has no such environment; it has {', '.join(wanted.env)}")
    return dataclasses.replace(wanted, env={name: settings for name, settings in wanted.env.items() if name not in drop})


def check_step(run: RunFolder, step: int) -> None:
    """Refuse a step without a whole checkpoint; 0 is the base model."""
    have = [0, *(each for each in run.steps() if broken_seal(run.checkpoint(each)) is None)]
    if step not in have:
        raise CheckpointError(f"--step {step}: {run.path} has no whole checkpoint there; it has {', '.join(map(str, have))} "
                              "(0 is the base model)")


def trained_names(config: Config) -> list[str]:
    """The environments that the new run trains, each of which can be built."""
    loaded = load_environments(config.env)
    for each in loaded:
        if isinstance(each.environment, EnvironmentProcess):
            each.environment.close()
    return [each.name for each in trained(loaded)]


def copy_until(old: RunFolder, new: RunFolder, step: int) -> None:
    """Subspace, base evaluation, metrics and completions up to `step`."""
    if old.subspace.exists():
        shutil.copytree(old.subspace, new.subspace)
    for name in ("evaluation-base.json", "metrics.jsonl", "verdicts.jsonl"):
        if (old.path / name).exists():
            shutil.copy(old.path / name, new.path / name)
    MetricsFile(new.metrics).truncate(step)
    MetricsFile(new.verdicts).truncate(step)
    for file in old.completion_files():
        if step_of(file) <= step:
            new.completions.mkdir(exist_ok=True)
            shutil.copy(file, new.completions / file.name)
