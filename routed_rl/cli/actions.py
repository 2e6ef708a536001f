"""The actions of the verbs that take settings. Each verb has a function of the same name, which gets the parsed command line,
makes the checks that need nothing heavy and then calls the code that does the work. Each function imports heavy modules
itself."""

from argparse import Namespace
from datetime import datetime

from routed_rl.cli.compose import compose
from routed_rl.cli.hardening import attacks, experiment
from routed_rl.cli.hardening import relearn as relearn  # a verb
from routed_rl.cli.paths import from_anywhere
from routed_rl.cli.space import split
from routed_rl.cli.unused import ranks_to_run, refuse_unused_detector, refuse_unused_sweep
from routed_rl.cli.words import assigned, names, numbers, paths, refuse_fixed, shares
from routed_rl.errors import ConfigError
from routed_rl.importing import importing
from routed_rl.multirun.arms import set_by_all
from routed_rl.stopping import STOP


def train(given: Namespace) -> None:
    config = compose(given.overrides)
    with importing():
        from routed_rl.pipeline.train import train as train_run

    with STOP.listening():
        run = train_run(config, from_anywhere(given.overrides), dry_run=given.dry_run)
    if not given.dry_run:
        print(f"run: {run}", flush=True)


def resume(given: Namespace) -> None:
    with importing():
        from routed_rl.pipeline.train import resume as resume_run

    with STOP.listening():
        print(f"run: {resume_run(given.run, from_anywhere(given.overrides), compose)}", flush=True)


def rollback(given: Namespace) -> None:
    with importing():
        from routed_rl.pipeline.rollback import rollback as roll_back

    with STOP.listening():
        run = roll_back(given.run, given.step, names(given.drop) or [], given.forget_parts,
                        from_anywhere(given.overrides), compose)
    print(f"run: {run}", flush=True)


def extract(given: Namespace) -> None:
    config = compose(given.overrides)
    with importing():
        from routed_rl.pipeline.verbs import extract as extract_subspace

    print(f"subspace: {extract_subspace(config, given.overrides, given.check)}", flush=True)


def evaluate(given: Namespace) -> None:
    scales = None if given.scales is None else numbers("--scales", given.scales, float, "0,.25,.5,.75,1")
    config, keep = experiment(given), shares(given.keep)
    with importing():
        from routed_rl.pipeline.verbs import evaluate as evaluate_models

    evaluate_models(given.target, names(given.env), given.json, config, given.engine, scales, given.step, keep)


def compare(given: Namespace) -> None:
    arms = names([given.arms]) or []
    if given.seeds < 1 or given.jobs < 1 or not arms:
        raise ConfigError(f"compare needs at least one arm, seed and job, got --arms {given.arms!r} "
                          f"--seeds {given.seeds} --jobs {given.jobs}")
    ranks = numbers("--ranks", ranks_to_run(given, arms), int, "1,3,8")
    for option in ("rates", "flag"):
        if given.relearn is None and (value := getattr(given, option)) is not None:
            raise ConfigError(f"--{option} {value} is for --relearn ENV; give that too, or leave it out")
    if given.relearn is not None and given.labs is not None:
        raise ConfigError("--relearn is not for --labs; leave one of them out")
    if given.labs is not None:
        refuse_fixed(given.typed, dict.fromkeys(("model", "model.path"), f"--labs {given.labs}"))
    asked = None if given.relearn is None else attacks(given, given.relearn)
    detector = assigned(given.detector)
    keys = [text.partition("=")[0] for text in detector]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise ConfigError(f"--detector {given.detector} sets {twice[0]} twice; leave one of them out")
    refuse_fixed(given.overrides, {"out": f"--out {given.out}"} | {
        f"baseline.detector.{key}": f"--detector {text}" for key, text in zip(keys, detector, strict=True)})
    of_detector = [f"baseline.detector.{text}" for text in detector]
    refuse_fixed([*given.typed, *of_detector], dict.fromkeys(set_by_all(arms) | {"name"}, f"--arms {given.arms}"))
    refuse_unused_detector(given, detector, arms)
    with importing():
        from routed_rl.multirun.compare import compare as compare_arms

    overrides = [*from_anywhere(given.overrides), *of_detector]
    if given.labs is not None:
        from routed_rl.multirun.labs import compare_labs

        compare_labs(names([given.labs]) or [], overrides, arms, given.seeds, given.out, given.jobs, ranks, compose)
        return
    compare_arms(overrides, arms, given.seeds, given.out, given.jobs, ranks, compose, relearn=asked)


def sweep(given: Namespace) -> None:
    refuse_fixed(given.typed, {"name": "the number of each trial"})
    fixed, dimensions = split(from_anywhere(given.overrides))
    refuse_unused_sweep(given.typed, compose(fixed).sweep)
    with importing():
        from routed_rl.multirun.sweep import sweep as sweep_space

    sweep_space(fixed, dimensions, compose, dry_run=given.dry_run)


def calibrate(given: Namespace) -> None:
    if given.jobs < 1:
        raise ConfigError(f"--jobs must be at least 1, got {given.jobs}")
    if given.runs is not None and given.seeds is not None:
        raise ConfigError(f"--seeds {given.seeds} is for runs that are trained here, and --runs names finished ones; leave one "
                          "of them out")
    refuse_fixed(given.overrides, {"out": f"--out {given.out or 'DIR'}"})
    if given.runs is None:
        refuse_fixed(given.typed, {"name": "the seed of each run"})
    with importing():
        from routed_rl.multirun.calibrate import calibrate as calibrate_monitor

    out = given.out or f"runs/{datetime.now().strftime('%Y-%m-%d-%H%M%S')}-calibration"
    seeds = 20 if given.seeds is None else given.seeds
    calibrate_monitor(from_anywhere(given.overrides), paths(given.runs), seeds, given.rate, out, given.jobs, compose,
                      typed=given.typed)


def env(given: Namespace) -> None:
    name: str | None = given.name
    if given.what != "list" and (name is None or "=" in name):
        raise ConfigError(f"env {given.what} needs NAME: a mix of configs/env, one of its environments, or FILE.py:Class; "
                          "`routed-rl env list` shows them")
    if given.what == "list" and name is not None:
        raise ConfigError(f"env list takes no {name}; did you mean env try {name}?")
    for option in ("n", "samples"):
        if (count := getattr(given, option)) < 1:
            raise ConfigError(f"--{option} must be at least 1, got {count}")
    from routed_rl import inspection

    if name is None:
        inspection.list_environments(compose)
    elif given.what == "try":
        inspection.try_environments(name, given.n, given.overrides, compose)
    else:
        inspection.check_environments(name, given.overrides, compose, every=given.all, samples=given.samples,
                                      markdown=given.markdown)


def doctor(given: Namespace) -> None:
    from routed_rl import inspection

    inspection.doctor(compose(given.overrides))
