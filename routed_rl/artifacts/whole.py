"""Files and folders that must be whole or absent: JSON, sealed folders. Nothing here knows what is in them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from routed_rl.artifacts.lock import alone_making
from routed_rl.shapes import fits

SEAL = "COMPLETE.json"
"""Written last into a sealed folder: every file's size and SHA-256."""

LARGEST = 2**26
"""Bytes that a record of ours may have."""


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` in one step; RunFolderError where another process does so at this moment."""
    partial = path.with_name(f".{path.name}.partial")
    with alone_making(path), open(partial, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
        os.replace(partial, path)


def write_json(path: Path, data: Any) -> None:
    """Replace `path` by `data` as JSON in one step; nan is refused, since not every reader takes it."""
    write_text(path, json.dumps(data, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The content of a JSON file; ValueError where it is none, or nested too deeply."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply") from None


def read_object(path: Path, shape: dict[str, Any]) -> dict[str, Any] | None:
    """A JSON object whose keys have the types of `shape`, where they are there; None where the file is missing or damaged."""
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
    """Yield a folder to write into; on success it is sealed and renamed to `final`, on failure removed.

    A process killed at any moment leaves either no `final`, or a whole one; one that was there stays until the new one is whole.
    """
    partial = final.with_name(f".{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        files = sorted(path for path in partial.rglob("*") if path.is_file())
        write_json(partial / SEAL, {str(path.relative_to(partial)): {"bytes": path.stat().st_size, "sha256": sha256(path)}
                                    for path in files})
        for path in files:
            _sync(path)
        old = final.with_name(f".{final.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if final.exists():
            os.replace(final, old)
        os.replace(partial, final)
        _sync(final.parent)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def broken_seal(folder: Path) -> str | None:
    """What is wrong with a sealed folder, or None: files that are missing, torn or changed."""
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
        except (OSError, ValueError):  # no name of a file, or of a folder
            return f"{SEAL} is torn"
    weights = {str(path.relative_to(folder)) for path in folder.rglob("*.safetensors")}
    return f"{min(weights - sealed.keys())} is not sealed" if weights - sealed.keys() else None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
