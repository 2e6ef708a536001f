"""The limits of a program, the request to run it, and its outcome."""

import marshal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from math import ceil
from typing import Literal

from routed_rl.errors import ConfigError, SandboxError

Reason = Literal["exited", "timeout", "memory", "output", "signal"]
MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class Limits:
    """Limits on one program and everything that it starts. The first limit that is exceeded ends the program."""

    wall_s: float = 5.0
    """Seconds of time from the moment at which the program may start."""
    cpu_s: float = 5.0
    """CPU seconds of each process, rounded up. All processes together can use at most `wall_s` times the number of cores."""
    memory_mb: int = 512
    """Limit in MiB, both of the address space of each process and of the memory of all processes together."""
    processes: int = 16
    """Largest number of processes and threads at one time, including the program's own first one."""
    output_bytes: int = 1 << 20
    """Limit in bytes for each of these: standard output, standard error, and every collected file."""
    disk_mb: int = 64
    """Limit in MiB of /tmp, which also holds the files that the program is given."""

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            kind = (int, float) if setting.name.endswith("_s") else (int,)
            if isinstance(value, bool) or not isinstance(value, kind) or not 0 < value < 1 << 40:
                raise ConfigError(f"sandbox limit {setting.name} must be a positive {kind[-1].__name__}, got {value!r}")
        if self.memory_mb < 32:
            raise ConfigError(f"sandbox limit memory_mb must be at least 32, which the interpreter needs, got {self.memory_mb}")


@dataclass(frozen=True)
class Outcome:
    """The end and the output of a program. Everything in it may have been written by untrusted code."""

    exit_code: int | None
    """The exit code; None unless `reason` is "exited"."""
    reason: Reason
    stdout: bytes = b""
    stderr: bytes = b""
    collected: Mapping[str, bytes] = field(default_factory=dict)
    """The contents of the files named in `Request.collect`, by name. A file is left out if it is not a regular file or has more
    than `Limits.output_bytes` bytes. Empty if the sandbox ended the program early, such as at a timeout or for too much
    output."""
    wall_s: float = 0.0
    """Seconds from the request to the end of the last process."""

    @property
    def ok(self) -> bool:
        return self.reason == "exited" and self.exit_code == 0


def check_name(name: str) -> str:
    """Return `name` if it is a plain path below the working directory; SandboxError otherwise."""
    parts = name.split("/")
    if not name or "\0" in name or len(name) > 255 or {"", ".", ".."} & set(parts):
        raise SandboxError(f"file name {name[:300]!r} is refused: a relative path without '.', '..' or empty parts is needed")
    return name


@dataclass(frozen=True)
class Request:
    """A program to run, with the arguments of `Sandbox.run`. SandboxError if a field is not valid."""

    argv: Sequence[str]
    files: Mapping[str, str | bytes]
    stdin: bytes
    limits: Limits
    collect: Sequence[str]

    def __post_init__(self) -> None:
        words = [] if isinstance(self.argv, str) else self.argv
        if not words or not all(isinstance(word, str) and "\0" not in word for word in words):
            raise SandboxError(f"argv must be a list of words without null bytes, as there is no shell, got {self.argv!r}")
        for name in (*self.files, *self.collect):
            check_name(name)
        if (size := sum(map(len, self.data.values()))) > self.limits.disk_mb * MEBIBYTE:
            raise SandboxError(f"files of {size} bytes do not fit into the sandbox's disk_mb={self.limits.disk_mb}; raise it")

    @cached_property
    def data(self) -> dict[str, bytes]:
        return {name: text.encode("utf-8", "surrogatepass") if isinstance(text, str) else bytes(text)
                for name, text in self.files.items()}

    @cached_property
    def encoded(self) -> bytes:
        """The bytes that inside.py reads: the length of the request, then the request."""
        limits = {"memory": self.limits.memory_mb * MEBIBYTE, "disk": self.limits.disk_mb * MEBIBYTE,
                  "processes": self.limits.processes, "cpu": ceil(self.limits.cpu_s), "wall": ceil(self.limits.wall_s),
                  "output": self.limits.output_bytes}
        data = marshal.dumps({"argv": list(self.argv), "files": self.data, "stdin": bytes(self.stdin), "limits": limits,
                              "collect": list(self.collect)}, 4)  # The format of Python 3.11.
        return len(data).to_bytes(8, "big") + data

    @property
    def report_size(self) -> int:
        """The largest size, in bytes, of the report that process 1 of the jail writes about this request."""
        return (3 + len(self.collect)) * 8 + len(self.collect) * self.limits.output_bytes
