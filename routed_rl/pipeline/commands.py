"""What a person is told to type next."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path


def command(*words: object) -> str:
    """`words` as a line for a shell, quoted, of this program as it was called: from a .venv that is not activated, too."""
    called = Path(sys.argv[0]).name == "routed-rl" and shutil.which("routed-rl") is None
    return shlex.join([sys.argv[0] if called else "routed-rl", *map(str, words)])
