"""Renames the settings in error messages for a script, because code that the library shares with the commands names settings as a
command line gives them."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from routed_rl.errors import RoutedRLError


@contextmanager
def named_as_arguments(arguments: Any) -> Iterator[None]:
    """Inside the block, the message of a RoutedRLError names settings as a script gives them: `args.NAME` in place of
    `trainer.NAME`, if `arguments` (TRL's) have the field NAME, and `freeze` in place of `model.freeze`."""
    def own(found: re.Match[str]) -> str:
        return f"args.{found[1]}" if found[1] in vars(arguments) else found[0]

    try:
        yield
    except RoutedRLError as error:
        message, *others = error.args
        error.args = (re.sub(r"\btrainer\.(\w+)", own, message).replace("model.freeze", "freeze"), *others)
        raise
