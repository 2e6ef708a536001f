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
from routed_rl.pipeline import summary
from routed_rl.pipeline.build import Parts, extraction_job, load_parts, make_router, make_subspace, take_checkpoint
from routed_rl.pipeline.measuring import curve, measure, measure_both
from routed_rl.pipeline.record import inherited, read_config
from routed_rl.pipeline.serving import route_served, serving
from routed_rl.rollout import check_engine
from routed_rl.subspace import Subspace


def extract(config: Config, overrides: list[str], check: bool) -> Path:
    """Prompts to a subspace folder (`out=`, default `subspace`); `check` says whether it is a good one, with a plot."""
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
    """Print tables and verdict, write check.json and check.png; CheckFailed where a threshold is missed."""
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
             engine: str | None = None, scales: list[float] | None = None, step: int | None = None) -> None:
    """Evaluate a run's base, policy and deployed models, or one model folder, on its environments.

    `engine`: transformers, or vllm (the run's own server or, where it has none, in this process); None for the run's own.
    `scales`: also with the quarantine times each of these. `step`: a run's checkpoint of that step instead of its last.
    """
    run = None if config is not None else RunFolder.open(target)
    if json_file:
        Path(json_file).parent.mkdir(parents=True, exist_ok=True)
    config = read_config(run) if run else config
    assert config is not None
    if scales and (run is None or config.routing.mode == "none"):
        raise ConfigError(f"--scales: {target} has no quarantine to scale; give a run whose routing.mode is not none")
    if run is None and step is not None:
        raise ConfigError(f"--step {step}: {target} is no run folder, so it has no steps; leave --step out")
    # What the run evaluates at its end is its own; here only what was asked for.
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
    check_engine(config.rollout)
    parts = load_parts(config)
    chosen = [loaded for loaded in parts.environments if envs is None or loaded.name in envs]
    if not chosen:
        raise ConfigError("no environment to evaluate on; set env.NAME.path=FILE.py:Class")
    if run:
        models, curves = _run_models(parts, run, chosen, step)
    else:
        with serving(parts, None) as served:
            models, curves = {"model": measure(parts, chosen, served, title="model")}, {}
    summary.show_tables(models, curves, chosen)
    if json_file:
        write_json(Path(json_file), {"models": models} | ({"scales": curves} if curves else {}))


def _run_models(parts: Parts, run: RunFolder, chosen: list[LoadedEnvironment],
                step: int | None) -> tuple[summary.Results, summary.Results]:
    """Base, policy and deployed model of a run, from a whole checkpoint; and by scale of the quarantine."""
    folder = run.require_checkpoint(step)
    subspace = Subspace.load(run.subspace) if run.subspace.exists() else None
    with serving(parts, subspace) as served:
        models = {"base": measure(parts, chosen, served, title="base")}
        router = make_router(parts, subspace, inherited(run))
        parity = route_served(parts, served, router)
        take_checkpoint(parts, router, folder)
        if served is not None and parity is not None:
            served.sync()
            parity.run(step_of(folder))
        models |= measure_both(parts, chosen, router, served)
        return models, curve(parts, chosen, router, served, parts.config.evaluation.scales, models) if router else {}


def discard(run: str, out: str, step: int | None = None) -> None:
    """Write the deployed model of a run, after `step` or its last, to `out`."""
    opened = RunFolder.open(run)
    with _alone_where(opened, out):
        console.say(f"deployed model: {exporting.discard(opened, Path(out), step)}")


def export(run: str, quarantine: str | None, env: str | None, policy: str | None, step: int | None = None) -> None:
    """Write the quarantine, or one environment's part of it, as a stock PEFT adapter; and the policy as one plain model."""
    opened = RunFolder.open(run)
    with _alone_where(opened, quarantine, policy):
        if quarantine:
            console.say(f"quarantine: {exporting.export_quarantine(opened, Path(quarantine), env, step)}")
        if policy:
            console.say(f"policy: {exporting.merged_policy(opened, Path(policy), step)}")


def _alone_where(run: RunFolder, *outs: str | None) -> AbstractContextManager[None]:
    """Be the run's only writer where one of the places lies in its folder; elsewhere a run that is training can be read."""
    inside = any(out and Path(out).absolute().is_relative_to(run.path) for out in outs)
    return alone_in(run.path) if inside else nullcontext()
