"""Runs a command and ends it, with all that it started, when the process that holds the other end of stdin is gone.

A script of the standard library alone: `python guard.py COMMAND ...`. However its parent dies, no server stays behind.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading

PR_SET_PDEATHSIG = 1


def main(command: list[str]) -> int:
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=end_with_the_guard)

    def end_with_the_parent() -> None:
        while os.read(0, 1):
            pass
        end(child)

    threading.Thread(target=end_with_the_parent, daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: end(child))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, and the parent decides.
    code = child.wait()
    end(child)  # what it left behind
    return code


def end_with_the_guard() -> None:
    """In the child: the kernel kills it when the guard itself is killed. Linux only; elsewhere nothing does."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def end(child: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
