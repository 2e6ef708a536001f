"""Ends processes whose parent has died, however it died. `python guard.py PARENT COMMAND ...` runs a command under a guard, where
PARENT is a process id. The guard kills everything that the command has started when the command ends, the parent dies, or SIGTERM
comes.

The script needs only the standard library. On Linux no process escapes the guard, because a process that loses its parent, even a
daemon, becomes a child of the guard. If the guard itself gets SIGKILL, the kernel kills the command too, but not the processes
that the command has started. On other systems only the command's process group is ended.
"""

import ctypes
import os
import resource
import signal
import sys
import threading
import time
from contextlib import suppress

POLL_S = 0.2
GIVE_UP_S = 10.0
"""Seconds after which the guard gives up on processes that SIGKILL does not end, because they wait for a device."""
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
LINUX = sys.platform == "linux"


def guarded(command: list[str]) -> list[str]:
    """The command line that runs `command` under a guard whose PARENT is this process. The caller must start it in a new
    session."""
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *command]


def die_with(parent: int) -> None:
    """From now on, end this process within a second after its parent, the process with the id `parent`, dies."""
    threading.Thread(target=_watch, args=(parent, lambda: os._exit(1)), daemon=True).start()


def _watch(parent: int, then) -> None:  # type: ignore[no-untyped-def]
    while os.getppid() == parent:
        time.sleep(POLL_S)
    then()


def main(parent: int, command: list[str]) -> int:
    """Run `command` until it or the parent ends. Returns the exit code of the command; if a signal killed the command, this
    process dies of the same signal."""
    guard = os.getpid()
    if LINUX:
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    if (pid := os.fork()) == 0:
        os.setsid()
        if LINUX:  # The kernel kills the command when the guard itself is killed.
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == guard:
            os.execvp(command[0], command)
        os._exit(1)
    silent = os.open(os.devnull, os.O_RDWR)
    os.dup2(silent, 0)  # only the command holds the pipes, so that they close when it ends
    os.dup2(silent, 1)

    def end(*_: object) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    signal.signal(signal.SIGTERM, end)
    threading.Thread(target=_watch, args=(parent, end), daemon=True).start()
    ended = status = 0
    while ended != pid:
        ended, status = os.waitpid(-1, 0)
    _end_the_rest(pid)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with suppress(OSError):  # SIGKILL has no handler
            signal.signal(-code, signal.SIG_DFL)
        os.kill(guard, -code)
    return code


def _end_the_rest(group: int) -> None:
    """Kill the processes that the command has started and left behind, until there are none. Children of a killed process become
    children of the guard and are killed, too. `group` is the command's process group, which is all that is killed on systems
    other than Linux."""
    if not LINUX:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
    give_up = time.monotonic() + GIVE_UP_S
    while time.monotonic() < give_up:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        for pid in _children():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)


def _children() -> list[int]:
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
            if int(file.read().rpartition(b")")[2].split()[1]) == os.getpid():
                found.append(int(name))
    return found


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
