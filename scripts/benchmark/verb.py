"""Calls verbs of `routed-rl` from a benchmark."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = "import sys; from routed_rl.cli import main; sys.exit(main())"


def verb(*words: str) -> None:
    """Run `routed-rl WORDS` in a process of its own, which reports its errors itself. If it fails, this process ends with its
    exit code."""
    if code := subprocess.run([sys.executable, "-c", PROGRAM, *words]).returncode:
        sys.exit(code)
