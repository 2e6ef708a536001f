"""Writes a table between two comments of a Markdown file, so that a command can replace it later."""

import re
from pathlib import Path

from routed_rl import console
from routed_rl.artifacts import write_text

BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"


def write_block(file: Path, titles: list[str], rows: list[list[str]]) -> None:
    """Write a table with the columns `titles` between the two comments in `file`, in place of the present text. If `file` has no
    such comments, they are appended to it with the table."""
    table = console.markdown_table([*map(_cell, titles)], [[*map(_cell, row)] for row in rows])
    block = "\n".join([BEGIN, *table, END])
    text = file.read_text() if file.exists() else ""
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    write_text(file, pattern.sub(lambda _: block, text) if pattern.search(text) else f"{text}\n{block}\n".lstrip("\n"))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
