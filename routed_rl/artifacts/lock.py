"""Lets only one process write into a folder. The kernel holds the lock (flock), so the lock ends when its process ends, in
whatever way. Across machines it works if the file system supports it: NFS 4, NFS 3 with its lock service, Lustre mounted with
`flock`. On a file system without locks a warning of one line is printed, and nothing is locked."""

import errno
import fcntl
import functools
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from routed_rl.artifacts.place import check_writable
from routed_rl.errors import RunFolderError

LOCK = ".lock"
"""The name of the file that marks a folder as being written. Its text says which process is writing."""


def alone_in(folder: Path) -> AbstractContextManager[None]:
    """Inside the block, this process is the only one that writes into `folder`, which is made if it does not exist.
    RunFolderError if another process is writing there; the message names it."""
    return _holding(folder / LOCK, folder)


def alone_making(path: Path) -> AbstractContextManager[None]:
    """As `alone_in`, but for a file or folder `path` that is put in place in one step and may not exist yet. The lock file
    therefore lies beside `path`, not inside it."""
    there = path.absolute()  # `.` has no name
    return _holding(there.with_name(f".{there.name}{LOCK}"), path)


def is_held(folder: Path) -> bool:
    """Whether another process is writing into `folder` now, such as a run that trains."""
    if not (folder / LOCK).exists():
        return False
    try:
        with open(folder / LOCK, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError as error:
        return error.errno in (errno.EAGAIN, errno.EACCES)
    return False


@contextmanager
def _holding(file: Path, what: Path) -> Iterator[None]:
    check_writable(file, str(what))
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file, timeout=0, on_acquired=_sign, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise RunFolderError(f"{what} is being written by {_holder(file)}; wait until that has ended, or end it") from None
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            raise
        _warn(f"warning: the file system of {what.parent} has no locks ({error.strerror}); let nothing else write there")
        yield
        return
    try:
        yield
    finally:
        file.unlink(missing_ok=True)  # before the release, because a file without a name is nobody's lock
        lock.release()


@functools.cache
def _warn(text: str) -> None:
    print(text, file=sys.stderr)


def _sign(descriptor: int) -> None:
    """Write into the lock file, which is open as `descriptor`, which process holds the lock."""
    command = " ".join([Path(sys.argv[0]).name.replace("__main__.py", "routed-rl"), *sys.argv[1:2]])
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "command": command,
              "since": datetime.now(UTC).isoformat(timespec="seconds")}
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(holder).encode(), 0)


def _holder(file: Path) -> str:
    try:
        found = json.loads(file.read_bytes())
        return f"`{found['command']}` (process {found['pid']} on {found['host']}, since {found['since']})"
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return "another process, which has not said who it is"
