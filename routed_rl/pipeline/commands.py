"""What a person is told to type next."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from routed_rl.artifacts import RunFolder
from routed_rl.errors import LaunchError, RolloutError


def command(*words: object) -> str:
    """`words` as a line for a shell, quoted, of this program as it was called: from a .venv that is not activated, too."""
    called = Path(sys.argv[0]).name == "routed-rl" and shutil.which("routed-rl") is None
    return shlex.join([sys.argv[0] if called else "routed-rl", *map(str, words)])


@contextmanager
def saying_how_to_go_on(run: RunFolder) -> Iterator[None]:
    """Errors that leave the run as it was, and Ctrl-C, say how to go on with it."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        interrupt.add_note(f"to go on: {command('resume', run.path)}")
        raise
    except (RolloutError, LaunchError) as error:
        whole, _ = run.last_checkpoint()
        place = whole.name if whole else "the start"
        raise type(error)(f"{error}; to go on from {place}: {command('resume', run.path)}") from error
