"""The verbs `train` and `resume`: extract the subspace, train with routing, evaluate base model, policy and deployed model, and
discard the quarantine."""

import dataclasses
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from routed_rl import console
from routed_rl.artifacts import RunFolder, alone_in, read_object, remove, resolve, write_json
from routed_rl.config import Compose, Config
from routed_rl.errors import RoutedRLError
from routed_rl.model.load import has_weights
from routed_rl.model.targets import unrouted
from routed_rl.monitor import blame as who_did_it
from routed_rl.pipeline import launched, record, summary
from routed_rl.pipeline.answers import keep_answers
from routed_rl.pipeline.build import Parts, keep_base, make_router, run_subspace
from routed_rl.pipeline.changes import check_go_on, check_steps, refuse_changes
from routed_rl.pipeline.detecting import learn_detector
from routed_rl.pipeline.keeping import keep_at_end
from routed_rl.pipeline.kept import shares_of, write_deployed
from routed_rl.pipeline.measuring import Means, curve, measure, measure_both
from routed_rl.pipeline.prepared import described, prepared
from routed_rl.pipeline.serving import route_served, serving
from routed_rl.pipeline.steps import saying_how_to_go_on, train_steps
from routed_rl.rollout import Served
from routed_rl.routing import Router
from routed_rl.tracking import MetricsFile, practised, tracked
from routed_rl.training.plan import Plan

OF_A_RUN = ("every", "during_samples", "scales", "answers")
"""Settings of `evaluation` that do not change the result of evaluating a model at the end of a run."""
FIXED_ON_RESUME = ("seed", "model", "subspace", "routing", "baseline", "env")


def train(config: Config, overrides: list[str], dry_run: bool = False) -> Path:
    """Run one experiment from the start, or submit it as a job; returns the run folder. `overrides` are the words that the user
    typed. `dry_run` shows the plan and writes nothing, except a job's script and settings if the run is to be a job."""
    run, config = record.new_folder(config), record.dated(config)
    if dry_run and config.launch.where == "here" and not has_weights(resolve(config.model.path)):
        described(config, run)
        return run.path
    parts, plan = prepared(config, run, account=dry_run)
    if dry_run and config.launch.where == "here":
        return run.path
    with alone_in(run.path):
        run.refuse_if_taken()  # by another run that was loading at the same time
        record.write_config(run, config, overrides)
        if config.launch.where == "here":
            try:
                return _run(parts, plan)
            except RoutedRLError:
                run.abandon_if_empty()
                raise
    launched.submit_job(config, run, dry_run=dry_run)
    return run.path


def resume(folder: str, overrides: list[str], compose: Compose) -> Path:
    """Continue the run in `folder`, in place, from its newest complete checkpoint, or from the start if there is none.
    `overrides` change settings that may change."""
    run = RunFolder.open(folder)
    with alone_in(run.path):
        config = record.read_config(run)
        if overrides:
            check_go_on(run, overrides)
            wanted = record.dated(compose([*record.read_overrides(run), *overrides]), config.model.date)
            wanted.out = config.out
            refuse_changes(record.moved(config, wanted), record.at_base(wanted, run), FIXED_ON_RESUME, "resume")
            check_steps(run, wanted)
            config = wanted
        parts, plan = prepared(record.at_base(config, run), run)
        if overrides:
            record.write_config(run, config, [*record.read_overrides(run), *overrides])
    return go_on(parts, plan)


def go_on(parts: Parts, plan: Plan) -> Path:
    """Train the run that `prepared` has set up, here or as a job, from the newest checkpoint in its folder."""
    if plan.config.launch.where == "slurm":
        launched.submit_job(plan.config, plan.run, dry_run=False)
        return plan.run.path
    with alone_in(plan.run.path):
        return _run(parts, plan)


def run_job(folder: str) -> None:
    """Act as a SLURM job: begin the run in `folder`, or continue it, on the nodes of the job."""
    run = RunFolder.open(folder)
    with alone_in(run.path):
        parts, plan = prepared(record.read_config(run), run)
        _run(parts, plan)


def _run(parts: Parts, plan: Plan) -> Path:
    config, run = plan.config, plan.run
    with saying_how_to_go_on(run), tracked(run, config.tracking, config.trainer.get("report_to")) as tracker:
        times = {"start": plan.begun, "load": time.perf_counter()}
        keep_base(config, run)
        subspace = run_subspace(parts, run)
        learn_detector(parts, run)
        times["extract"] = time.perf_counter()
        with serving(parts, subspace) as served:
            models = {"base": _base(parts, run, served)}
            router = make_router(parts, subspace, record.inherited(run))
            parity = route_served(parts, served, router)
            _record_parameters(parts, run)
            weights = {target.name: target.weight.start() for target in router.quarantine.targets} if router else {}
            times["base"] = time.perf_counter()
            begun = train_steps(parts, plan, router, served, parity, tracker)
            earlier = summary.seconds_before(run, begun)  # by which the training has taken longer than this command
            times = {name: at - earlier for name, at in times.items()} | {"train": time.perf_counter()}
            for model, results in measure_both(parts, parts.evaluated, router, served,
                                               told=partial(keep_answers, run, config.evaluation)).items():
                models[model] = _stored(parts, run, model, results)
            with_parts, kept = keep_at_end(parts, run, router, served)
            models |= with_parts
            scales = curve(parts, parts.evaluated, router, served, config.evaluation.scales, models) if router else {}
        times["evaluate"] = time.perf_counter()
        if config.discard:
            remove(run.deployed)
            write_deployed(run, run.deployed, None, kept, results=models)
        _finish(parts, run, router, models, weights, times, scales, shares_of(kept))
        summary.publish(run, tracker, config)
        return run.path


def _base(parts: Parts, run: RunFolder, served: Served | None) -> Means:
    """Evaluate the base model, store the result in the run, and return it. A resumed run returns the stored result if the
    settings are the same."""
    stored = read_object(run.path / "evaluation-base.json", {"results": Means})
    if stored and stored.get("settings") == _evaluation_settings(parts) and "results" in stored:
        return stored["results"]
    return _stored(parts, run, "base", measure(parts, parts.evaluated, served, title="base",
                                               told=keep_answers(run, parts.config.evaluation, "base")))


def _stored(parts: Parts, run: RunFolder, model: str, results: Means) -> Means:
    """Write `results`, the evaluation of the model of this name, into the run folder, for a resume and for the report. Returns
    `results`."""
    write_json(run.path / f"evaluation-{model}.json", {"settings": _evaluation_settings(parts), "results": results,
                                                         "flags": _flags(parts)})
    return results


def _flags(parts: Parts) -> dict[str, list[str]]:
    """The flags of each environment's scores in the evaluations so far."""
    return {loaded.name: sorted(loaded.flags) for loaded in parts.evaluated}


def _evaluation_settings(parts: Parts) -> dict[str, Any]:
    """Everything on which the result of an evaluation depends, except the model."""
    config = parts.config
    settings = {key: value for key, value in dataclasses.asdict(config.evaluation).items() if key not in OF_A_RUN}
    texts = {"texts": dataclasses.asdict(config.baseline.contexts)} if config.evaluation.contexts else {}
    return settings | texts | {"seed": config.seed, "env": config.env, "max_completion_length": parts.max_new_tokens,
                               "engine": config.rollout.engine, "dtype": config.rollout.dtype}


def _record_parameters(parts: Parts, run: RunFolder) -> None:
    """Record in the manifest every trainable parameter that is no target, with the reason, and every frozen parameter."""
    writers = parts.writers if parts.config.routing.by_subspace else []
    frozen = [name for name, parameter in parts.model.named_parameters() if not parameter.requires_grad]
    if parts.adapted is not None:
        frozen = ["every weight of the base model"]
    record.tell(run, {"model_hash": parts.hash, "targets": [writer.name for writer in writers], "frozen": frozen,
               "unrouted": unrouted(parts.model, writers) if writers else {},
               "environments": {loaded.name: loaded.label for loaded in parts.environments}})


def _finish(parts: Parts, run: RunFolder, router: Router | None, models: summary.Results, weights: dict[str, Any],
            times: dict[str, float], scales: summary.Results, kept: dict[str, float]) -> None:
    blame = summary.attribution(run, router, parts.config.monitor.axis) if router and parts.config.routing.by_subspace else {}
    routing = summary.routing_summary(run, router, weights) if router else {"mode": "none", "rank": 0}
    timing = {f"{name}_s": end - begin for (_, begin), (name, end) in pairwise(times.items())}
    rows = MetricsFile(run.metrics).rows()
    who = who_did_it(rows, parts.config.monitor, record.trained_settings(parts.config))
    found = {"models": models, "attribution": blame, "who": who.record(), "practice": practised(rows), "routing": routing,
             "timing": timing, "flags": _flags(parts)}
    write_json(run.summary, found | ({"scales": scales} if scales else {}) | ({"kept": kept} if kept else {}))
    if any(models["base"].values()):
        summary.show_tables(models, scales, parts.evaluated)
        console.say(summary.sentence(models, blame, parts.evaluated, parts.config.routing.mode, kept, who))
    commands = summary.next_commands(run, parts.config, record.read_overrides(run))
    for line in [*summary.training_failures(run), "next:", *(f"  {each}" for each in commands)]:
        console.say(line)
