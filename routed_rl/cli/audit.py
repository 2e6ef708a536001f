"""`routed-rl audit`: its options, and the call."""

from __future__ import annotations

import argparse

from routed_rl.cli.options import names, step


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare them; the defaults are in `AuditConfig`."""
    parser.add_argument("run", metavar="RUN", help="the folder that `train` printed")
    parser.add_argument("--samples", type=int, metavar="N", help="completions per environment and model; default: 200")
    parser.add_argument("--prompts", type=int, metavar="N", help="prompts per environment for the stream; default: 64")
    parser.add_argument("--blocks", type=int, metavar="N", help="groups of neighbouring layers, at most; default: 8")
    parser.add_argument("--env", action="append", metavar="NAME[,NAME]", help="only these environments; may be repeated")
    step(parser)
    parser.add_argument("--json", metavar="FILE", help="write the numbers there")


def run(arguments: argparse.Namespace) -> None:
    """Check the options, then audit."""
    from routed_rl.config import AuditConfig

    given = {name: value for name in ("samples", "prompts", "blocks") if (value := getattr(arguments, name)) is not None}
    settings = AuditConfig(**given)
    from routed_rl import pipeline

    pipeline.audit(arguments.run, settings, names(arguments.env), arguments.json, arguments.step)
