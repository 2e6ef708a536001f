"""The actions of the verbs that take no settings and therefore need no Hydra; see `actions`."""

import dataclasses
from argparse import Namespace
from pathlib import Path
from typing import Any

from routed_rl.artifacts import RunFolder, check_file
from routed_rl.cli.words import names, number_or_auto, numbers, shares
from routed_rl.config import AuditConfig, FilterConfig
from routed_rl.config.robust import RobustifyConfig
from routed_rl.errors import ConfigError
from routed_rl.importing import importing


def discard(given: Namespace) -> None:
    keep = shares(given.keep)
    if given.force and not keep:
        raise ConfigError("--force keeps a part in spite of what speaks against it; add --keep NAME=SHARE")
    with importing():
        from routed_rl.pipeline.leaving import discard as discard_quarantine

    discard_quarantine(given.run, given.out, given.step, keep, force=given.force, merge=given.merge, dtype=given.dtype)


def export(given: Namespace) -> None:
    if not (given.quarantine or given.policy) or ((given.env or given.kept) and not given.quarantine):
        raise ConfigError("export needs --quarantine DIR (with --env NAME for one part), --policy DIR, or both")
    if given.env and given.kept:
        raise ConfigError(f"--kept {given.kept} is for all parts and --env {given.env} for one part; give one of the two")
    if given.merge and not given.policy:
        raise ConfigError("--merge is for --policy; the quarantine is an adapter")
    with importing():
        from routed_rl.pipeline.leaving import export as export_run

    export_run(given.run, given.quarantine, given.env, given.policy, given.step, given.kept, merge=given.merge, dtype=given.dtype)


def push(given: Namespace) -> None:
    from routed_rl.pipeline.hub import push as push_folder

    push_folder(given.source, given.repo, given.what, given.base, private=given.private, force=given.force, dry_run=given.dry_run)


def audit(given: Namespace) -> None:
    settings = AuditConfig(samples=given.samples, prompts=given.prompts, blocks=given.blocks)
    with importing():
        from routed_rl.audit import audit as audit_run

    audit_run(given.run, settings, names(given.env), given.json, given.step)


def filter(given: Namespace) -> None:
    layers = None if given.layers is None else numbers("--layers", given.layers, int, "1,2")
    settings = FilterConfig(detector=given.detector, subspace=given.subspace, max_shift=given.max_shift, fpr=given.fpr,
                            labels=given.labels, layers=layers, share=given.share)
    with importing():
        from routed_rl.pipeline.filtering import filter_run

    filter_run(given.run, settings, given.out, force=given.force)


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


def robustify(given: Namespace) -> None:
    limits: dict[str, Any] = {name: number_or_auto(f"--{name}", getattr(given, name))
                              for name in ("skip", "noise")}
    own: dict[str, Any] = {field.name: value for field in dataclasses.fields(RobustifyConfig)
                           if field.name not in limits and (value := getattr(given, field.name)) is not None}
    settings = RobustifyConfig(**(own | limits))
    with importing():
        from routed_rl.distillation import robustify as robustify_run

    robustify_run(given.run, settings, given.out, names(given.env), given.teacher, given.step)


def report(given: Namespace) -> None:
    with importing():
        from routed_rl.report.run_page import write_report
        from routed_rl.report.watching import watch_report

    write = watch_report if given.watch else write_report
    out = check_file(Path(given.out), "--out") if given.out else None
    print(f"report: {write(RunFolder.open(given.run), out)}", flush=True)


def settings(given: Namespace) -> None:
    from routed_rl import inspection

    inspection.show_settings(given.word)


def new(given: Namespace) -> None:
    from routed_rl import inspection

    inspection.write_new(given.what, given.name)


def completion(given: Namespace) -> None:
    print((Path(__file__).parent / "shells" / f"{given.shell}.txt").read_text(encoding="utf-8"), end="", flush=True)
