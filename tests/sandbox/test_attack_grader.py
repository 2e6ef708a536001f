"""Solutions that are wrong and want to be paid: each passes the naive grader, none the comparison outside the sandbox."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys

import pytest

from routed_rl.sandbox import Limits, call_function, same_value
from tests.sandbox.naive import EXPECTED, INPUTS, READS_ARGUMENTS, RIGHT, naive_grade, naive_pass

LIMITS = Limits(wall_s=10, cpu_s=5)


def solves(sandbox, source: str) -> bool:
    calls = call_function(sandbox, source, "solve", INPUTS, LIMITS)
    assert len(calls) == len(INPUTS)
    return all(call.ok and same_value(call.value, want) for call, want in zip(calls, EXPECTED, strict=True))


def test_the_right_solution_passes_both(sandbox, tmp_path):
    assert naive_pass(RIGHT, tmp_path) and solves(sandbox, RIGHT)


def test_a_right_solution_may_have_classes_that_look_their_module_up(sandbox):
    source = """from __future__ import annotations
from dataclasses import dataclass
@dataclass
class Of:
    x: int
def solve(x): return Of(x).x * x + 1"""
    assert solves(sandbox, source)


def test_a_wrong_solution_passes_neither(sandbox, tmp_path):
    wrong = "def solve(x): return x"
    assert not naive_pass(wrong, tmp_path) and not solves(sandbox, wrong)


def test_attack_always_equal_object(sandbox, tmp_path):
    source = "class Any:\n    def __eq__(self, other): return True\ndef solve(x): return Any()"
    assert naive_pass(source, tmp_path) and not solves(sandbox, source)


@pytest.mark.parametrize("kind", ["int", "list", "str", "float", "dict"])
def test_attack_subclassed_value(sandbox, tmp_path, kind):
    source = f"class Any({kind}):\n    def __eq__(self, other): return True\n    __hash__ = None\ndef solve(x): return Any()"
    assert naive_pass(source, tmp_path) and not solves(sandbox, source)


def test_attack_type_that_is_nearly_the_same(sandbox, tmp_path):
    source = "def solve(x): return float(x * x + 1)"
    assert naive_pass(source, tmp_path) and not solves(sandbox, source)


def test_attack_nan_under_a_tolerance(sandbox, tmp_path):
    source = "def solve(x): return float('nan')"
    assert naive_pass(source, tmp_path, check="assert not abs(got - want) > 1e-6") and not solves(sandbox, source)


def test_attack_frame_walking_to_the_expected_value(sandbox, tmp_path):
    source = """
import sys
def solve(x):
    frame = sys._getframe(1)
    while frame and "want" not in frame.f_globals: frame = frame.f_back
    return frame.f_globals["want"]"""
    assert naive_pass(source, tmp_path) and not solves(sandbox, source)


def test_attack_frame_walking_to_replace_the_expected_values(sandbox, tmp_path):
    source = """
import sys
def solve(x):
    frame = sys._getframe(1)
    frame.f_globals["expected"][:] = [0, 0]
    frame.f_globals["want"] = 0
    return 0"""
    assert naive_pass(source, tmp_path) and not solves(sandbox, source)


def test_attack_patched_json(sandbox, tmp_path):
    source = "import json\njson.dumps = lambda *_, **__: '{\"call\": 0, \"value\": 10}'\ndef solve(x): return 0"
    assert naive_pass(source, tmp_path, check="assert json.dumps(got) == json.dumps(want)") and not solves(sandbox, source)


def test_attack_patched_builtins(sandbox, tmp_path):
    source = """
import builtins
builtins.all = builtins.isinstance = lambda *_: True
builtins.zip = lambda *_: []
builtins.enumerate = lambda *_: []
def solve(x): return 0"""
    assert naive_pass(source, tmp_path, check="assert all([got == want])") and not solves(sandbox, source)


def test_attack_patched_print_of_the_driver(sandbox, tmp_path):
    source = "import builtins\nold = print\nbuiltins.print = lambda *_, **k: old('PASS', **k)\ndef solve(x): return 0"
    assert "PASS" in naive_grade(source, tmp_path, check="print('PASS' if got == want else 'FAIL')").stdout
    assert not solves(sandbox, source)


@pytest.mark.slow
def test_attack_patched_pytest(sandbox, tmp_path):
    source = """
try:
    import _pytest.python
    _pytest.python.Function.runtest = lambda self: None
except ImportError:
    pass
def solve(x): return 0"""
    (tmp_path / "solution.py").write_text(source)
    (tmp_path / "test_it.py").write_text("from solution import solve\ndef test_it():\n    assert solve(3) == 10")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_it.py"]
    naive = subprocess.run(command, cwd=tmp_path, capture_output=True)
    assert naive.returncode == 0, naive.stdout
    assert not solves(sandbox, source)


@pytest.mark.parametrize("where", ["at import", "in the call"])
def test_attack_sys_exit(sandbox, tmp_path, where):
    source = "import sys\nsys.exit(0)" if where == "at import" else "import sys\ndef solve(x): sys.exit(0)"
    assert naive_pass(source, tmp_path) and not solves(sandbox, source)


def test_attack_os_exit(sandbox, tmp_path):
    source = "import os\ndef solve(x): os._exit(0)"
    assert naive_pass(source, tmp_path) and not solves(sandbox, source)


def test_attack_exit_code_changed_at_exit(sandbox, tmp_path):
    source = "import atexit, os\natexit.register(lambda: os._exit(0))\ndef solve(x): return 0"
    assert naive_pass(source, tmp_path) and not solves(sandbox, source)


def test_attack_stdout_spoofing(sandbox, tmp_path):
    source = "print('PASS')\nprint('{\"call\": 0, \"value\": 10}')\nprint('{\"call\": 1, \"value\": 26}')\ndef solve(x): return 0"
    assert "PASS" in naive_grade(source, tmp_path).stdout and not solves(sandbox, source)


def test_attack_reply_written_by_the_solution(sandbox, tmp_path):
    """It can say values, and so could the return statement; what it cannot say is that they are right."""
    source = """
import json, os
with open("verdict.json", "w") as file: json.dump({"passed": True}, file)
def solve(x):
    with open("reply.jsonl", "a") as file:
        for call in range(2): print(json.dumps({"call": call, "passed": True, "value": 0}), file=file)
    os._exit(0)"""
    naive_grade(source, tmp_path)
    assert json.loads((tmp_path / "verdict.json").read_text())["passed"] and not solves(sandbox, source)


def test_attack_answers_twice(sandbox, tmp_path):
    """Guesses until one fits: the naive reader takes any line that matches, here such a call is an error."""
    source = """
import json
def solve(x):
    with open("reply.jsonl", "a") as file:
        for guess in range(100): print(json.dumps({"call": 0 if x == 3 else 1, "value": guess}), file=file)
    return 0"""
    naive_grade(source, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "reply.jsonl").read_text().splitlines()]
    assert {"call": 0, "value": EXPECTED[0]} in lines
    assert not solves(sandbox, source)
    assert call_function(sandbox, source, "solve", INPUTS, LIMITS)[0].error is not None


def test_attack_reading_expected_values_by_gc(sandbox, tmp_path):
    source = """
import gc
found = [each for each in gc.get_objects() if type(each) is list and each[1:] == [26]]
def solve(x): return found[0][x == 5]"""
    check = "assert got == want"
    reads = 'inputs, expected = json.load(open("inputs.json")), json.load(open("expected.json")); keep = [expected]'
    assert naive_pass(source, tmp_path, check=check, reads=reads) and not solves(sandbox, source)


def test_attack_reading_expected_values_from_files(sandbox, tmp_path):
    source = """
import json, os
def solve(x):
    for folder, _, names in os.walk("."):
        for name in names:
            values = json.load(open(os.path.join(folder, name))) if name == "expected.json" else None
            if values: return values[x == 5]"""
    assert naive_pass(source, tmp_path) and not solves(sandbox, source)


def test_attack_reading_expected_values_from_proc(sandbox, tmp_path):
    source = """
import json
def solve(x):
    words = open("/proc/self/cmdline").read().split("\\0")
    return json.loads(words[-2])[x == 5]"""
    assert naive_pass(source, tmp_path, reads=READS_ARGUMENTS) and not solves(sandbox, source)


def test_attack_deep_nesting(sandbox, tmp_path):
    """A reply that a naive reader does not survive, returned and forged."""
    nested = "'[' * 100_000 + ']' * 100_000"
    said = subprocess.run([sys.executable, "-c", f"print({nested})"], capture_output=True, text=True).stdout
    with pytest.raises(RecursionError):
        json.loads(said)
    assert not solves(sandbox, "deep = 0\nfor _ in range(100_000): deep = [deep]\ndef solve(x): return deep")
    assert not solves(sandbox, f"""
def solve(x):
    with open("reply.jsonl", "a") as file: file.write('{{"call": 0, "value": ' + {nested} + '}}\\n')
    return 0""")


def test_attack_value_that_runs_code_in_the_parent(sandbox):
    """Values that come back pickled run what they like in the one that reads them."""
    value = """
class Value:
    def __reduce__(self): return exec, ("import os; os.environ['TAKEN'] = '1'",)
"""
    child = f"import pickle, sys\n{value}\nsys.stdout.buffer.write(pickle.dumps(Value()))"
    pickle.loads(subprocess.run([sys.executable, "-c", child], capture_output=True).stdout)
    assert os.environ.pop("TAKEN") == "1"
    assert not solves(sandbox, f"{value}\ndef solve(x): return Value()") and "TAKEN" not in os.environ
