"""From a completion to the program in it."""

from __future__ import annotations

import ast
import warnings

LABELS = ("", "python", "python3", "py")
LONGEST = 50_000
"""Characters of a program; a longer one is not run."""


def code_of(completion: str) -> str | None:
    """The last ```python block, else the whole text; None where that is no Python program, so that nothing need run."""
    blocks = fenced(completion)
    code = blocks[-1] if blocks else completion
    if not code.strip() or len(code) > LONGEST:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(code)
            code.encode()
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return code


def fenced(text: str) -> list[str]:
    """The Python blocks, in order; a block without an end goes to the end of the text."""
    blocks: list[str] = []
    label: str | None = None
    lines: list[str] = []
    indent = 0
    for line in [*text.replace("\r\n", "\n").split("\n"), "```"]:
        mark = line.strip()
        if label is None and mark.startswith("```"):
            label, lines, indent = first_word(mark[3:]), [], len(line) - len(line.lstrip(" "))
        elif label is not None and mark == "```":
            if label in LABELS and any(lines):
                blocks.append("\n".join(lines) + "\n")
            label = None
        else:
            lines.append(line[min(indent, len(line) - len(line.lstrip(" "))):])
    return blocks


def first_word(label: str) -> str:
    """Of what stands behind a fence: the language; the rest is for whoever shows the block."""
    return (label.lower().split() or [""])[0]
