"""Writes and reads files and folders that are either complete or absent: JSON, sealed folders. This module does not depend on
what they contain."""

import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from routed_rl.artifacts.lock import alone_making
from routed_rl.artifacts.place import SEAL
from routed_rl.errors import CheckFailed, RunFolderError
from routed_rl.shapes import fits

CARD = "README.md"
"""The model card of a folder that users publish."""

ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
"""The files of a stock PEFT adapter."""
BASE = "base_model_name_or_path"
"""The key of an adapter's settings that names its base model, a folder or a name on the hub."""

KEPT = "kept.json"
"""The file in the folder of a deployed model that keeps shares of environments' parts. It records which shares are kept, why, and
the hash of the quarantine from which they were taken."""

ROBUSTIFIED = "robustified.json"
"""The file in the folder of a robustified model that says how the model was made and what was measured."""

LARGEST = 2**26
"""The largest size of a JSON record that `read_object` reads, in bytes."""


@contextmanager
def replacing(path: Path, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary place to write to, which becomes `path` in one step when the block ends, and is removed if the block
    fails. If the process is killed at any moment, `path` is the complete old one, the complete new one, or absent. If not
    `durable`, this does not wait for the disk, so a power cut may damage `path` until `sync` is called with it."""
    partial, old = (path.with_name(f".{path.name}.{what}") for what in ("partial", "old"))
    remove(partial)
    try:
        yield partial
        for each in [*partial.rglob("*"), partial]:
            _share(each, partial)
            if durable:
                sync(each)
        remove(old)
        if path.is_dir() or (path.is_symlink() and partial.is_dir()):  # a folder cannot replace a link that leads nowhere
            os.replace(path, old)
        os.replace(partial, path)
        if durable:
            sync(path.parent)
        with suppress(OSError):  # the new one is in its place, and the next call removes the old one
            remove(old)
    except BaseException as error:
        with suppress(OSError):
            remove(partial)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT) and error.filename is None:
            error.filename = str(path)  # a file that is open does not say its name
        raise


def write_text(path: Path, text: str) -> None:
    """Write `text` to the file `path`, replacing it in one step. RunFolderError if `path` is a folder, or if another process is
    writing it at the same moment."""
    if path.is_dir():
        raise RunFolderError(f"{path} is a folder; give a file")
    with alone_making(path), replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, data: Any) -> None:
    """Write `data` as JSON to the file `path`, replacing it in one step. CheckFailed for nan and infinities, which not every
    reader of JSON accepts."""
    if found := _not_finite(data):
        raise CheckFailed(f"{path} is not written, since {found} is not finite; see where metrics.jsonl has the first such one")
    write_text(path, json.dumps(data, indent=2, allow_nan=False) + "\n")


def _not_finite(data: Any, place: str = "") -> str:
    """`PLACE=VALUE` of the first number of nested `data` that is nan or infinite; empty if there is none. `place` is the path of
    `data` itself."""
    if isinstance(data, float):
        return "" if math.isfinite(data) else f"{place}={data}"
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, (list, tuple)) else ()
    return next(filter(None, (_not_finite(value, f"{place}.{key}".lstrip(".")) for key, value in inner)), "")


def read_json(path: Path) -> Any:
    """The content of a JSON file; ValueError if it is not JSON, or is nested too deeply."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply") from None


def read_object(path: Path, shape: dict[str, Any]) -> dict[str, Any] | None:
    """The JSON object in a file. `shape` maps keys to the types that their values must have; a key may be missing. Returns None
    if the file is missing or damaged, or if a value has another type."""
    try:
        found = read_json(path) if path.stat().st_size <= LARGEST else None
    except (OSError, ValueError):
        return None
    return found if fits(found, shape) else None


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def sealed_folder(final: Path) -> Iterator[Path]:
    """Yield a temporary folder to write into. At the end of the block it is sealed and becomes `final` in one step, as in
    `replacing`."""
    with replacing(final) as partial:
        partial.mkdir(parents=True)
        yield partial
        files = sorted(path for path in partial.rglob("*") if path.is_file())
        write_json(partial / SEAL, {str(path.relative_to(partial)): {"bytes": path.stat().st_size, "sha256": sha256(path)}
                                    for path in files})


def broken_seal(folder: Path) -> str | None:
    """The first problem of a sealed folder: a file that is missing, torn or changed, or a file of weights that was added. None if
    there is no problem."""
    if not (folder / SEAL).exists():
        return f"{SEAL} is missing"
    sealed = read_object(folder / SEAL, {})
    if not sealed or not fits(sealed, dict[str, dict[str, Any]]):
        return f"{SEAL} is torn"
    for name, expected in sealed.items():
        try:
            if not (folder / name).exists():
                return f"{name} is missing"
            if (folder / name).stat().st_size != expected.get("bytes") or sha256(folder / name) != expected.get("sha256"):
                return f"{name} is not what was written"
        except (OSError, ValueError):  # no file has this name, or a folder has it
            return f"{SEAL} is torn"
    weights = {str(path.relative_to(folder)) for path in folder.rglob("*.safetensors")}
    return f"{min(weights - sealed.keys())} is not sealed" if weights - sealed.keys() else None


def remove(path: Path) -> None:
    """Remove a file, a folder, or a link (not the files behind it). Does nothing if there is nothing at `path`; OSError if
    something cannot be removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _share(path: Path, folder: Path) -> None:
    """Give the file `path` the read and write permissions of `folder`, which follow the user's umask. Safetensors writes files
    that only their owner may read."""
    if path.is_file() and folder.is_dir():
        mode = path.stat().st_mode
        if (wanted := mode | folder.stat().st_mode & 0o666) != mode:
            path.chmod(wanted)


def sync(path: Path) -> None:
    """Wait until the file or folder `path` is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
