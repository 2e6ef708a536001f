"""Writes the folder of a model or adapter. The folder is sealed, is either whole or absent, and never replaces anything else."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from routed_rl import console
from routed_rl.artifacts import (
    ADAPTER_CONFIG,
    BASE,
    CARD,
    SEAL,
    alone_making,
    broken_seal,
    read_json,
    read_object,
    sealed_folder,
)
from routed_rl.errors import RunFolderError

Finish = Callable[[Path, int], None]
"""Function that changes a folder before it is sealed. Its second argument is the step of the checkpoint from which the folder was
made."""


def publish(out: Path, fill: Callable[[Path], None], finish: Finish | None = None, step: int = 0) -> Path:
    """Fill a new folder with `fill`, change it with `finish`, seal it and move it to `out`. `finish` also gets `step`. If `out`
    exists with the same content, except for the model card and the place of an adapter's base model, it stays as it is;
    RunFolderError if it has any other content. If `out` is a link, it stays, and the folder to which it leads is written."""
    out = Path(out).absolute()
    place = out.resolve() if out.is_symlink() else out
    fresh = place.with_name(f".{place.name}.new")
    with alone_making(place):
        with sealed_folder(fresh) as folder:
            fill(folder)
            if finish is not None:
                finish(folder, step)
        if _is_taken(out):
            sealed, content = read_json(fresh / SEAL), _content(fresh)
            shutil.rmtree(fresh)
            refuse_foreign(out, content)
            if (there := read_json(out / SEAL)) != sealed:
                older = " and ".join(name for name in (CARD, ADAPTER_CONFIG) if there.get(name) != sealed.get(name))
                console.say(f"{out} holds this model already, with an older {older}; remove the folder to write it anew")
        else:
            os.replace(fresh, place)
    return out


def refuse_foreign(out: Path, content: dict[str, Any] | None = None) -> None:
    """Raise RunFolderError if `out` exists and was not written by `publish`. With `content`, the result of `_content` for a
    folder, raise this error also if `out` has another content than that folder."""
    if not _is_taken(out):
        return
    if not out.is_dir() or broken_seal(out) or (content and _content(out) != content):
        raise RunFolderError(f"{out} already holds something else; give another folder, or remove it")


def _content(folder: Path) -> dict[str, Any]:
    """The hashes of the files in a sealed folder. The model card is left out. Of an adapter's settings there are the values
    instead of a hash, without the place of the base model."""
    settings: dict[str, Any] = read_object(folder / ADAPTER_CONFIG, {}) or {}
    return {name: entry for name, entry in read_json(folder / SEAL).items() if name != CARD} | {
        ADAPTER_CONFIG: {name: value for name, value in settings.items() if name != BASE}}


def _is_taken(out: Path) -> bool:
    return out.exists() and (not out.is_dir() or any(out.iterdir()))
