"""Writes the folder of a model or adapter. The folder is sealed, is either whole or absent, and never replaces anything else."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from routed_rl import console
from routed_rl.artifacts import CARD, SEAL, alone_making, broken_seal, read_json, sealed_folder
from routed_rl.errors import RunFolderError

Finish = Callable[[Path, int], None]
"""Function that changes a folder before it is sealed. Its second argument is the step of the checkpoint from which the folder was
made."""


def publish(out: Path, fill: Callable[[Path], None], finish: Finish | None = None, step: int = 0) -> Path:
    """Fill a new folder with `fill`, change it with `finish`, seal it and move it to `out`. `finish` also gets `step`. If `out`
    exists with the same content, except for the model card, it stays as it is; RunFolderError if it has any other content. If
    `out` is a link, it stays, and the folder to which it leads is written."""
    out = Path(out).absolute()
    place = out.resolve() if out.is_symlink() else out
    fresh = place.with_name(f".{place.name}.new")
    with alone_making(place):
        with sealed_folder(fresh) as folder:
            fill(folder)
            if finish is not None:
                finish(folder, step)
        if _is_taken(out):
            sealed = read_json(fresh / SEAL)
            shutil.rmtree(fresh)
            refuse_foreign(out, sealed)
            if read_json(out / SEAL) != sealed:
                console.say(f"{out} holds this model already, with an older {CARD}; remove the folder to write it anew")
        else:
            os.replace(fresh, place)
    return out


def refuse_foreign(out: Path, sealed: dict[str, Any] | None = None) -> None:
    """Raise RunFolderError if `out` exists and was not written by `publish`. With `sealed`, the content of a seal, raise this
    error also if the seal of `out` has other hashes, except for the model card."""
    if not _is_taken(out):
        return
    if not out.is_dir() or broken_seal(out) or (sealed and _without_card(read_json(out / SEAL)) != _without_card(sealed)):
        raise RunFolderError(f"{out} already holds something else; give another folder, or remove it")


def _without_card(sealed: dict[str, Any]) -> dict[str, Any]:
    return {name: entry for name, entry in sealed.items() if name != CARD}


def _is_taken(out: Path) -> bool:
    return out.exists() and (not out.is_dir() or any(out.iterdir()))
