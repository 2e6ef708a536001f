"""The mechanical part of plain English: what a reader from outside would trip over first."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ("routed_rl", "environments", "scripts", "examples")
FILES = [file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py"))]


def texts(file: Path) -> Iterator[tuple[int, str]]:
    """Docstrings, and strings below a field, each with its line."""
    for node in ast.walk(ast.parse(file.read_text())):
        body = getattr(node, "body", None)
        for each in body if isinstance(body, list) else []:
            if isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant) and isinstance(each.value.value, str):
                yield each.lineno, each.value.value.strip()


def test_no_docstring_begins_with_of_or_with_what_as_a_noun():
    """"What breaks a lock?" is a question and may stand; "What TRL calls." is a riddle."""
    riddles = [f"{file.relative_to(ROOT)}:{line}: {text[:60]}" for file in FILES for line, text in texts(file)
               if text.startswith(("Of ", "What ")) and not text.splitlines()[0].endswith("?")]
    assert riddles == []
