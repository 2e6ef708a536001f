"""`routed-rl calibrate`: its options, and the call."""

from __future__ import annotations

import argparse
from datetime import datetime

from routed_rl.cli.options import OVERRIDES, names
from routed_rl.errors import ConfigError


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=f"{OVERRIDES}; an experiment known to be secure")
    parser.add_argument("--runs", action="append", metavar="RUN[,RUN]", help="take these finished runs, train none")
    parser.add_argument("--seeds", type=int, default=20, help="runs to train; default: 20")
    parser.add_argument("--rate", type=float, default=0.01, help="false halts a run, of all rules together; default: 0.01")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time; default: 2")
    parser.add_argument("--out", metavar="DIR", help="one that already holds part of the runs is gone on with; "
                                                     "default: runs/TIME-calibration")


def run(arguments: argparse.Namespace) -> None:
    """Check the options, then calibrate."""
    if arguments.jobs < 1:
        raise ConfigError(f"--jobs must be at least 1, got {arguments.jobs}")
    from routed_rl.cli.compose import compose, from_anywhere

    compose(arguments.overrides)  # a bad override is refused before anything heavy is loaded
    from routed_rl.multirun.calibrate import calibrate

    out = arguments.out or f"runs/{datetime.now().strftime('%Y-%m-%d-%H%M%S')}-calibration"
    calibrate(from_anywhere(arguments.overrides), names(arguments.runs) or [], arguments.seeds, arguments.rate, out,
              arguments.jobs, compose)
