"""Which processes of jails there are, by looking at /proc."""

from __future__ import annotations

import os
from pathlib import Path

MARK = b"What runs as process 1 inside a jail"
"""From the text that bubblewrap and process 1 have on their command lines."""


def stat_of(pid: str) -> tuple[str, int]:
    """State and parent."""
    state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    return state, int(parent)


def of_jails() -> list[int]:
    """Processes of jails that this process started or that nobody looks after, and its zombies."""
    everyone: dict[int, tuple[str, int, bool]] = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            everyone[int(pid)] = (*stat_of(pid), MARK in Path(f"/proc/{pid}/cmdline").read_bytes())
        except OSError:
            pass  # It has ended since.

    def starter(pid: int) -> int:
        while pid in everyone and everyone[pid][2]:
            pid = everyone[pid][1]
        return pid

    return sorted(pid for pid, (state, parent, marked) in everyone.items()
                  if (marked and starter(pid) in (os.getpid(), 1)) or (state == "Z" and parent == os.getpid()))
