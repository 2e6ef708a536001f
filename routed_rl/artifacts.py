"""Files that must be whole or absent: JSON, tensors, folders; and the run folder. Nothing here knows what is in them."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from routed_rl.errors import CheckpointError, RunFolderError

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


class RunFolder:
    """Where everything of one run lives; the layout is in design.md section 6."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser().absolute()

    def refuse_if_taken(self) -> None:
        """A folder that already holds a run, or anything else, is refused, so nothing is ever overwritten."""
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            holds = "a run" if self.config.exists() else "files"
            resume = f"`routed-rl resume {shlex.quote(str(self.path))}` goes on with it, or "
            way_out = f"{resume if self.config.exists() else ''}set "
            raise RunFolderError(f"out={self.path} already holds {holds}; {way_out}out=ANOTHER_FOLDER")

    def abandon_if_empty(self) -> None:
        """Remove the folder of a run that was refused before it had any result."""
        names = {path.name for path in self.path.iterdir()}
        if names <= {"config.yaml", "overrides.txt", "manifest.json"}:
            shutil.rmtree(self.path)

    @contextmanager
    def being_made(self) -> Iterator[RunFolder]:
        """A folder beside this one that becomes it at the end, whole; whatever happens before, this one is not there."""
        partial = RunFolder(self.path.with_name(f".{self.path.name}.partial"))
        shutil.rmtree(partial.path, ignore_errors=True)
        partial.path.mkdir(parents=True)
        try:
            yield partial
            os.replace(partial.path, self.path)
        except BaseException:
            shutil.rmtree(partial.path, ignore_errors=True)
            raise

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        run = cls(path)
        if not run.config.exists():
            raise RunFolderError(f"{path} is not a run folder: it has no config.yaml; give the folder that `routed-rl train` "
                                 "printed in its last line")
        return run

    config = property(lambda self: self.path / "config.yaml")
    manifest = property(lambda self: self.path / "manifest.json")
    metrics = property(lambda self: self.path / "metrics.jsonl")
    verdicts = property(lambda self: self.path / "verdicts.jsonl")
    halted = property(lambda self: self.path / "HALTED.json")
    completions = property(lambda self: self.path / "completions")
    checkpoints = property(lambda self: self.path / "checkpoints")
    subspace = property(lambda self: self.path / "subspace")
    deployed = property(lambda self: self.path / "deployed")
    summary = property(lambda self: self.path / "summary.json")
    report = property(lambda self: self.path / "report.html")

    def settings(self) -> dict[str, Any]:
        """The content of config.yaml; RunFolderError where it is none."""
        try:
            found = yaml.safe_load(self.config.read_text())
        except (yaml.YAMLError, ValueError):
            found = None
        if not isinstance(found, dict):
            raise RunFolderError(f"{self.config} is empty or torn, so nothing says what this run was; take it from another copy "
                                 "of the folder")
        return found

    def steps(self) -> list[int]:
        """Steps that have a checkpoint folder, in order; whether each is whole is for the reader to check."""
        return sorted(int(path.name[5:]) for path in self.checkpoints.glob("step-*") if path.name[5:].isdigit())

    def completion_files(self) -> list[Path]:
        """Every file of completions, of all processes, by step."""
        return sorted(self.completions.glob("step-*.parquet"))

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step}"

    def last_checkpoint(self) -> tuple[Path | None, list[str]]:
        """The newest whole checkpoint, or None, and one line for each torn one that was passed over."""
        skipped = []
        for step in reversed(self.steps()):
            if (problem := broken_seal(self.checkpoint(step))) is None:
                return self.checkpoint(step), skipped
            skipped.append(f"skipped checkpoint step-{step}: {problem}")
        return None, skipped

    def require_checkpoint(self) -> Path:
        checkpoint, skipped = self.last_checkpoint()
        if checkpoint is None:
            raise CheckpointError(f"{self.path} has no whole checkpoint{': ' + '; '.join(skipped) if skipped else ''}; "
                                  f"`routed-rl resume {shlex.quote(str(self.path))}` trains it from the start")
        return checkpoint


def step_of(path: Path) -> int:
    """The step in the name of a checkpoint, a halt that was put aside, or a file of completions: `step-N`, `step-N-...`."""
    return int(path.stem.split("-")[1])


def data_root() -> Path:
    """Where configs, environments and the lab are: inside the wheel, else the checkout this package lies in."""
    packaged = Path(__file__).parent / "_data"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent


def resolve(path: str) -> str:
    """An existing file or folder by its absolute path, as `find_data` finds it; anything else as it stands."""
    try:
        return str(find_data(path)) if path else path
    except FileNotFoundError:
        return path


def find_data(path: str | Path) -> Path:
    """`path` as it stands (absolute, or relative to here), else inside `data_root()`; FileNotFoundError if neither."""
    for candidate in (Path(path).expanduser(), data_root() / path):
        if candidate.exists():
            return candidate.absolute()
    raise FileNotFoundError(path)
