"""The verbs `extract` (with `--check`) and `evaluate`."""

import dataclasses
from pathlib import Path

from routed_rl import console
from routed_rl.artifacts import RunFolder, alone_making, check_above, check_file, resolve, write_json
from routed_rl.config import Config
from routed_rl.envs import LoadedEnvironment
from routed_rl.errors import CheckFailed, ConfigError
from routed_rl.extraction import check as checking
from routed_rl.pipeline import summary
from routed_rl.pipeline.adapters import is_adapter, with_adapter
from routed_rl.pipeline.build import Parts, extraction_job, load_parts, make_subspace
from routed_rl.pipeline.keeping import measure_kept
from routed_rl.pipeline.kept import Asked, check, decide, shares_of
from routed_rl.pipeline.measuring import curve, measure, measure_both
from routed_rl.pipeline.record import read_config
from routed_rl.pipeline.serving import at_checkpoint, serving
from routed_rl.rollout import check_engine
from routed_rl.subspace import Subspace


def extract(config: Config, overrides: list[str], check: bool) -> Path:
    """Extract a subspace from prompts into a folder (`out=`, default `subspace`), and return that folder. `check` also measures
    whether the subspace is good, and draws a plot."""
    out = Path(config.out or "subspace").expanduser()
    check_above(out, f"out={out}")
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
    """Measure the quality of a subspace, print tables and whether each threshold is reached, and write check.json and check.png
    into `out`. CheckFailed if a threshold is missed."""
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
    """Evaluate the base model, the policy and the deployed model of the run `target`, or, if `config` is given, the model in the
    folder `target`, on the environments `envs` (None: all). A LoRA in that folder is merged into the model of `config`. The
    results go to `json_file`, too, if it is given.

    `engine` is transformers, or vllm (the run's own server, or vLLM in this process if the run has none); None for the run's own
    engine. With `scales`, the model is also evaluated with the quarantine multiplied by each of them. `step` chooses a run's
    checkpoint of that step instead of its last. With `keep`, the deployed model is also evaluated with these shares of
    environments' parts, whatever the objections to them.
    """
    run = None if config is not None else RunFolder.open(target)
    if json_file:
        check_file(Path(json_file), "--json")
    config = read_config(run) if run else config
    assert config is not None
    if not config.evaluation.samples:
        way = f"{run.go_on('evaluation.samples=200')} evaluates its models" if run else "set evaluation.samples=200"
        raise ConfigError(f"evaluation.samples=0, so {target} cannot be evaluated; {way}")
    if scales and (run is None or config.routing.mode == "none"):
        raise ConfigError(f"--scales: {target} has no quarantine to scale; give a run whose routing.mode is not none")
    if keep and run is None:
        raise ConfigError(f"--keep: {target} is no run folder, so it has no parts to keep; give a run")
    check(config, keep or {}, "--keep ", run)
    if run is None and step is not None:
        raise ConfigError(f"--step {step}: {target} is no run folder, so it has no steps; leave --step out")
    # The scales that the run evaluates at its end belong to it; here only the given ones are evaluated.
    config.evaluation = dataclasses.replace(config.evaluation, scales=scales or [])
    if run is None and is_adapter(folder := resolve(target)):
        config = with_adapter(config, Path(folder))
        console.say(f"{target} is a LoRA on {config.model.path}")
    elif run is None:
        config.model.path = target
    if envs is not None:
        if missing := [name for name in envs if name not in config.env]:
            raise ConfigError(f"--env {missing[0]} is not configured; there is {', '.join(config.env) or 'none'}")
        config.env = {name: config.env[name] for name in envs} if run is None else config.env
    if engine == "transformers":
        config.rollout = dataclasses.replace(config.rollout, engine=engine, urls=[], launch=False)
    elif engine is not None and config.rollout.engine == "transformers":
        config.rollout = dataclasses.replace(config.rollout, engine="vllm_colocate")
    if config.model.adapter.four_bit:
        from routed_rl.training.plan import check_adapter  # loads TRL

        check_adapter(config)
    check_engine(config.rollout)
    parts = load_parts(config, attached=run is not None)
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
        flags = {loaded.name: sorted(loaded.flags) for loaded in chosen}  # an evaluation names only those that it saw
        more = {"scales": curves, "kept": shares, "flags": flags}
        write_json(Path(json_file), {"models": models} | {key: found for key, found in more.items() if found})


def _run_models(parts: Parts, run: RunFolder, chosen: list[LoadedEnvironment], step: int | None,
                keep: Asked) -> tuple[summary.Results, summary.Results, dict[str, float]]:
    """Evaluate the base model, and the policy and the deployed model of a complete checkpoint; with `keep`, also the deployed
    model with these shares of parts. Returns the results by model, the results by scale of the quarantine, and the shares that
    were kept."""
    folder = run.require_checkpoint(step)
    subspace = Subspace.load(run.subspace) if run.subspace.exists() else None
    with serving(parts, subspace) as served:
        models = {"base": measure(parts, chosen, served, title="base")}
        router = at_checkpoint(folder, parts, run, subspace, served)
        models |= measure_both(parts, chosen, router, served)
        if router is None:
            return models, {}, {}
        kept = decide(run, parts.config, folder, keep)
        models |= measure_kept(parts, chosen, router, served, kept)
        return models, curve(parts, chosen, router, served, parts.config.evaluation.scales, models), shares_of(kept)
