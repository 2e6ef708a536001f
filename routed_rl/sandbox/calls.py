"""Calls one function of untrusted code. Code and inputs go into a jail, and plain values come out.

The expected values stay outside, so the jail holds nothing to read, patch or compare with. Untrusted code can forge a reply. But
it must choose the value in that reply without knowing the right one, so it gains nothing over returning the value from its
function.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from routed_rl.sandbox.core import Sandbox
from routed_rl.sandbox.limits import Limits, Outcome
from routed_rl.sandbox.values import read_json

SOLUTION, CALLS, REPLY = "solution.py", "calls.json", "reply.jsonl"
DRIVER = f'''
import json
import posix
import sys
dump, load = json.dumps, json.loads
with open("{CALLS}") as file:
    calls = load(file.read())
with open("{SOLUTION}") as file:
    source = file.read()
sys.modules["solution"] = type(sys)("solution")  # classes look their module up there, those of dataclasses for one
space = vars(sys.modules["solution"])
errors, nowhere = posix.dup(2), posix.open("/dev/null", posix.O_WRONLY)
posix.dup2(nowhere, 1)
posix.dup2(nowhere, 2)
try:
    exec(compile(source, "{SOLUTION}", "exec"), space)
    function = space[calls["name"]]
    with open("{REPLY}", "w") as reply:
        for number, given in enumerate(calls["inputs"]):
            try:
                value = function(**given) if isinstance(given, dict) else function(*given)
                line = dump({{"call": number, "value": value}})
            except Exception as error:
                line = dump({{"call": number, "error": f"{{type(error).__name__}}: {{error}}"[:200]}})
            print(line, file=reply)
finally:
    posix.dup2(errors, 2)
'''
"""The program that calls the function. Its own output is discarded, because nobody reads it and a flood of it would end the
program."""


@dataclass(frozen=True)
class Call:
    """The result of one call: a plain JSON value, or the reason why there is no value."""

    value: Any = None
    error: str | None = None

    @property
    def ok(self) -> bool:
        return self.error is None


Inputs = Sequence[Any] | Mapping[str, Any]
"""The arguments of one call, positional or by name."""


def call_function(sandbox: Sandbox, source: str, name: str, inputs: Sequence[Inputs], limits: Limits | None = None) -> list[Call]:
    """Call the function `name` of the program `source` with each of `inputs`, one after another in one process. Returns one
    `Call` for each.

    As in JSON, a tuple comes back as a list, and keys of a dict as text. A program that does not end by itself with exit code 0
    gives no values at all.
    """
    given = {"name": name, "inputs": [dict(each) if isinstance(each, Mapping) else list(each) for each in inputs]}
    files = {"driver.py": DRIVER, SOLUTION: source, CALLS: json.dumps(given)}
    outcome = sandbox.run(["python", "driver.py"], files, limits=limits, collect=[REPLY])
    if not outcome.ok:
        return [Call(error=problem(outcome))] * len(inputs)
    answers: list[list[Call]] = [[] for _ in inputs]
    for line in outcome.collected.get(REPLY, b"").splitlines():
        try:
            reply = read_json(line)
            if isinstance(reply, dict) and type(reply.get("call")) is int and 0 <= reply["call"] < len(inputs):
                answers[reply["call"]].append(answer(reply))
        except (ValueError, RecursionError):
            pass  # A line without a valid answer; its call stays unanswered.
    return [found[0] if len(found) == 1 else Call(error="answered twice" if found else "not answered") for found in answers]


def answer(reply: Mapping[str, Any]) -> Call:
    if reply.keys() == {"call", "value"}:
        return Call(value=reply["value"])
    if reply.keys() == {"call", "error"} and isinstance(reply["error"], str):
        return Call(error=reply["error"])
    return Call(error="ill-formed reply")


def problem(outcome: Outcome) -> str:
    """The reason why a program gave no values, in one line of text."""
    last = outcome.stderr.decode(errors="replace").strip().rsplit("\n", 1)[-1][:200]
    return f"{outcome.reason} {outcome.exit_code}: {last}" if outcome.reason == "exited" else outcome.reason
