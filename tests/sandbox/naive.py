"""What people write first: a child process with everything it inherits, and a grader in the same process as the code.

Each attack must succeed here, else it proves nothing about the sandbox. Caps on harm are the tests' own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

GRADER = """
import json, sys
{reads}
space = {{}}
exec(open("solution.py").read(), space)
for given, want in zip(inputs, expected):
    got = space["solve"](*given)
    {check}
print("PASS")
"""
READS_FILES = 'inputs, expected = json.load(open("inputs.json")), json.load(open("expected.json"))'
READS_ARGUMENTS = "inputs, expected = map(json.loads, sys.argv[1:])"
EQUAL = "assert got == want, got"
INPUTS, EXPECTED = [[3], [5]], [10, 26]
"""Of x * x + 1."""
RIGHT = "def solve(x): return x * x + 1"


def naive_grade(source: str, folder: Path, *, check: str = EQUAL, reads: str = READS_FILES) -> subprocess.CompletedProcess[str]:
    """Run the solution and compare its values in one child process."""
    files = {"solution.py": source, "inputs.json": json.dumps(INPUTS), "expected.json": json.dumps(EXPECTED),
             "grade.py": GRADER.format(reads=reads, check=check)}
    for name, text in files.items():
        (folder / name).write_text(text)
    return subprocess.run([sys.executable, "grade.py", json.dumps(INPUTS), json.dumps(EXPECTED)], cwd=folder, text=True,
                          capture_output=True, timeout=60)


def naive_pass(source: str, folder: Path, **options: str) -> bool:
    """As most graders judge: exit code 0."""
    return naive_grade(source, folder, **options).returncode == 0


def naive_run(program: str, folder: Path, timeout: float = 60) -> subprocess.CompletedProcess[bytes]:
    """Run a program with the parent's environment, files and network; after `timeout` only the process itself is ended."""
    (folder / "a.py").write_text(program)
    process = subprocess.Popen([sys.executable, "a.py"], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               start_new_session=True)
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.communicate()
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def end_group(pid: int) -> None:
    """The test's own broom."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
