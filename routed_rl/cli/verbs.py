"""The verbs, one row each: what it says, what it takes, what it calls. Options and overrides may stand in any order."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable
from dataclasses import dataclass
from os.path import exists, join
from typing import NoReturn

from routed_rl.cli import audit, calibrate, env, sweep
from routed_rl.cli.options import OVERRIDES, names, step
from routed_rl.errors import ConfigError
from routed_rl.stopping import STOP

ARMS = "none,observe,route,control,erase"
LOADING = "routed_rl: loading, about 15 s"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.prog}: {message}; see {self.prog} --help")


@dataclass(frozen=True)
class Verb:
    """`arguments` declares them, `run` does the work; `run` imports what it needs itself."""

    help: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]


def parse(argv: list[str]) -> tuple[str, argparse.Namespace]:
    """The verb and its arguments; an unknown one is refused with what is close."""
    name = argv[0]
    if name not in VERBS:
        close = difflib.get_close_matches(name, VERBS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(VERBS)}"
        raise ConfigError(f"unknown command {name}; {hint}")
    parser = _Parser(prog=f"routed-rl {name}", description=VERBS[name].help, allow_abbrev=False)
    VERBS[name].arguments(parser)
    return name, parser.parse_intermixed_args(argv[1:])


def usage() -> str:
    """What `routed-rl --help` prints."""
    width = max(map(len, VERBS))
    rows = "\n".join(f"  {name:{width}}  {verb.help}" for name, verb in VERBS.items())
    return f"""usage: routed-rl COMMAND [arguments] [overrides]

RL fine-tuning that keeps a change of persona in a quarantine that can be discarded.

{rows}

Overrides are {OVERRIDES}.
`routed-rl COMMAND --help` tells more; `routed-rl train` alone runs the default experiment."""


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=OVERRIDES)
    parser.add_argument("--dry-run", action="store_true", help="show the plan only")


def _train(arguments: argparse.Namespace) -> None:
    _announce()
    from routed_rl.cli.compose import compose, from_anywhere

    config = compose(arguments.overrides)
    from routed_rl import pipeline

    with STOP.listening():
        run = pipeline.train(config, from_anywhere(arguments.overrides), dry_run=arguments.dry_run)
    if not arguments.dry_run:
        print(f"run: {run}", flush=True)


def _resume_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="the folder that `train` printed")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=OVERRIDES)


def _resume(arguments: argparse.Namespace) -> None:
    _announce()
    from routed_rl import pipeline
    from routed_rl.cli.compose import compose, from_anywhere

    with STOP.listening():
        run = pipeline.resume(arguments.run, from_anywhere(arguments.overrides), compose)
    print(f"run: {run}", flush=True)


def _rollback_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="the folder that `train` printed")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=OVERRIDES)
    parser.add_argument("--step", type=int, required=True, metavar="N", help="the checkpoint to go on from; 0: the base model")
    parser.add_argument("--drop", action="append", metavar="ENV[,ENV]", help="environments to leave out; may be repeated")
    parser.add_argument("--forget-parts", action="store_true", help="take the parts of dropped environments away")


def _rollback(arguments: argparse.Namespace) -> None:
    _announce()
    from routed_rl import pipeline
    from routed_rl.cli.compose import compose, from_anywhere

    with STOP.listening():
        run = pipeline.rollback(arguments.run, arguments.step, names(arguments.drop) or [], arguments.forget_parts,
                                from_anywhere(arguments.overrides), compose)
    print(f"run: {run}", flush=True)


def _extract_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=OVERRIDES)
    parser.add_argument("--check", action="store_true", help="also measure whether the subspace is good")


def _extract(arguments: argparse.Namespace) -> None:
    _announce()
    from routed_rl.cli.compose import compose

    config = compose(arguments.overrides)
    from routed_rl import pipeline

    print(f"subspace: {pipeline.extract(config, arguments.overrides, arguments.check)}", flush=True)


def _evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="RUN_OR_MODEL", help="a run folder, or a model as in model.path")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=OVERRIDES)
    parser.add_argument("--env", action="append", metavar="NAME[,NAME]", help="only these environments; may be repeated")
    parser.add_argument("--json", metavar="FILE", help="write the numbers there")
    parser.add_argument("--engine", choices=("transformers", "vllm"), help="what generates; default: what the run used")
    step(parser)
    parser.add_argument("--scales", metavar="S[,S]", help="also with the quarantine times S, as 0,.25,.5,.75,1; runs only")


def _evaluate(arguments: argparse.Namespace) -> None:
    _announce()
    from routed_rl.cli.compose import compose

    try:
        scales = [float(text) for text in arguments.scales.split(",")] if arguments.scales is not None else None
    except ValueError:
        raise ConfigError(f"--scales {arguments.scales} is no list of numbers; write --scales 0,.25,.5,.75,1") from None
    # A run folder brings its own settings; overrides would silently mean another experiment.
    is_run = exists(join(arguments.target, "config.yaml"))
    if is_run and arguments.overrides:
        raise ConfigError(f"{arguments.target} is a run folder and brings its settings; leave out "
                          f"{' '.join(arguments.overrides)}, or evaluate {arguments.target}/deployed")
    config = None if is_run else compose(arguments.overrides)
    from routed_rl import pipeline

    pipeline.evaluate(arguments.target, names(arguments.env), arguments.json, config, arguments.engine, scales,
                      arguments.step)


def _discard_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--out", required=True, metavar="DIR", help="where the deployed model goes")
    step(parser)


def _discard(arguments: argparse.Namespace) -> None:
    _announce()
    from routed_rl import pipeline

    pipeline.discard(arguments.run, arguments.out, arguments.step)


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--quarantine", metavar="DIR", help="where the PEFT adapter goes")
    parser.add_argument("--env", metavar="NAME", help="of the adapter, only the part this environment caused")
    parser.add_argument("--policy", metavar="DIR", help="where the policy goes, merged into one plain model")
    step(parser)


def _export(arguments: argparse.Namespace) -> None:
    if not (arguments.quarantine or arguments.policy) or (arguments.env and not arguments.quarantine):
        raise ConfigError("export needs --quarantine DIR (with --env NAME for one part), --policy DIR, or both")
    _announce()
    from routed_rl import pipeline

    pipeline.export(arguments.run, arguments.quarantine, arguments.env, arguments.policy, arguments.step)


def _compare_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=OVERRIDES)
    parser.add_argument("--arms", default=ARMS, help=f"default: {ARMS}")
    parser.add_argument("--seeds", type=int, default=3, help="runs per arm, paired by seed; default: 3")
    parser.add_argument("--out", required=True, metavar="DIR", help="one that already holds part of the runs is gone on with")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time; default: 2")
    parser.add_argument("--ranks", default="1,3,8", help="also run `route` at these ranks; default: 1,3,8; \"\" for none")


def _compare(arguments: argparse.Namespace) -> None:
    arms = names([arguments.arms]) or []
    if arguments.seeds < 1 or arguments.jobs < 1 or not arms:
        raise ConfigError(f"compare needs at least one arm, seed and job, got --arms {arguments.arms!r} "
                          f"--seeds {arguments.seeds} --jobs {arguments.jobs}")
    try:
        ranks = [int(rank) for rank in arguments.ranks.split(",") if rank]
    except ValueError:
        raise ConfigError(f"--ranks {arguments.ranks} is no list of numbers; write --ranks 1,3,8") from None
    _announce()
    from routed_rl.cli.compose import compose, from_anywhere

    compose(arguments.overrides)  # a bad override is refused before anything heavy is loaded
    from routed_rl.multirun.compare import compare

    compare(from_anywhere(arguments.overrides), arms, arguments.seeds, arguments.out, arguments.jobs, ranks, compose)


def _sweep(arguments: argparse.Namespace) -> None:
    _announce()
    sweep.run(arguments)


def _audit(arguments: argparse.Namespace) -> None:
    _announce()
    audit.run(arguments)


def _calibrate(arguments: argparse.Namespace) -> None:
    _announce()
    calibrate.run(arguments)


def _report_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="the folder that `train` printed; halted, killed or in training will do")
    parser.add_argument("--out", metavar="FILE", help="where the page goes; default: RUN/report.html")


def _report(arguments: argparse.Namespace) -> None:
    from pathlib import Path

    from routed_rl.artifacts import RunFolder

    run = RunFolder.open(arguments.run)
    print("routed_rl: drawing", flush=True)
    from routed_rl.report import write_report

    print(f"report: {write_report(run, Path(arguments.out) if arguments.out else None)}", flush=True)


def _doctor_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=OVERRIDES)


def _doctor(arguments: argparse.Namespace) -> None:
    _announce()
    from routed_rl import inspection
    from routed_rl.cli.compose import compose

    inspection.doctor(compose(arguments.overrides))


def _announce() -> None:
    print(LOADING, flush=True)


VERBS: dict[str, Verb] = {
    "train": Verb("extract a subspace, train with routing, evaluate, discard", _train_arguments, _train),
    "resume": Verb("go on with a run, in place", _resume_arguments, _resume),
    "rollback": Verb("a new run from an earlier checkpoint, with other environments", _rollback_arguments, _rollback),
    "extract": Verb("make a subspace folder from contrast prompts", _extract_arguments, _extract),
    "evaluate": Verb("score a run's models, or one model, on environments", _evaluate_arguments, _evaluate),
    "discard": Verb("write the deployed model of a run", _discard_arguments, _discard),
    "export": Verb("write a run's quarantine as a PEFT adapter, its policy as one model", _export_arguments, _export),
    "compare": Verb("the same experiment under several arms and seeds, with intervals", _compare_arguments, _compare),
    "sweep": Verb("many runs with other settings, and which are best", sweep.arguments, _sweep),
    "audit": Verb("which parts of the retained change carry the shift and the hack", audit.arguments, _audit),
    "calibrate": Verb("the monitor's limits, from runs known to be secure", calibrate.arguments, _calibrate),
    "report": Verb("one HTML page of a run: what happened, who caused it, what discarding does", _report_arguments, _report),
    "env": Verb("list, try or check environments", env.arguments, env.run),
    "doctor": Verb("versions, sandbox, disk, GPUs, the chat template: is this machine ready?", _doctor_arguments, _doctor),
}
