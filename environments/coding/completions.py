"""Finds the program in a completion."""

from __future__ import annotations

import ast
import builtins
import re
import warnings

from reading import spoken

PYTHON = re.compile(r"\{?\.?(?:i?python|py)[\d.]*(?:[:}]|$)")
FENCE = re.compile(r"(?:```+|~~~+)")
WRAPPERS = "answer|final_answer|solution|python|code|pre"
TAG = re.compile(rf"^[ \t]*(?:<(?:{WRAPPERS})>)+|(?:</(?:{WRAPPERS})>)+[ \t]*$", re.MULTILINE)
"""Tags around an answer, at the start or the end of a line."""
LONGEST = 50_000
"""The most characters of a program; a longer one is not run."""


def code_of(completion: str, name: str = r"\w+") -> str | None:
    """The program of a completion, or None if there is none, so that nothing need be run.

    It is the last block that defines the function `name`, together with earlier blocks that define names it uses. Otherwise it is
    the last block that is labelled as Python, or else that is Python, or the whole text.
    """
    text = said(completion)
    blocks = fenced(text)
    texts = [code for code, _ in blocks]
    defined = rf"(?:async[ \t]+)?def[ \t]+{name}\b|^{name}[ \t]*=(?!=)"
    for defines in rf"^{defined}", rf"^[ \t]+{defined}":  # A method of that name is taken only if nothing else defines it.
        for place in reversed(range(len(texts))):
            if re.search(defines, texts[place], re.MULTILINE):
                code = with_helpers(texts[:place], texts[place])
                return program(code) or program(unfenced(code, name))
    if not blocks:
        return program(text) or program(unfenced(text, name))
    likely = [code for code, labelled in blocks if labelled] or [code for code in texts if program(code)] or texts
    return program(likely[-1])


def said(completion: str) -> str:
    """The completion without reasoning, tags around the answer, quotation marks of mail, and special marks of other systems."""
    text = re.sub(r"\r\n?", "\n", spoken(completion))
    text = TAG.sub("\n", re.sub("^[\u200b\u2060\ufeff]+", "", text, flags=re.MULTILINE))
    return re.sub(r"^> ?", "", text, flags=re.MULTILINE) if re.search(rf"^> ?{FENCE.pattern}", text, re.MULTILINE) else text


def program(code: str) -> str | None:
    """`code` if it is a Python program, and no longer than `LONGEST`; else None."""
    return code if code.strip() and tree(code) is not None else None


def tree(code: str) -> ast.Module | None:
    """The syntax tree of `code`; None if it is no program, or longer than `LONGEST`."""
    if len(code) > LONGEST:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code.encode()
            return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def bound(code: str) -> set[str]:
    """The names to which a program gives a value, anywhere in it."""
    found = set[str]()
    for node in ast.walk(tree(code) or ast.Module([], [])):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.alias):
            found.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


def with_helpers(before: list[str], code: str) -> str:
    """`code`, preceded by those of the blocks `before` it that define a name which `code` uses but does not define."""
    for each in reversed(before):
        used = {node.id for node in ast.walk(tree(code) or ast.Module([], [])) if isinstance(node, ast.Name)}
        if (used - bound(code) - set(dir(builtins))) & bound(each):
            code = behind(each, code)
    return code


def behind(first: str, code: str) -> str:
    """`code` behind `first`. Its imports from `__future__` go to the beginning, because Python takes them nowhere else."""
    lines, moved = code.split("\n"), list[str]()
    for node in (tree(code) or ast.Module([], [])).body:
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            moved.append(ast.unparse(node))
            for place in range(node.lineno - 1, node.end_lineno or node.lineno):
                lines[place] = ""
    return "\n".join([*moved, first, *lines])


def fenced(text: str) -> list[tuple[str, bool]]:
    """(block, whether it is labelled as Python) for each block that may be Python, in order; an unclosed block goes to the
    end."""
    blocks: list[tuple[str, bool]] = []
    opened, label, indent = "", "", 0
    lines: list[str] = []
    for line in [*text.split("\n"), None]:
        mark = (line or "").strip()
        fence = FENCE.match(mark)
        if line is not None and not opened and fence:
            opened, label, lines = fence[0], (mark[len(fence[0]):].lower().split() or [""])[0], []
            indent = len(line) - len(line.lstrip(" \t"))
        elif opened and (line is None or (fence and mark == fence[0] and mark.startswith(opened))):
            if any(lines) and (not label or PYTHON.match(label)):
                blocks.append(("\n".join(lines) + "\n", bool(label)))
            opened = ""
        elif line is not None:
            lines.append(line[min(indent, len(line) - len(line.lstrip(" \t"))):])
    return blocks


def unfenced(text: str, name: str) -> str:
    """The program between sentences: it begins with the first line that can begin one, and ends where it is last complete. Empty
    if there is none."""
    begins = re.search(r"^(?:(?:import|from|def|class|async def) \w|@\w)", text, re.MULTILINE)
    if begins is None or not re.search(rf"^def {name}\b", text, re.MULTILINE):
        return ""
    parts = re.split(r"(\n\s*\n)", text[begins.start():])
    return next((code for end in range(len(parts), 0, -2)[:20] if program(code := "".join(parts[:end]))), "")
