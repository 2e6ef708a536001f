"""Ends a command: any error becomes one line on stderr and an exit code."""

import atexit
import errno
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path

from routed_rl.config.references import masked, remember_written
from routed_rl.errors import CheckFailed, Halted, RoutedRLError, Stopped, Unread, command
from routed_rl.stopping import Terminated, terminating

PATH = (errno.EACCES, errno.EEXIST, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EROFS,
        errno.ELOOP)
"""Error numbers that mean that a path from the user is at fault."""
UNREAD = 128 + signal.SIGPIPE
"""The exit code of a command whose output nobody reads any more, as of other programs."""
FULL = (errno.ENOSPC, errno.EDQUOT)
"""Error numbers that mean that the disk is full."""
FULL_IN_WORDS = (*map(os.strerror, FULL), "PytorchStreamWriter failed writing file")
"""Parts of error messages that mean that the disk is full. Errors of safetensors and torch have no error number."""


def guarded(action: Callable[[], object], argv: list[str]) -> int:
    """Call `action` and return the exit code of the command. Any error in `action` becomes one line on stderr, after a traceback
    if the error is a bug. `argv` has the words of the command line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a sign that a terminal's encoding does not have must not end a command
            stream.reconfigure(errors="backslashreplace")
    # Telemetry of the hub is off unless the user asks for it.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    for text in argv:
        remember_written(text)
    try:
        with terminating():
            action()
        return 0
    except Stopped as stopped:
        hint = "" if "resume" in str(stopped) else f"; {_going_on(stopped, argv)}"
        return _fail(f"{stopped}{hint}", 128 + stopped.signal, "stopped")
    except Halted as halted:
        print(f"run: {halted.run}", flush=True)
        return _fail(str(halted), 3, "halted")
    except RoutedRLError as error:
        return _fail(str(error), 4 if isinstance(error, CheckFailed) else 2)
    except Unread as unread:
        notes = getattr(unread, "__notes__", [])  # there are some if a run has begun
        return _fail(f"nobody reads its output any more; {'; '.join(notes)}", UNREAD, "stopped") if notes else UNREAD
    except KeyboardInterrupt as interrupt:
        hint = _going_on(interrupt, argv)
        by_signal = isinstance(interrupt, Terminated)
        print(f"\n{'stopped by SIGTERM' if by_signal else 'interrupted'}; {masked(hint)}", file=sys.stderr)
        return 128 + (signal.SIGTERM if by_signal else signal.SIGINT)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in PATH and error.filename:
            return _fail(f"{error.filename}: {error.strerror}; give another path")
        if _is_full(error):
            # Of a copy, the second name is that of the new file.
            place = getattr(error, "filename2", None) or getattr(error, "filename", None) or "a file"
            return _fail(f"disk full while writing {place}: what was complete is kept; free some space, then {_resume(argv)}")
        if isinstance(error, BrokenPipeError) and _is_unread():
            return UNREAD
        print(masked(traceback.format_exc()), file=sys.stderr, end="")
        return _fail("this is a bug of routed_rl or of a plug-in, see above", 1)


def _is_unread() -> bool:
    """Whether the output goes into a pipe that nobody reads any more."""
    poll = select.poll()
    try:
        poll.register(sys.stdout, select.POLLOUT)
    except (OSError, ValueError):  # it is closed, or no file
        return False
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _is_full(error: Exception) -> bool:
    """Whether an error, or one that caused it, says that the disk is full. safetensors and torch say so in words alone."""
    cause: BaseException | None = error
    while cause is not None:
        if (isinstance(cause, OSError) and cause.errno in FULL) or any(words in str(cause) for words in FULL_IN_WORDS):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def leave_at_the_end() -> Callable[[int], None]:
    """Register a function that ends the process as soon as everything else that is registered with `atexit` has run. This saves 1
    to 2 seconds in which the interpreter would take torch and transformers down. Returns a function that must be called with the
    exit code. Call `leave_at_the_end` before other modules register anything, because `atexit` runs last what was registered
    first."""
    codes = list[int]()

    def leave() -> None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # nobody reads it any more
                stream.flush()
        if codes:
            os._exit(codes[0])

    atexit.register(leave)
    return codes.append


def _fail(message: str, code: int = 2, what: str = "error") -> int:
    print(f"{what}: {masked(' '.join(message.split()))}", file=sys.stderr)
    return code


def _going_on(ended: BaseException, argv: list[str]) -> str:
    """How the user can go on after an interrupt: the notes of the exception, which it has if a run had begun. Without notes: for
    `train` and `rollback` the same command again, unless the folder that they name holds a run; otherwise as `_resume` says."""
    if notes := getattr(ended, "__notes__", []):
        return "; ".join(notes)
    folder = next((text[4:] for text in reversed(argv) if text.startswith("out=")), None)
    begun = folder is not None and Path(os.path.expanduser(folder), "config.yaml").exists()
    return f"to go on: {command(*argv) if argv[0] in ('train', 'rollback') and not begun else _resume(argv)}"


def _resume(argv: list[str]) -> str:
    """The command by which the user can go on. For the verbs that train: `resume` with the run's folder, or with RUN if the
    command line does not name that folder. For all other verbs: the same command again."""
    if argv[0] not in ("train", "resume", "rollback"):
        return command(*argv)
    typed = argv[1:2] if argv[0] == "resume" else [text[4:] for text in argv if text.startswith("out=")]
    folder = next(reversed(typed), None)
    return command("resume", folder) if folder else f"{command('resume')} RUN (the folder named above)"
