"""The verbs that work on a finished run or without one: extract, evaluate, discard, export."""

import dataclasses
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from routed_rl import console
from routed_rl import export as exporting
from routed_rl.artifacts import RunFolder, alone_in, alone_making, step_of, write_json
from routed_rl.config import Config
from routed_rl.envs import LoadedEnvironment
from routed_rl.errors import CheckFailed, ConfigError
from routed_rl.extraction import check as checking
from routed_rl.model.weights import model_hash
from routed_rl.pipeline import summary
from routed_rl.pipeline.build import Parts, extraction_job, load_base, load_parts, make_router, make_subspace, take_checkpoint
from routed_rl.pipeline.keeping import choose, measure_kept
from routed_rl.pipeline.kept import Asked, Base, check, decide, refuse, say, shares_of, write_deployed
from routed_rl.pipeline.measuring import curve, measure, measure_both
from routed_rl.pipeline.record import inherited, read_config, require_base
from routed_rl.pipeline.serving import route_served, serving
from routed_rl.rollout import Served, check_engine
from routed_rl.routing import Router
from routed_rl.subspace import Subspace
from routed_rl.training import check_adapter


def extract(config: Config, overrides: list[str], check: bool) -> Path:
    """Extract a subspace from prompts into a folder (`out=`, default `subspace`). `check` also says whether it is a good one,
    with a plot."""
    out = Path(config.out or "subspace")
    with alone_making(out):
        if out.exists():
            raise ConfigError(f"out={out} exists already; set out=ANOTHER_FOLDER")
        parts = load_parts(config)
        subspace = make_subspace(parts, axes=check)
        subspace.save(out)
        if check:
            _check(parts, subspace, out)
    return out


def _check(parts: Parts, subspace: Subspace, out: Path) -> None:
    """Print tables and verdicts, write check.json and check.png; CheckFailed if a threshold is missed."""
    with console.progress("check", "directions") as advance:
        found = checking.check(extraction_job(parts), subspace, advance)
    checking.write_check(found, out)
    for title, rows in checking.tables(found).items():
        console.table(title, list(rows[0]), [list(row.values()) for row in rows])
    for line in checking.remarks(found):
        console.say(f"note: {line}")
    said = checking.verdicts(found, parts.config.subspace.check)
    for verdict in said:
        mark = {True: "good", False: "NOT GOOD", None: "?"}[verdict.good]
        console.say(f"{mark:8}  {verdict.question}: {verdict.answer}")
    if bad := [verdict for verdict in said if verdict.good is False]:
        raise CheckFailed(f"subspace {out}: " + "; ".join(f"{verdict.question}: {verdict.answer}" for verdict in bad))


def evaluate(target: str, envs: list[str] | None, json_file: str | None, config: Config | None,
             engine: str | None = None, scales: list[float] | None = None, step: int | None = None,
             keep: Asked | None = None) -> None:
    """Evaluate a run's base, policy and deployed models, or one model folder, on its environments.

    `engine`: transformers, or vllm (the run's own server, or in this process if it has none); None for the run's own engine.
    `scales`: evaluate also with the quarantine times each of these. `step`: a run's checkpoint of that step instead of its last.
    `keep`: evaluate also the deployed model with these shares of environments' parts, whatever the objections to them.
    """
    run = None if config is not None else RunFolder.open(target)
    if json_file:
        Path(json_file).parent.mkdir(parents=True, exist_ok=True)
    config = read_config(run) if run else config
    assert config is not None
    if scales and (run is None or config.routing.mode == "none"):
        raise ConfigError(f"--scales: {target} has no quarantine to scale; give a run whose routing.mode is not none")
    if keep and run is None:
        raise ConfigError(f"--keep: {target} is no run folder, so it has no parts to keep; give a run")
    check(config, keep or {}, "--keep ", run)
    if run is None and step is not None:
        raise ConfigError(f"--step {step}: {target} is no run folder, so it has no steps; leave --step out")
    # The scales that the run evaluates at its end belong to it; here only the given ones are evaluated.
    config.evaluation = dataclasses.replace(config.evaluation, scales=scales or [])
    if run is None:
        config.model.path = target
    if envs is not None:
        if missing := [name for name in envs if name not in config.env]:
            raise ConfigError(f"--env {missing[0]} is not configured; there is {', '.join(config.env) or 'none'}")
        config.env = {name: config.env[name] for name in envs} if run is None else config.env
    if engine == "transformers":
        config.rollout = dataclasses.replace(config.rollout, engine=engine, urls=[], launch=False)
    elif engine is not None and config.rollout.engine == "transformers":
        config.rollout = dataclasses.replace(config.rollout, engine="vllm_colocate")
    check_adapter(config)
    check_engine(config.rollout)
    parts = load_parts(config)
    chosen = parts.with_contexts([loaded for loaded in parts.environments if envs is None or loaded.name in envs])
    if not chosen:
        raise ConfigError("no environment to evaluate on; set env.NAME.path=FILE.py:Class")
    if run:
        models, curves, shares = _run_models(parts, run, chosen, step, keep or {})
    else:
        with serving(parts, None) as served:
            models, curves = {"model": measure(parts, chosen, served, title="model")}, {}
            shares = {}
    summary.show_tables(models, curves, chosen)
    if json_file:
        more = {"scales": curves, "kept": shares}
        write_json(Path(json_file), {"models": models} | {key: found for key, found in more.items() if found})


def _run_models(parts: Parts, run: RunFolder, chosen: list[LoadedEnvironment], step: int | None,
                keep: Asked) -> tuple[summary.Results, summary.Results, dict[str, float]]:
    """Evaluate a complete checkpoint of a run: base, policy and deployed model, also with kept parts. Returns the results by
    model, those by scale of the quarantine, and the shares that were kept."""
    folder = run.require_checkpoint(step)
    subspace = Subspace.load(run.subspace) if run.subspace.exists() else None
    with serving(parts, subspace) as served:
        models = {"base": measure(parts, chosen, served, title="base")}
        router = _at(folder, parts, run, subspace, served)
        models |= measure_both(parts, chosen, router, served)
        if router is None:
            return models, {}, {}
        kept = decide(run, parts.config, folder, keep)
        models |= measure_kept(parts, chosen, router, served, kept)
        return models, curve(parts, chosen, router, served, parts.config.evaluation.scales, models), shares_of(kept)


def _at(folder: Path, parts: Parts, run: RunFolder, subspace: Subspace | None, served: Served | None) -> Router | None:
    """Load a checkpoint into the model and the engine, and return its router."""
    router = make_router(parts, subspace, inherited(run))
    parity = route_served(parts, served, router)
    take_checkpoint(parts, router, folder)
    if served is not None and parity is not None:
        served.sync()
        parity.run(step_of(folder))
    return router


def discard(run: str, out: str, step: int | None = None, keep: Asked | None = None, *, force: bool = False,
            merge: bool = False) -> None:
    """Write the deployed model of a run, after `step` or its last step, to `out`. `keep` names the shares of environments' parts
    that stay in it, which is recorded in `out` and in the run. `force` allows parts that shift towards the positive persona.
    `merge` merges a LoRA into its base model."""
    opened = RunFolder.open(run)
    with alone_in(opened.path) if keep else _alone_where(opened, out):
        if not keep:
            found = write_deployed(opened, Path(out), step, {}, _base_to_merge(opened, out, step) if merge else None)
            console.say(f"deployed model: {found}")
            return
        config = read_config(opened)
        check(config, keep, "--keep ", opened)
        folder = opened.require_checkpoint(step)
        kept = decide(opened, config, folder, keep)
        if not force:
            refuse(kept)
        exporting.refuse_foreign(Path(out))  # before the work
        if any(one.share is None for one in kept.values()):
            parts, subspace = load_parts(config), Subspace.load(opened.subspace)
            with serving(parts, subspace) as served:
                if router := _at(folder, parts, opened, subspace, served):
                    choose(parts, router, served, kept)
        say(kept)
        base = _base_to_merge(opened, out, step) if merge else None
        console.say(f"deployed model: {write_deployed(opened, Path(out), step_of(folder), kept, base)}")


def _base_to_merge(run: RunFolder, out: str, step: int | None) -> Base | None:
    """The base model of a run that trained a LoRA; None if the weights were trained, so that there is nothing to merge."""
    config = read_config(run)
    if not config.model.adapter.trains:
        return None
    if config.model.adapter.four_bit:
        raise ConfigError(f"{run.path} trained on weights in 4 bit (model.adapter=qlora), nothing is merged into those; leave "
                          "--merge out, and merge the adapter into the full weights: PeftModel.from_pretrained("
                          f"AutoModelForCausalLM.from_pretrained({config.model.path!r}), DIR).merge_and_unload()")
    run.require_checkpoint(step)
    exporting.refuse_foreign(Path(out))  # before the work
    model, tokenizer = load_base(config)
    require_base(run, config, model_hash(model))
    return model, tokenizer


def export(run: str, quarantine: str | None, env: str | None, policy: str | None, step: int | None = None,
           kept: str | None = None, *, merge: bool = False) -> None:
    """Write the quarantine as a stock PEFT adapter, or one environment's part of it, or the rest of it that the folder `kept`
    lacks. Write the policy as one plain model; if a LoRA was trained, as one LoRA, unless `merge`."""
    opened = RunFolder.open(run)
    with _alone_where(opened, quarantine, policy):
        if quarantine:
            adapter = exporting.export_quarantine(opened, Path(quarantine), env, step, Path(kept) if kept else None)
            console.say(f"quarantine: {adapter}")
        if policy:
            base = _base_to_merge(opened, policy, step) if merge else None
            whole = exporting.merged_policy(opened, Path(policy), step) if base is None else exporting.merged(
                lambda folder: exporting.merged_policy(opened, folder, step), Path(policy), *base)
            console.say(f"policy: {whole}")


def _alone_where(run: RunFolder, *outs: str | None) -> AbstractContextManager[None]:
    """Be the run's only writer if one of the places lies in its folder. Otherwise a run that is training can be read."""
    inside = any(out and Path(out).absolute().is_relative_to(run.path) for out in outs)
    return alone_in(run.path) if inside else nullcontext()
