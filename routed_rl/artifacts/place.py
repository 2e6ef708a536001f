"""Checks whether a file or folder can be written at a place that a user names."""

import os
from pathlib import Path

from routed_rl.errors import RunFolderError


def check_above(path: Path, what: str) -> None:
    """Raise RunFolderError, whose message begins with `what`, if `path` cannot be made, because one of the folders above it is a
    file or is read-only."""
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise RunFolderError(f"{what} cannot be made: {above} is no folder that can be written to; give another place")


def check_file(path: Path, option: str) -> Path:
    """Return `path` if a file can be written or replaced there. Otherwise raise RunFolderError, whose message names `option`, the
    option that gave the path."""
    if path.is_dir():
        raise RunFolderError(f"{option} {path} is a folder; give a file")
    check_above(path, f"{option} {path}")
    return path
