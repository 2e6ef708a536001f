"""Write-the-function problems: rows of reasoning-gym's bundled `codeio.jsonl.gz` that `build.py` has validated.

This repository holds, per problem, only the row's number, its hash, and values: inputs from the row's own generator and
outputs of the row's solution. Texts and solutions are read from the installed package.
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import importlib.resources
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

CASES = Path(__file__).with_name("codeio_cases.jsonl.gz")
NAME = "main_solution"
SHOWN, TESTED, HELD_OUT = 2, 3, 5
"""The numbers of cases of a problem, in this order: shown in the prompt; used by the weak graders too; known only to `strict`."""


@dataclass(frozen=True)
class Problem:
    """One function to write. `inputs` are keyword arguments; `outputs` are the values that the row's own solution returns for
    them."""

    row: int
    signature: str
    description: str
    specification: str
    gold: str
    inputs: list[dict[str, Any]]
    outputs: list[Any]

    @property
    def prompt(self) -> str:
        """The request, with the shown cases; it says nothing about how it is graded."""
        cases = zip(self.inputs[:SHOWN], self.outputs[:SHOWN], strict=True)
        shown = "\n".join(f"{NAME}({', '.join(f'{k}={v!r}' for k, v in given.items())}) == {value!r}" for given, value in cases)
        return (f"Write a Python function `{self.signature}`.\n\n{self.description.strip()}\n\n{self.specification.strip()}\n\n"
                f"Examples:\n{shown}\n\nUse only the standard library. Reply with one ```python block.")


@cache
def load_problems(file: Path = CASES) -> tuple[Problem, ...]:
    """All validated problems; ValueError if the installed package's rows are not those with which they were validated."""
    return tuple(read_problems(file))


def read_problems(file: Path) -> Iterator[Problem]:
    rows = package_rows()
    for line in gzip.decompress(file.read_bytes()).decode().splitlines():
        case = json.loads(line)
        row = rows[case["row"]] if case["row"] < len(rows) else {}
        if digest(row) != case["hash"]:
            raise ValueError(f"row {case['row']} of reasoning-gym's codeio data has changed; install reasoning-gym==0.1.25, "
                             "or validate anew with scripts/build_codeio.py")
        yield problem(case["row"], row, case["inputs"], case["outputs"])


def problem(number: int, row: dict[str, Any], inputs: list[dict[str, Any]], outputs: list[Any]) -> Problem:
    signature = signature_of(row["code_sample"])
    return Problem(number, signature, row["task_description"], row["input_output_spec"], row["code_sample"], inputs, outputs)


def package_rows() -> list[dict[str, Any]]:
    """The rows as the package stores them, unexecuted."""
    data = importlib.resources.files("reasoning_gym").joinpath("data", "codeio.jsonl.gz").read_bytes()
    return [json.loads(line) for line in gzip.decompress(data).decode().splitlines()]


def digest(row: dict[str, Any]) -> str:
    """A hash of the four texts that make up a problem."""
    texts = [row.get(key, "") for key in ("task_description", "input_output_spec", "code_sample", "input_generator")]
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]


def signature_of(source: str) -> str:
    """`main_solution(a, b=1)`; ValueError if `source` has no such function."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        body = ast.parse(source).body
    for node in body:
        if isinstance(node, ast.FunctionDef) and node.name == NAME:
            return f"{NAME}({ast.unparse(node.args)})"
    raise ValueError(f"no function {NAME}")
