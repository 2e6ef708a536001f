"""What several verbs share of their options."""

from __future__ import annotations

import argparse

OVERRIDES = "settings as KEY=VALUE (routing.mode=observe), or a group's choice (env=six_secure)"


def step(parser: argparse.ArgumentParser) -> None:
    """Declare which checkpoint is meant."""
    parser.add_argument("--step", type=int, metavar="N", help="the checkpoint of this step; default: the newest that is whole")


def names(lists: list[str] | None) -> list[str] | None:
    """Of an option that takes NAME[,NAME] and may be repeated; None where it was not given."""
    return None if lists is None else [name.strip() for each in lists for name in each.split(",") if name.strip()]
