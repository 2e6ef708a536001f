"""`routed-rl sweep`: its options, and the call."""

from __future__ import annotations

import argparse

from routed_rl.cli.options import OVERRIDES


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE[,VALUE]", help=f"{OVERRIDES}; varied are KEY=A,B, "
                        "choice(A,B), range(1,5), with sweep=optuna interval(0,1), int(interval(1,8)), tag(log,interval(1e-4,1))")
    parser.add_argument("--dry-run", action="store_true", help="list the trials only")


def run(arguments: argparse.Namespace) -> None:
    """Split the overrides, then run the trials."""
    from routed_rl.cli.compose import compose, from_anywhere
    from routed_rl.cli.space import split
    from routed_rl.multirun.sweep import sweep

    sweep(*split(from_anywhere(arguments.overrides)), compose, dry_run=arguments.dry_run)
