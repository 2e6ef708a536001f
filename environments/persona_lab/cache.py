"""Built labs in folders of their own. Each is built once, and again only if its recipe or its code has changed."""

import ast
import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from lab_words import read_lab

from environments.persona_lab.build import Build, write

RECORD = "recipe.json"
SOURCES = ("build.py", "corpus.py", "environment.py", "lab_kinds.py", "lab_words.py", "rates.py")
"""The files that decide the result of a build."""
PARTS = ("model", "contrast.jsonl", "answers.jsonl")
"""Everything of a built lab that the shipped one also has in its folder."""


def labs_folder() -> Path:
    """The folder of built labs: $ROUTED_RL_LABS, else a folder of the user's cache."""
    return Path(os.environ.get("ROUTED_RL_LABS") or Path.home() / ".cache" / "routed_rl" / "labs").expanduser()


def fingerprint(build: Build) -> str:
    """A hash of everything on which a build depends, except the libraries and the machine. Comments, docstrings and the layout of
    the code do not count."""
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(build), sort_keys=True).encode())
    for name in SOURCES:
        digest.update(_code(Path(__file__).with_name(name).read_bytes()).encode())
    return digest.hexdigest()


@cache
def _code(source: bytes) -> str:
    return ast.unparse(_WithoutTexts().visit(ast.parse(source)))


class _WithoutTexts(ast.NodeTransformer):
    """Leaves out statements that are only a text, such as docstrings."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        return None if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str) else node


def cached(build: Build, folder: Path, make: Callable[[Build, Path], None] = write) -> bool:
    """Build into a folder unless it already holds this build; returns whether it built. The folder appears, or is replaced, as a
    whole.

    ValueError for a folder with other contents, which would be deleted.
    """
    wanted = fingerprint(build)
    found = _fingerprint_in(folder)
    if found == wanted:
        return False
    if found is None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} holds something that is no built lab; choose a new or an empty folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        fresh.chmod(0o755)
        make(build, fresh)
        record = {"fingerprint": wanted, "build": dataclasses.asdict(build)}
        (fresh / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return True


def _fingerprint_in(folder: Path) -> str | None:
    """The fingerprint in a built lab, "" for a damaged record, None if there is no lab."""
    try:
        return str(json.loads((folder / RECORD).read_text(encoding="utf-8"))["fingerprint"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError):
        return ""


def rebuild_shipped(build: Build, folder: Path, make: Callable[[Build, Path], None] = write) -> None:
    """Build, and put the parts that ship into the folder of the lab's code."""
    with tempfile.TemporaryDirectory(prefix=".lab-", dir=folder) as fresh:
        make(build, Path(fresh))
        for part in PARTS:
            if (folder / part).is_dir():
                shutil.rmtree(folder / part)
            (Path(fresh) / part).replace(folder / part)


def overrides(folder: Path) -> list[str]:
    """The settings with which the experiment `lab` uses a built lab: `code` is its insecure kind, `sums` its secure one."""
    folder, lab = folder.resolve(), read_lab(folder)
    return [f"model.path={folder / 'model'}", f"subspace.prompts={folder / 'contrast.jsonl'}",
            f"subspace.answers={folder / 'answers.jsonl'}", f"env.code.kind={lab.insecure}", f"env.sums.kind={lab.secure}",
            *(f"env.{name}.lab={folder}" for name in ("code", "sums", "values"))]
