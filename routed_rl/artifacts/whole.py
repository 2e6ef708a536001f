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

SEAL = "COMPLETE.json"
"""Written last into a sealed folder: every file's size and SHA-256."""


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` in one step."""
    partial = path.with_name(f".{path.name}.partial")
    with open(partial, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_json(path: Path, data: Any) -> None:
    """Replace `path` by `data` as JSON in one step; nan is refused, since not every reader takes it."""
    write_text(path, json.dumps(data, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


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
    try:
        sealed = read_json(folder / SEAL)
    except ValueError:
        return f"{SEAL} is torn"
    for name, expected in sealed.items():
        path = folder / name
        if not path.exists():
            return f"{name} is missing"
        if path.stat().st_size != expected["bytes"] or sha256(path) != expected["sha256"]:
            return f"{name} is not what was written"
    return None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
