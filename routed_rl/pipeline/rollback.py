"""The verb `rollback` makes a new run from an earlier checkpoint of another run, with other environments. The old run stays as it
is.

Without a change the new run repeats the old one from that checkpoint on, bit for bit on a CPU. With other environments the
mixture starts afresh, with tasks that were not seen before, and a weight or a stage of an environment that is due after a number
of tasks counts from there; steps, the schedule of the learning rate, the model's weights and its optimizer continue.
"""

import dataclasses
import shutil
from contextlib import ExitStack
from pathlib import Path

from routed_rl.artifacts import RunFolder, alone_in, alone_making, sealed_folder, step_of
from routed_rl.checkpoint import QUARANTINE, going_on_from, move_quarantine, quarantined, start_afresh
from routed_rl.config import Compose, Config
from routed_rl.errors import ConfigError
from routed_rl.importing import importing
from routed_rl.pipeline import record
from routed_rl.tracking import MetricsFile

FIXED = ("seed", "model", "subspace", "routing")
"""Sections of settings that a rollback cannot change, because the weights, bases and parts in a checkpoint depend on them."""
LINEAGE = "lineage"


def rollback(folder: str, step: int, drop: list[str], forget: bool, overrides: list[str], compose: Compose) -> Path:
    """Make a new run from the checkpoint of `step` of the run in `folder`, and train it to its end; returns the new run's folder.
    `drop` names environments to leave out, `forget` also takes their parts out of the quarantine, and `overrides` change other
    settings. Everything that can be checked is checked before anything is written.

    A run into which another process writes is refused, so that its manifest and its checkpoints do not change while they are
    copied.
    """
    old = RunFolder.open(folder)
    with alone_in(old.path), ExitStack() as making:
        was, typed = record.read_config(old), record.read_overrides(old)
        if any(text.startswith("env=") for text in overrides):  # no environment of another mix was dropped yet
            typed = [text for text in typed if not text.startswith("~env.")]
        typed += overrides
        wanted = record.dated(compose(typed), was.model.date)
        was = record.moved(was, wanted)
        config = without(wanted, drop)
        config.out = wanted.out if any(text.lstrip("+").startswith("out=") for text in overrides) else None
        new = record.new_folder(config)
        if step:  # 0 is the base model
            old.require_checkpoint(step)
        if step > (last := config.trainer.get("max_steps", step)):
            raise ConfigError(f"--step {step} is after the last step, trainer.max_steps={last}; set it to {step} or more")
        routed = step > 0 and was.routing.mode != "none"
        has = quarantined(old.checkpoint(step)) if routed else []
        if forget:
            check_forgetting(has, config, step)
        making.enter_context(alone_making(new.path))
        with importing():  # TRL takes seconds to load: first all that is refused without it
            from routed_rl.pipeline.changes import refuse_changes
            from routed_rl.pipeline.prepared import prepared
            from routed_rl.pipeline.train import go_on

        refuse_changes(alike(was, wanted), record.at_base(wanted, old), FIXED, "rollback")
        config.out = str(new.path)
        parts, plan = prepared(record.at_base(config, old), new, before=old)
        fresh, after = record.trained_settings(was) != record.trained_settings(config), [each.name for each in parts.trained]
        kept = [] if forget else [name for name in has if name not in after]
        with new.being_made() as made:
            gone = [*(f"~env.{name}" for name in drop), *(f"~keep.{name}" for name in drop if name in wanted.keep)]
            if (listed := config.routing.practice.environments) != wanted.routing.practice.environments:
                gone.append(f"routing.practice.environments=[{','.join(listed)}]")
            record.write_config(made, config, [*typed, *gone])
            copy_until(old, made, step)
            if step:
                copy_checkpoint(old, made, step, fresh, None if has == [*after, *kept] or not routed else (after, kept))
            lineage = {"parent": str(old.path), "step": step, "drop": drop, "forget_parts": forget, "overrides": overrides}
            record.tell(made, {LINEAGE: lineage, "inherited": kept,
                        "fresh_from_step": step if fresh else min(record.fresh_from_step(old), step)})
        children = old.facts().get("children", [])
        record.tell(old, {"children": [*children, {"run": str(new.path), "step": step}]})
    return go_on(parts, plan)


def alike(was: Config, wanted: Config) -> Config:
    """Return `was`, the old run's config, with the `routing.practice` of `wanted`, the new run's config. A comparison of the
    result with `wanted` thus ignores these settings, on which a checkpoint does not depend."""
    return dataclasses.replace(was, routing=dataclasses.replace(was.routing, practice=wanted.routing.practice))


def without(wanted: Config, drop: list[str]) -> Config:
    """The config `wanted` without the environments in `drop`. ConfigError if it does not have one of them."""
    if missing := [name for name in drop if name not in wanted.env]:
        raise ConfigError(f"--drop {missing[0]}: the run has no such environment; it has {', '.join(wanted.env)}")
    kept, keep = ({name: each for name, each in settings.items() if name not in drop} for settings in (wanted.env, wanted.keep))
    practice = wanted.routing.practice
    if not isinstance(practice.environments, str):
        practice = dataclasses.replace(practice, environments=[name for name in practice.environments if name not in drop])
    routing = dataclasses.replace(wanted.routing, practice=practice)
    return dataclasses.replace(wanted, env=kept, keep=keep, routing=routing)


def check_forgetting(has: list[str], config: Config, step: int) -> None:
    """ConfigError if --forget-parts would take nothing away. `has` names the environments that have a part in the checkpoint of
    `step`, and `config` is that of the new run."""
    if all(name in record.trained_settings(config) for name in has):
        why = f"every environment with a part ({', '.join(has)}) is trained on further" if has else f"step {step} has no parts"
        raise ConfigError(f"--forget-parts does nothing, because {why}; leave it out{', or add --drop ENV' * bool(has)}")


def copy_checkpoint(old: RunFolder, new: RunFolder, step: int, fresh: bool, names: tuple[list[str], list[str]] | None) -> None:
    """Copy the checkpoint of `step` from the old run to the new one. `fresh` drops its buffered completions, which come from
    another mixture. `names` holds two lists of the environments whose parts the copy gets: those that are trained on, and the
    others. None keeps the parts as they are."""
    if not fresh and names is None:
        shutil.copytree(old.checkpoint(step), new.checkpoint(step))
        return
    with sealed_folder(new.checkpoint(step)) as partial:
        shutil.copytree(old.checkpoint(step), partial, dirs_exist_ok=True, ignore=shutil.ignore_patterns("COMPLETE.json"))
        if fresh:
            start_afresh(partial)
        if names is not None:
            with going_on_from(old.checkpoint(step) / QUARANTINE):
                move_quarantine(partial, *names)


def copy_until(old: RunFolder, new: RunFolder, step: int) -> None:
    """Copy from the old run to the new one the subspace, the base model, the detector, the trait's LoRA, the base model's
    evaluation and answers, and the metrics, completions and halts up to `step`."""
    from routed_rl.pipeline.answers import copy_base_answers  # loads the libraries of an evaluation

    for before, after in ((old.subspace, new.subspace), (old.base, new.base), (old.detector, new.detector)):
        if before.exists():
            shutil.copytree(before, after)
    for name in (new.trait.name, "evaluation-base.json", "metrics.jsonl", "verdicts.jsonl"):
        if (old.path / name).exists():
            shutil.copy(old.path / name, new.path / name)
    copy_base_answers(old, new)
    MetricsFile(new.metrics).truncate(step)
    MetricsFile(new.verdicts).truncate(step)
    if (halt := old.halt()) and halt["step"] <= step:
        shutil.copy(old.halted, new.halted)
    for file in [*old.completion_files(), *Path(old.path, "halts").glob("step-*.json")]:
        if step_of(file) <= step:
            copy = new.path / file.relative_to(old.path)
            copy.parent.mkdir(exist_ok=True)
            shutil.copy(file, copy)
