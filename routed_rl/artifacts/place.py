"""Checks whether a file or folder can be written at a place that a user names, without harm to what is there."""

import os
from fnmatch import fnmatch
from pathlib import Path

from routed_rl.errors import RunFolderError

SEAL = "COMPLETE.json"
"""The file that is written last into a sealed folder. It holds every file's size and SHA-256."""
OWN = ("config.yaml", "overrides.txt", "manifest.json", "metrics.jsonl", "verdicts.jsonl", "HALTED.json", "halts", "summary.json",
       "answers.jsonl", "evaluation-*.json", "completions", "checkpoints", "subspace", "detector", "base", "trait.safetensors")
"""Patterns of the names of files and folders that a run writes into its own folder, and that it or its report reads again."""


def check_writable(path: Path, what: str) -> None:
    """Raise RunFolderError, whose message begins with `what`, if `path` cannot be made, because one of the folders above it is a
    file or is read-only."""
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise RunFolderError(f"{what} cannot be made: {above} is no folder that can be written to; give another place")


def check_above(path: Path, what: str) -> None:
    """As `check_writable`, for a folder that a user names. A place inside a sealed folder, such as a checkpoint or a deployed
    model, is refused, too, because weights that are added to such a folder break its seal."""
    check_writable(path, what)
    if sealed := next((above for above in path.resolve().parents if (above / SEAL).exists()), None):
        raise RunFolderError(f"{what} would lie inside {sealed}, which is complete and sealed ({SEAL}), and would break it; give "
                             "another place")


def check_file(path: Path, option: str) -> Path:
    """Return `path` if a file can be written or replaced there. Otherwise raise RunFolderError, whose message names `option`, the
    option that gave the path. A file that a run has written for itself is never replaced."""
    if path.is_dir():
        raise RunFolderError(f"{option} {path} is a folder; give a file")
    check_writable(path, f"{option} {path}")
    place = path.resolve()
    for above in place.parents:
        ours = any(fnmatch(place.relative_to(above).parts[0], each) for each in OWN)
        if ours and (above / "config.yaml").exists() and (above / "manifest.json").exists():
            raise RunFolderError(f"{option} {path} is a place in which the run {above} keeps its own files; give another file")
    return path
