"""Validate reasoning-gym's codeio rows and write the cases of those that make sound problems.

A row is kept if it needs only the standard library; its own generator makes enough different inputs, in the sandbox, from
fixed seeds; its solution returns the same plain JSON value for each in two jails, quickly, and in an interpreter with another
hash seed; the unseen cases have more than one value; its solution is paid in full by every grader, and reads no clock. Whether a
solution would have to guess something is not checked.
"""

from __future__ import annotations

import ast
import gzip
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count, repeat, zip_longest
from pathlib import Path
from typing import Any

from coding.graders import GRADERS, Attempt
from coding.problems import HELD_OUT, NAME, SHOWN, TESTED, digest, package_rows, problem, signature_of
from routed_rl.sandbox import Limits, Sandbox, call_function

SEEDS = list(range(60))
CASES = SHOWN + TESTED + HELD_OUT
LONGEST_CASE, LONGEST_SHOWN = 1200, 400
"""The most characters of a case as JSON: of any case, and of one in the prompt."""
QUICK = Limits(wall_s=10.0, cpu_s=2.0, memory_mb=512)
MAKE_CASE = f"""
def _case(seed):
    import json, random
    random.seed(seed)
    given = json.loads(json.dumps(generate_inputs(random.Random(seed))))
    kept = json.dumps(given)
    value = {NAME}(**given)
    if json.loads(json.dumps(value)) != value:
        raise TypeError("not plain JSON")
    return [json.loads(kept), value]
"""
CLOCK = re.compile(r"(.*\.)?(today|now|utcnow)|time\.(time|localtime|gmtime)")
"""Matches the functions of `datetime` and `time` that read the clock."""
OTHER_HASHES = """import os as _os, sys as _sys
if _os.environ["PYTHONHASHSEED"] == "0":
    _os.execve(_sys.executable, ["python", "-S", "-P", *_sys.argv], {**_os.environ, "PYTHONHASHSEED": "1"})
"""
"""Put before a program, this starts it again with another hash seed, and so with other orders of sets."""


def cases_of(row: dict[str, Any], sandbox: Sandbox) -> list[tuple[dict[str, Any], Any]]:
    """Different inputs, each short enough, with the solution's outputs; shortest first."""
    source = f"from random import Random\n{row['code_sample']}\n\n{row['input_generator']}\n\n{MAKE_CASE}"
    calls = call_function(sandbox, source, "_case", [[seed] for seed in SEEDS], QUICK)
    found = {json.dumps(call.value[0]): call.value[1] for call in calls if call.ok}
    short = sorted((text for text in found if len(text) <= LONGEST_CASE), key=lambda text: (len(text), text))
    return [(json.loads(text), found[text]) for text in short]


def choose(inputs: list[dict[str, Any]], outputs: list[Any]) -> list[int]:
    """Which cases to keep, in the order of `Problem`; empty if too few are left or the held-out ones are all alike.

    The shortest cases are shown, with two different values if the rest can spare one. The rest alternates between values.
    """
    texts = [json.dumps(value) for value in outputs]
    short = [place for place, text in enumerate(texts) if len(text) + len(json.dumps(inputs[place])) <= LONGEST_SHOWN]
    different = [short[0], *(place for place in short if texts[place] != texts[short[0]])] if short else []
    for shown in (different[:SHOWN], short[:SHOWN]):
        queues: dict[str, list[int]] = {}
        for place, text in enumerate(texts):
            if place not in shown and len(text) <= LONGEST_CASE:
                queues.setdefault(text, []).append(place)
        rest = [place for turn in zip_longest(*queues.values()) for place in turn if place is not None][:TESTED + HELD_OUT]
        if len(shown) == SHOWN and len(rest) == TESTED + HELD_OUT and texts[rest[0]] != texts[rest[1]]:
            # The first two have different values, so they become held-out cases.
            return [*shown, *rest[2:2 + TESTED], *rest[:2], *rest[2 + TESTED:]]
    return []


def validate(number: int, row: dict[str, Any], sandbox: Sandbox) -> dict[str, Any] | str:
    """The record of a sound row, or the reason why it is not sound."""
    source = row["code_sample"]
    try:
        signature_of(source)
        if not modules(f"{source}\n{row['input_generator']}") <= sys.stdlib_module_names:
            return "needs more than the standard library"
    except (ValueError, SyntaxError):
        return "has no function to write"
    cases = cases_of(row, sandbox)
    if len(cases) < CASES:
        return "too few different inputs for which its solution returns a plain value in time"
    chosen = [cases[place] for place in choose([given for given, _ in cases], [value for _, value in cases])]
    if not chosen:
        return "outputs are constant, or too long"
    inputs, outputs = [given for given, _ in chosen], [value for _, value in chosen]
    asked = problem(number, row, inputs, outputs)
    attempt = Attempt(sandbox, asked, source)
    if refused := [name for name, grader in GRADERS.items() if not grader(attempt)]:
        return f"its solution is refused by {refused[0]} in another jail"
    if not GRADERS["strict"](Attempt(sandbox, asked, OTHER_HASHES + source)):
        return "what its solution returns depends on the order of a set"
    if reads_clock(source):
        return "its solution reads a clock, so what it returns may depend on the day"
    return {"row": number, "hash": digest(row), "inputs": inputs, "outputs": outputs}


def reads_clock(source: str) -> bool:
    """Whether `source` names a function that reads the clock."""
    return any(CLOCK.fullmatch(ast.unparse(node)) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute))


def modules(source: str) -> set[str]:
    """The first part of every module name that `source` imports."""
    nodes = list(ast.walk(ast.parse(source)))
    plain = {alias.name.split(".")[0] for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return plain | {(node.module or "").split(".")[0] for node in nodes if isinstance(node, ast.ImportFrom)}


def validated(sandbox: Sandbox, workers: int, report: Callable[[Counter[str]], None]) -> Iterator[dict[str, Any]]:
    """The records of all sound rows, in the order of the rows; `report` gets the tally, now and then and at the end."""
    tally = Counter[str]()
    with ThreadPoolExecutor(workers) as pool:
        for record in pool.map(validate, count(), package_rows(), repeat(sandbox)):
            tally[record if isinstance(record, str) else "kept"] += 1
            if not isinstance(record, str):
                yield record
            if tally.total() % 100 == 0:
                report(tally)
    report(tally)


def write(records: Iterator[dict[str, Any]], file: Path) -> None:
    """Write the records, compressed; the same records give the same bytes."""
    text = "".join(json.dumps(record, separators=(",", ":")) + "\n" for record in records)
    file.write_bytes(gzip.compress(text.encode(), mtime=0))
