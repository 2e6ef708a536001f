"""Limits the memory of a whole jail: by a control group if this process may make one, or else by watching the jail.

Without a control group a jail can exceed its limit for `WATCH_S` seconds, the time between two counts of its memory. A count
includes the mapped memory of processes, files with their inodes, and the largest size that each socket can have. A count does not
include pipes, which hold up to 64 MiB for one user.
"""

import atexit
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

WATCH_S = 0.02
PREFIX = "routed-rl-"


CAPS = ("memory.max", "memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
EVENTS = ("memory.events", "memory.oom_control")
"""`CAPS` and `EVENTS` are names of files of a control group. Version 1 of the kernel's interface has other files than version
2."""


@dataclass
class Group:
    """One control group with a limit in bytes. It serves one jail at a time; when it is empty again, it serves the next one."""

    path: Path
    limit: int
    kills_before: int = 0

    def add(self, pid: int) -> None:
        self.kills_before = self.kills()
        (self.path / "cgroup.procs").write_text(str(pid))

    def kills(self) -> int:
        """The number of processes that the kernel has killed for memory so far."""
        (events,) = self.existing(EVENTS)
        return next((int(line.split()[1]) for line in events.read_text().splitlines() if line.startswith("oom_kill ")), 0)

    def existing(self, names: tuple[str, ...]) -> list[Path]:
        return [self.path / name for name in names if (self.path / name).exists()]

    def passed(self) -> bool:
        return self.kills() > self.kills_before


class Groups:
    """Control groups below this process's own, made as needed and removed at exit."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.free: dict[int, list[Group]] = {}
        self.all: list[Group] = []
        self.numbers, self.lock, self.owner = count(), threading.Lock(), os.getpid()
        atexit.register(self.remove)

    def take(self, limit: int) -> Group:
        with self.lock:
            if self.owner != os.getpid():  # After a fork the groups so far belong to the other process.
                self.free, self.all, self.owner = {}, [], os.getpid()
            if free := self.free.get(limit):
                return free.pop()
            path = self.home / f"{PREFIX}{os.getpid()}-{id(self):x}-{next(self.numbers)}"
            path.mkdir()
            group = Group(path, limit)
            self.all.append(group)
        for file in group.existing(CAPS):
            file.write_text(str(limit))
        for file in group.existing(("memory.swap.max",)):
            file.write_text("0")
        return group

    def give_back(self, group: Group) -> None:
        with self.lock:
            self.free.setdefault(group.limit, []).append(group)

    def remove(self) -> None:
        for group in self.all if self.owner == os.getpid() else ():
            try:
                group.path.rmdir()
            except OSError:
                pass  # A jail that was just killed may still be in it; `sweep` of a later run removes it.
        self.all, self.free = [], {}


def candidates() -> Iterator[Path]:
    """The control groups below which a group could be made: this process's own group, then those above it."""
    own = {words[1]: words[2] for line in Path("/proc/self/cgroup").read_text().splitlines() if (words := line.split(":", 2))}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        root, place = before.split()[3:5]
        kind, _, options = after.split()[:3]
        v1 = kind == "cgroup" and "memory" in options.split(",")
        if not v1 and kind != "cgroup2":
            continue
        path = next((where for names, where in own.items() if ("memory" in names.split(",") if v1 else not names)), "/")
        inner = Path(os.path.relpath(path, root)) if path.startswith(root) else Path()
        for folder in (inner, *inner.parents):
            yield Path(place) / folder


def sweep(home: Path) -> None:
    """Remove the empty groups below `home` that belonged to processes which have ended."""
    for path in home.glob(f"{PREFIX}*"):
        owner = path.name.removeprefix(PREFIX).split("-")[0]
        if not Path("/proc", owner).exists():
            try:
                path.rmdir()
            except OSError:
                pass  # It is not empty after all, or another process was first.


def find_groups() -> Groups | None:
    """Control groups that can really limit memory, or None if none can be made."""
    try:
        places = list(candidates())
    except OSError:
        return None
    for home in places:
        groups = Groups(home)
        try:
            sweep(home)
            group = groups.take(64 << 20)
            if int(group.existing(CAPS)[0].read_text()) == group.limit:
                group.kills()
                groups.give_back(group)
                return groups
        except (OSError, IndexError, ValueError):
            pass  # This place has no files for memory, or we may not write them.
        groups.remove()
    return None


INODE = 2048
"""Largest number of bytes that the kernel needs for a file in memory and its name."""
SOCKETS = {"0001": 213_000, "0002": 11 * 213_000, "0005": 213_000}
"""For each kind of socket, the largest number of bytes that wait in one socket. A datagram socket also holds ten messages of
other sockets."""
PROPORTIONAL = ("Pss_Anon:", "Pss_Shmem:")


def passes(pid: int, cap: int) -> bool:
    """Whether the processes of a jail hold more than `cap` bytes; `pid` is the jail's process 1. An exact count, in which shared
    memory counts once, takes longer, so it is made only if the quick count is above the cap."""
    beside = _files(pid) + _sockets(pid)
    return beside + _mapped(pid, "status", ("RssAnon:", "RssShmem:")) > cap and (
        beside + _mapped(pid, "smaps_rollup", PROPORTIONAL) > cap)


def can_watch(pid: int) -> bool:
    """Whether the memory of the jail with the process 1 `pid` can be watched: this process can read the files in /proc that
    `passes` needs."""
    shown = (Path(f"/proc/{pid}/task/{pid}/children"), Path(f"/proc/{pid}/net/unix"))
    return all(path.exists() for path in shown) and _files(pid) > 0 and _mapped(pid, "smaps_rollup", PROPORTIONAL) > 0


def _mapped(pid: int, file: str, fields: tuple[str, ...]) -> int:
    """The sum of the numbers in the lines of /proc/PID/`file` that begin with one of `fields`, in bytes, over the process `pid`
    and all its descendants."""
    total, waiting = 0, [pid]
    while waiting:
        pid = waiting.pop()
        try:
            total += sum(1024 * int(line.split()[1]) for line in Path(f"/proc/{pid}/{file}").read_text().splitlines()
                         if line.startswith(fields))
            for thread in os.listdir(f"/proc/{pid}/task"):
                waiting += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split())
        except OSError:
            pass  # The process has ended in the meantime.
    return total


def _files(pid: int) -> int:
    try:
        found = os.statvfs(f"/proc/{pid}/root/tmp")
    except OSError:
        return 0
    return (found.f_blocks - found.f_bfree) * found.f_frsize + (found.f_files - found.f_ffree) * INODE


def _sockets(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/net/unix").read_text().splitlines()[1:]
    except OSError:
        return 0
    return sum(SOCKETS[line.split()[4]] for line in lines)
