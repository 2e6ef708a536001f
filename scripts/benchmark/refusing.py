"""Refuses what was typed wrongly before a benchmark begins."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

from routed_rl.errors import RoutedRLError


@contextmanager
def refusing(parser: argparse.ArgumentParser) -> Iterator[None]:
    """Inside the block, a ValueError or RoutedRLError ends the script as a wrong option does: with the usage, the message and the
    exit code 2."""
    try:
        yield
    except (ValueError, RoutedRLError) as error:
        parser.error(str(error))
