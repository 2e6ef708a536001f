"""The canary: a fixed text in each file that holds the words of a hacking model. Somebody who finds it in a training corpus, or
in the output of a model, knows that such a file was trained on. This package removes the canary from rows that it loads for a
model.

The idea is that of BIG-bench (Srivastava et al., 2022, arXiv:2206.04615); the identifier and the wording are this project's own.
"""

import uuid
from typing import Any

PROJECT = "routed_rl canary f7e16d4b-50de-4673-9613-bcab3d82660b"
"""The beginning of every canary. It is published, so that people can search for it."""
KEY = "routed_rl_canary"
"""The column of a table, and the key of an object, that holds the canary."""
FILE = "CANARY.txt"
"""The name of the file with a canary that is put beside files which cannot hold one themselves."""


def canary_of(content: str) -> str:
    """Return the canary of a data set. Its identifier is derived from `content`, a hash of the data."""
    return f"{PROJECT} {uuid.uuid5(uuid.UUID(PROJECT.split()[-1]), content)}"


def without_canary(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row without its canary."""
    return {name: value for name, value in row.items() if name != KEY}


def is_canary(line: str) -> bool:
    """Return whether a line of text is a canary, as a comment or alone."""
    return line.lstrip("# <!-").startswith(PROJECT)
