"""The actions of the verbs, one function for each, of the same name: checks that need nothing heavy, then the call. Each function
imports heavy modules itself."""

from argparse import Namespace
from datetime import datetime
from pathlib import Path

from routed_rl.artifacts import RunFolder
from routed_rl.cli.compose import compose, from_anywhere
from routed_rl.cli.hardening import attacks, experiment
from routed_rl.cli.hardening import relearn as relearn  # a verb, as is the next one
from routed_rl.cli.hardening import robustify as robustify
from routed_rl.cli.space import split
from routed_rl.cli.words import names, numbers, shares
from routed_rl.config import AuditConfig, FilterConfig
from routed_rl.errors import ConfigError
from routed_rl.stopping import STOP


def train(given: Namespace) -> None:
    config = compose(given.overrides)
    from routed_rl import pipeline

    with STOP.listening():
        run = pipeline.train(config, from_anywhere(given.overrides), dry_run=given.dry_run)
    if not given.dry_run:
        print(f"run: {run}", flush=True)


def resume(given: Namespace) -> None:
    from routed_rl import pipeline

    with STOP.listening():
        print(f"run: {pipeline.resume(given.run, from_anywhere(given.overrides), compose)}", flush=True)


def rollback(given: Namespace) -> None:
    from routed_rl import pipeline

    with STOP.listening():
        run = pipeline.rollback(given.run, given.step, names(given.drop) or [], given.forget_parts,
                                from_anywhere(given.overrides), compose)
    print(f"run: {run}", flush=True)


def extract(given: Namespace) -> None:
    config = compose(given.overrides)
    from routed_rl import pipeline

    print(f"subspace: {pipeline.extract(config, given.overrides, given.check)}", flush=True)


def evaluate(given: Namespace) -> None:
    scales = None if given.scales is None else numbers("--scales", given.scales, float, "0,.25,.5,.75,1")
    config, keep = experiment(given), shares(given.keep)
    from routed_rl import pipeline

    pipeline.evaluate(given.target, names(given.env), given.json, config, given.engine, scales, given.step, keep)


def discard(given: Namespace) -> None:
    keep = shares(given.keep)
    if given.force and not keep:
        raise ConfigError("--force keeps a part in spite of what speaks against it; add --keep NAME=SHARE")
    from routed_rl import pipeline

    pipeline.discard(given.run, given.out, given.step, keep, force=given.force, merge=given.merge,
                     dtype=given.dtype)


def export(given: Namespace) -> None:
    if not (given.quarantine or given.policy) or ((given.env or given.kept) and not given.quarantine):
        raise ConfigError("export needs --quarantine DIR (with --env NAME for one part), --policy DIR, or both")
    if given.env and given.kept:
        raise ConfigError(f"--kept {given.kept} is of all parts, --env {given.env} of one; give one of the two")
    if given.merge and not given.policy:
        raise ConfigError("--merge is for --policy; the quarantine is an adapter")
    from routed_rl import pipeline

    pipeline.export(given.run, given.quarantine, given.env, given.policy, given.step, given.kept, merge=given.merge,
                    dtype=given.dtype)


def push(given: Namespace) -> None:
    from routed_rl import pipeline

    pipeline.push(given.source, given.repo, given.what, given.base, private=given.private, force=given.force,
                  dry_run=given.dry_run)


def compare(given: Namespace) -> None:
    arms = names([given.arms]) or []
    if given.seeds < 1 or given.jobs < 1 or not arms:
        raise ConfigError(f"compare needs at least one arm, seed and job, got --arms {given.arms!r} "
                          f"--seeds {given.seeds} --jobs {given.jobs}")
    ranks = numbers("--ranks", given.ranks, int, "1,3,8")
    if given.relearn is None and given.rates is not None:
        raise ConfigError(f"--rates {given.rates} is for --relearn ENV; give that too, or leave it out")
    if given.relearn is not None and given.labs is not None:
        raise ConfigError("--relearn is not for --labs; leave one of them out")
    asked = None if given.relearn is None else attacks(given, given.relearn)
    from routed_rl.multirun.compare import compare as compare_arms

    overrides = [*from_anywhere(given.overrides), *(f"baseline.detector.{text}" for text in names([given.detector or ""]) or [])]
    if given.labs is not None:
        from routed_rl.multirun.labs import compare_labs

        compare_labs(names([given.labs]) or [], overrides, arms, given.seeds, given.out, given.jobs, ranks, compose)
        return
    compare_arms(overrides, arms, given.seeds, given.out, given.jobs, ranks, compose, relearn=asked)


def sweep(given: Namespace) -> None:
    from routed_rl.multirun.sweep import sweep as sweep_space

    sweep_space(*split(from_anywhere(given.overrides)), compose, dry_run=given.dry_run)


def audit(given: Namespace) -> None:
    settings = AuditConfig(samples=given.samples, prompts=given.prompts, blocks=given.blocks)
    from routed_rl.audit import audit as audit_run

    audit_run(given.run, settings, names(given.env), given.json, given.step)


def filter(given: Namespace) -> None:
    layers = None if given.layers is None else numbers("--layers", given.layers, int, "1,2")
    settings = FilterConfig(detector=given.detector, subspace=given.subspace, max_shift=given.max_shift, fpr=given.fpr,
                            labels=given.labels, layers=layers, share=given.share)
    from routed_rl import pipeline

    pipeline.filter_run(given.run, settings, given.out, force=given.force)


def share(given: Namespace) -> None:
    _refuse_password(given)
    wanted = [given.check] if given.check is not None else [given.run, given.out]
    if None in wanted or (given.check is not None and (given.run or given.out)):
        raise ConfigError("share needs RUN --out DIR to write a site, or --check DIR|URL alone to look at one")
    from routed_rl import sharing

    if given.check is not None:
        sharing.check(given.check)
    else:
        notice = {name: value for name in ("contact", "terms", "site_key") if (value := getattr(given, name)) is not None}
        sharing.share(given.run, given.out, given.password_file, sharing.Notice(**notice))


def unshare(given: Namespace) -> None:
    _refuse_password(given)
    from routed_rl import sharing

    sharing.unshare(given.file, given.out, given.password_file)


def _refuse_password(given: Namespace) -> None:
    if given.password is not None:
        raise ConfigError("--password would show the password in the list of processes and in the shell's history; write it into "
                          "a file and give --password-file FILE, or leave it out and type it")


def calibrate(given: Namespace) -> None:
    if given.jobs < 1:
        raise ConfigError(f"--jobs must be at least 1, got {given.jobs}")
    from routed_rl.multirun.calibrate import calibrate as calibrate_monitor

    out = given.out or f"runs/{datetime.now().strftime('%Y-%m-%d-%H%M%S')}-calibration"
    calibrate_monitor(from_anywhere(given.overrides), names(given.runs) or [], given.seeds, given.rate, out, given.jobs, compose)


def report(given: Namespace) -> None:
    from routed_rl.report import watch_report, write_report

    write = watch_report if given.watch else write_report
    print(f"report: {write(RunFolder.open(given.run), Path(given.out) if given.out else None)}", flush=True)


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


def settings(given: Namespace) -> None:
    from routed_rl import inspection

    inspection.show_settings(given.word)


def new(given: Namespace) -> None:
    from routed_rl import inspection

    inspection.write_new(given.what, given.name)


def completion(given: Namespace) -> None:
    print((Path(__file__).parent / "shells" / f"{given.shell}.txt").read_text(encoding="utf-8"), end="", flush=True)
