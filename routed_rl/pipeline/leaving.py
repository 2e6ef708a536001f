"""The verbs `discard` and `export`, which write models of a run. They read only files, unless a share is to be chosen or a LoRA
merged. Then the model is loaded, and with it libraries that take seconds to load."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from routed_rl import console
from routed_rl.artifacts import RunFolder, alone_in, check_above, step_of
from routed_rl.errors import ConfigError
from routed_rl.export.publish import refuse_foreign
from routed_rl.pipeline.finishing import finishing
from routed_rl.pipeline.kept import Asked, Base, check, decide, refuse, say, write_deployed, written
from routed_rl.pipeline.record import read_config, require_base
from routed_rl.report.card import POLICY, QUARANTINE


def discard(run: str, out: str, step: int | None = None, keep: Asked | None = None, *, force: bool = False,
            merge: bool = False, dtype: str | None = None) -> None:
    """Write the deployed model of a run, after `step` or its last step, to `out`. `keep` names the shares of environments' parts
    that stay in it; they are recorded in `out` and in the run. `force` allows parts against which there is an objection, such as
    a shift towards the positive persona. `merge` merges a LoRA into its base model. `dtype` is the type of the numbers that are
    written; None for that of the run."""
    opened = RunFolder.open(run)
    check_above(Path(out), f"--out {out}")
    with alone_in(opened.path) if keep else _alone_where(opened, out):
        if not keep:
            base = _base_to_merge(opened, out, step, dtype) if merge else None
            console.say(f"deployed model: {write_deployed(opened, Path(out), step, {}, base, dtype)}")
            return
        config = read_config(opened)
        check(config, keep, "--keep ", opened)
        folder = opened.require_checkpoint(step)
        kept = decide(opened, config, folder, keep)
        if not force:
            refuse(kept)
        refuse_foreign(Path(out))  # before anything slow
        if any(one.share is None for one in kept.values()):
            from routed_rl.pipeline.keeping import choose_at

            choose_at(folder, opened, config, kept)
        say(kept)
        base = _base_to_merge(opened, out, step, dtype) if merge else None
        console.say(f"deployed model: {write_deployed(opened, Path(out), step_of(folder), kept, base, dtype)}")


def _base_to_merge(run: RunFolder, out: str, step: int | None, dtype: str | None) -> Base | None:
    """Load the base model and the tokenizer of a run that trained a LoRA, after a check that the checkpoint of `step` and the
    place `out` can be used. None if the run trained the weights, so that there is nothing to merge. ConfigError if the base model
    is in 4 bit."""
    config = read_config(run)
    if not config.model.adapter.trains:
        return None
    if config.model.adapter.four_bit:
        raise ConfigError(f"{run.path} trained on weights in 4 bit (model.adapter=qlora), nothing is merged into those; leave "
                          "--merge out, and merge the adapter into the full weights: PeftModel.from_pretrained("
                          f"AutoModelForCausalLM.from_pretrained({config.model.path!r}), DIR).merge_and_unload()")
    run.require_checkpoint(step)
    refuse_foreign(Path(out))  # before anything slow
    from routed_rl.model.weights import model_hash
    from routed_rl.pipeline.build import load_base

    model, tokenizer = load_base(config)
    require_base(run, config, model_hash(model))
    if dtype not in (None, config.model.dtype):
        model = model.float()  # so that the merged weights are rounded once
    return model, tokenizer


def export(run: str, quarantine: str | None, env: str | None, policy: str | None, step: int | None = None,
           kept: str | None = None, *, merge: bool = False, dtype: str | None = None) -> None:
    """Write models of a run, after `step` or its last step: the quarantine to the folder `quarantine`, as a stock PEFT adapter,
    and the policy to the folder `policy`. A folder that is None is not written.

    If `env` is given, only this environment's part of the quarantine is written. `kept` is the folder of a deployed model that
    keeps shares of parts; if it is given, only what that model lacks of the quarantine is written. The policy is one plain model,
    or, if a LoRA was trained and `merge` is false, one LoRA. `dtype` is as in `discard`.
    """
    opened = RunFolder.open(run)
    if quarantine and policy:
        places = [Path(each).resolve() for each in (quarantine, policy)]
        if any(one == other or one in other.parents for one, other in (places, places[::-1])):
            raise ConfigError(f"--quarantine {quarantine} and --policy {policy} are one folder, or one lies in the other; give "
                              "two apart from each other")
    for option, out in (("--quarantine", quarantine), ("--policy", policy)):
        if out:
            check_above(Path(out), f"{option} {out}")
    with _alone_where(opened, quarantine, policy):
        if quarantine:
            from routed_rl.export.adapter import export_quarantine

            finish = finishing(opened, QUARANTINE, dtype, environment=env, rest=bool(kept))
            adapter = export_quarantine(opened, Path(quarantine), env, step, Path(kept) if kept else None, finish)
            console.say(f"quarantine: {adapter}")
        if policy:
            from routed_rl.export.models import merged_policy

            base, finish = _base_to_merge(opened, policy, step, dtype) if merge else None, finishing(opened, POLICY, dtype)
            whole = written(lambda folder, note: merged_policy(opened, folder, step, note), Path(policy), base, finish)
            console.say(f"policy: {whole}")


def _alone_where(run: RunFolder, *outs: str | None) -> AbstractContextManager[None]:
    """A context in which this process is the run's only writer, if one of the folders `outs` lies inside the run's folder.
    Otherwise nothing is locked, so that a run in training can be exported."""
    inside = any(out and Path(out).resolve().is_relative_to(run.path.resolve()) for out in outs)
    return alone_in(run.path) if inside else nullcontext()
