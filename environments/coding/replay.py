"""Official tests judge plain values: the tests never meet the program, and the program never meets the tests.

1. `record`: the tests run with the known solution, in a jail, and each of their calls is written down.
2. `answers`: the program runs on those arguments, in a second jail, and returns Python literals.
3. `accepts`: the tests run in a third jail, with a stand-in that returns those literals in the order of the calls.

`random` is seeded alike in 1 and 3, so that tests which draw their inputs draw the same ones.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from routed_rl.sandbox import Limits, Sandbox, call_function

LIMITS = Limits(wall_s=8.0, cpu_s=8.0, memory_mb=512)
RECORDER = """
import json as _json, random as _random
_calls = []
def _candidate(*given):
    _calls.append(repr(given))
    return {name}(*given)
_random.seed(0)
check(_candidate)
_json.dump(_calls, open("calls.json", "w"))
"""
CALLER = """
def _call(given):
    import ast
    value = {name}(*ast.literal_eval(given))
    return repr(value)
"""
PLAYER = """
import ast as _ast, json as _json, random as _random
_values = iter(_json.load(open("values.json")))
def _candidate(*given):
    return _ast.literal_eval(next(_values))
_random.seed(0)
check(_candidate)
open("passed", "w").write("yes")
"""


@dataclass(frozen=True)
class Suite:
    """`known` is the solution's whole program, `tests` define `check(candidate)`, `name` is the function under test."""

    known: str
    tests: str
    name: str


def record(sandbox: Sandbox, suite: Suite) -> list[str]:
    """The arguments of each call, as a literal; ValueError if the known solution fails its own tests."""
    program = f"{suite.known}\n{suite.tests}\n{RECORDER.format(name=suite.name)}"
    outcome = sandbox.run(["python", "program.py"], files={"program.py": program}, limits=LIMITS, collect=("calls.json",))
    if "calls.json" not in outcome.collected:
        raise ValueError(f"the tests of {suite.name} refuse its known solution: {outcome.reason} {outcome.stderr[-200:]!r}")
    return json.loads(outcome.collected["calls.json"])


def answers(sandbox: Sandbox, suite: Suite, source: str, calls: list[str]) -> list[str] | None:
    """The program's values as the literals that it reported, not parsed yet; None if it fails on any call."""
    values = [value for value in each_answer(sandbox, suite, source, calls) if value is not None]
    return values if len(values) == len(calls) else None


def each_answer(sandbox: Sandbox, suite: Suite, source: str, calls: list[str]) -> list[str | None]:
    """The literal of each call, as in `answers`; None for calls on which the program fails."""
    replies = call_function(sandbox, source + CALLER.format(name=suite.name), "_call", [[given] for given in calls], LIMITS)
    return [reply.value if reply.error is None and isinstance(reply.value, str) else None for reply in replies]


def accepts(sandbox: Sandbox, suite: Suite, values: list[str]) -> bool:
    """Whether the tests pass with these values."""
    program = f"{suite.known}\n{suite.tests}\n{PLAYER}"
    files = {"program.py": program, "values.json": json.dumps(values)}
    outcome = sandbox.run(["python", "program.py"], files=files, limits=LIMITS, collect=("passed",))
    return outcome.exit_code == 0 and outcome.collected.get("passed") == b"yes"
