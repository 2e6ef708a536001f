"""Makes jails with bubblewrap: namespaces, an almost empty read-only root, and a system call filter.

The jail sees the C libraries, the running interpreter's standard library (no installed packages, because these hold data sets
with answers), four devices, and /tmp. It sees no /proc, no /sys, no /etc and no shell. Files that the base system keeps below
/usr/lib are readable. Root makes the jail with its own rights and drops them inside; any other user makes it in a user namespace,
which the system must allow.
"""

import os
import random
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from routed_rl.errors import SandboxError
from routed_rl.sandbox.core import Sandbox
from routed_rl.sandbox.jail import ENVIRONMENT, INTERPRETER, Jail
from routed_rl.sandbox.limits import MEBIBYTE, Limits, Outcome, Request
from routed_rl.sandbox.memory import Groups, can_watch, find_groups
from routed_rl.sandbox.seccomp import MACHINES, seccomp_filter

LIBRARIES = ("/usr/lib", "/usr/lib32", "/usr/lib64", "/lib", "/lib64")
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
NOBODY = 65534


def interpreter() -> Path:
    """The executable of the running interpreter, outside its virtual environment."""
    named = Path(sys.base_prefix, "bin", f"python{sys.version_info[0]}.{sys.version_info[1]}")
    return (named if named.exists() else Path(sys.executable)).resolve()


def host_files() -> list[str]:
    """bubblewrap's arguments for the files of the host that the jail sees."""
    links, shown = list[str](), list[Path]()
    for path in map(Path, dict.fromkeys((*LIBRARIES, f"{sys.base_prefix}/lib"))):
        if path.is_symlink():
            links += ["--symlink", os.readlink(path), str(path)]
        elif path.is_dir() and not any(path.is_relative_to(other) for other in shown):
            shown.append(path)
    packages = sorted(found for path in shown for kind in ("site", "dist") for found in path.glob(f"python*/{kind}-packages"))
    files, devices = [interpreter(), Path("/etc/ld.so.cache")], [Path(name) for name in DEVICES]
    above = {folder for path in (*shown, *files, *devices) for folder in path.parents if folder != Path("/")}
    return [*(word for path in sorted(above) for word in ("--perms", "0755", "--dir", str(path))),
            *links,
            *(word for path in (*shown, *files) for word in ("--ro-bind-try", str(path), str(path))),
            *(word for path in packages for word in ("--tmpfs", str(path), "--remount-ro", str(path))),
            *(word for path in devices for word in ("--dev-bind", str(path), str(path)))]


def own_uid() -> int:
    """A uid that nobody uses, drawn from the upper half of the uids that this process may take and bubblewrap can print."""
    first, count = 0, 1 << 16
    for line in Path("/proc/self/uid_map").read_text().splitlines():
        first, _, count = map(int, line.split())
    count = min(count, 1 << 31)
    uid = first + random.SystemRandom().randrange(count // 2, count - 2)
    return uid - 1 if uid == NOBODY else uid


@dataclass(frozen=True)
class Way:
    """One way to start bubblewrap: `in_words` describes it to users, `arguments` are bubblewrap's arguments for it. The ways
    differ in which processes have root's rights."""

    in_words: str
    arguments: tuple[str, ...]
    inner_uid: bool = False
    """Whether process 1 of the jail drops root's rights."""
    outer_uid: bool = False
    """Whether bubblewrap itself is started without root's rights."""


USER_NAMESPACE = ("--unshare-user", "--uid", str(NOBODY), "--gid", str(NOBODY), "--cap-drop", "ALL")
AS_ROOT = Way("by root, with a uid of its own inside",
              ("--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"), inner_uid=True)
AS_OTHER = Way("by root under a uid of its own, in a user namespace", USER_NAMESPACE, outer_uid=True)
AS_USER = Way("in a user namespace", USER_NAMESPACE)


class Bubblewrap(Sandbox):
    """Starts a jail for each program, by the first `Way` that works on this machine. SandboxError if none works."""

    name = "bubblewrap"

    def __init__(self) -> None:
        program, filter = shutil.which("bwrap"), seccomp_filter()
        if program is None:
            raise SandboxError("bubblewrap is not installed: no program bwrap in PATH")
        if filter is None:
            raise SandboxError(f"no system call filter for this machine; there is one for {', '.join(MACHINES)}")
        if not hasattr(os, "pidfd_open"):
            raise SandboxError("this interpreter lacks os.pidfd_open; take a Python built for Linux 5.3 or newer")
        self.program, self.filter, self.host_files = program, filter, host_files()
        self.groups: Groups | None = find_groups()
        memory = "a control group" if self.groups else "watching it, as no control group can be made, so without what pipes hold"
        self.way = self.first_that_works([AS_ROOT, AS_OTHER] if os.geteuid() == 0 else [AS_USER])
        if self.groups is None:
            with self.start(Limits().disk_mb) as jail:
                jail.wait_until_up()
                if not can_watch(jail.pid):
                    raise SandboxError("the memory of a jail can be limited neither by a control group nor by watching it: "
                                       "/proc does not show the jail's children, files and sockets here")
        self.confines_by = f"bubblewrap {self.way.in_words}; memory by {memory}; processes by a limit for the jail's own uid"

    def first_that_works(self, ways: Sequence[Way]) -> Way:
        problems: list[str] = []
        for self.way in ways:
            try:
                if not (problem := self.does_not_work(20)):
                    return self.way
                problems.append(problem)
            except SandboxError as error:
                problems.append(str(error))
        raise SandboxError("; ".join(problems))

    def start(self, disk_mb: int) -> Jail:
        uid = own_uid() if self.way.inner_uid or self.way.outer_uid else 0
        environment = [word for name, value in ENVIRONMENT.items() for word in ("--setenv", name, value)]
        command = [self.program, "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--hostname", "jail",
                   "--as-pid-1", "--die-with-parent", *self.way.arguments, "--clearenv", *environment, *self.host_files,
                   "--perms", "1777", "--size", str(disk_mb * MEBIBYTE), "--tmpfs", "/tmp", "--symlink", "../tmp", "/dev/shm",
                   "--chdir", "/tmp", "--remount-ro", "/", "--", str(interpreter()), *INTERPRETER]
        return Jail(command, self.filter, self.groups, uid if self.way.inner_uid else 0, uid if self.way.outer_uid else None)

    def run_request(self, request: Request) -> Outcome:
        with self.start(request.limits.disk_mb) as jail:
            return jail.run(request)
