"""`routed-rl env`: its options, and the call."""

from __future__ import annotations

import argparse

from routed_rl.cli.options import OVERRIDES
from routed_rl.errors import ConfigError


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    parser.add_argument("what", choices=["list", "try", "check"], help="all there are; see prompts and scores; is it sound?")
    parser.add_argument("name", nargs="?", metavar="NAME", help="a mix of configs/env, one of its environments, or FILE.py:Class")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=OVERRIDES)
    parser.add_argument("--n", type=int, default=3, help="try: how many tasks; default: 3")
    parser.add_argument("--samples", type=int, default=20, help="check: how many tasks; default: 20")
    parser.add_argument("--all", action="store_true", help="check: every setting that the class offers in all_settings()")
    parser.add_argument("--markdown", metavar="FILE", help="check: also write the table into FILE")


def run(arguments: argparse.Namespace) -> None:
    """Check the options, then list, try or check."""
    name: str | None = arguments.name
    if arguments.what != "list" and (name is None or "=" in name):
        raise ConfigError(f"env {arguments.what} needs NAME: a mix of configs/env, one of its environments, or FILE.py:Class; "
                          "`routed-rl env list` shows them")
    if arguments.what == "list" and name is not None:
        raise ConfigError(f"env list takes no {name}; did you mean env try {name}?")
    for option in ("n", "samples"):
        if (count := getattr(arguments, option)) < 1:
            raise ConfigError(f"--{option} must be at least 1, got {count}")
    print("routed_rl: starting environments", flush=True)
    from routed_rl import inspection
    from routed_rl.cli.compose import compose

    if name is None:
        inspection.list_environments(compose)
    elif arguments.what == "try":
        inspection.try_environments(name, arguments.n, arguments.overrides, compose)
    else:
        inspection.check_environments(name, arguments.overrides, compose, every=arguments.all,
                                      samples=arguments.samples, markdown=arguments.markdown)
