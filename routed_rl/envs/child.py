"""The trainer's end of one process: start, send, receive without blocking, watch, kill. It knows nothing of environments."""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from routed_rl.envs import wire

LOOK_S = 0.25
"""Seconds between two looks at a process that is waited for, at most."""
LAST_WORDS = 2000
"""Bytes of the newest output that are kept, to say what a process said before it died."""
SECRET = re.compile(
    r"(^|_)(API|TOKENS?|SECRETS?|KEYS?|PASS|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|AUTH|COOKIES?|NETRC|DSN)(_|$)"
    r"|^(AWS|AZURE|GCP|GOOGLE|WANDB|GITHUB|GITLAB|OPENAI|ANTHROPIC|SSH|DOCKER|KUBE)_|(TOKEN|SECRET|PASSWORD|APIKEY)$", re.I)
CREDENTIALS = re.compile(r"://[^/\s@]*:[^/\s@]+@")


def scrubbed(variables: dict[str, str]) -> dict[str, str]:
    """`variables` without those that look like secrets by their name, or hold a URL with a password."""
    return {name: value for name, value in variables.items() if not SECRET.search(name) and not CREDENTIALS.search(value)}


class Child:
    """A worker process. `dead` says why it can no longer be used; whoever finds that calls `kill`."""

    def __init__(self, setup: dict[str, Any], python: str | None = None) -> None:
        root = str(Path(__file__).parent.parent.parent)
        variables = scrubbed(dict(os.environ)) | {"PYTHONPATH": root}
        # Another interpreter has libraries of its own.
        setup = setup | {"sys_path": None if python else [str(Path(entry).absolute()) for entry in sys.path]}
        with tempfile.TemporaryFile() as page:
            page.truncate(struct.calcsize("<Q"))
            self.progress = mmap.mmap(page.fileno(), struct.calcsize("<Q"))
            command = [python or sys.executable, "-P", "-m", "routed_rl.envs.worker", str(os.getpid()), str(page.fileno())]
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                            env=variables, bufsize=0, pass_fds=[page.fileno()], start_new_session=True)
        pipes = self.process.stdin, self.process.stdout, self.process.stderr
        self._in, self._out, self._err = (pipe.fileno() for pipe in pipes if pipe is not None)
        for descriptor in (self._in, self._out, self._err):
            os.set_blocking(descriptor, False)
        self._unsent, self._received, self._said = bytearray(), bytearray(), b""
        self._mute = False
        self.dead: str | None = None
        self.hung = False
        self.garbled = False
        """Whether it is dead because of a message that is none of ours; what it was working on by then is not known."""
        self.send(setup)

    def send(self, message: Any) -> None:
        """Queue a message; `pump` writes it."""
        self._unsent += wire.frame(message)

    def take(self) -> list[Any]:
        """The messages that have arrived; one that is none of ours is the end of the process."""
        try:
            return wire.take_frames(self._received)
        except wire.WireError as error:
            self.end_for(error)
            return []

    def end_for(self, error: wire.WireError) -> None:
        """Believe nothing more that comes from it."""
        self.dead, self.garbled = f"sent {error}", True

    def in_work(self) -> int:
        """Number of the request << 32 | place of the item that the worker has last begun."""
        return struct.unpack("<Q", self.progress[:8])[0]

    def receive(self, timeout_s: float) -> Any:
        """The next message, or None: then `dead` says why."""
        waited, looked = 0.0, time.monotonic()
        while self.dead is None:
            if messages := self.take():
                return messages[0]
            if waited > timeout_s:
                self.dead, self.hung = f"gave no answer within {timeout_s:g} s", True
                break
            pump([self], LOOK_S)
            passed, looked = time.monotonic() - looked, time.monotonic()
            waited += min(passed, 2 * LOOK_S)  # a trainer that was stopped for an hour has not waited for an hour
        return None

    def descriptors(self) -> list[tuple[int, int]]:
        """What to wait for."""
        wanted = [(self._out, select.POLLIN)]
        wanted += [(self._in, select.POLLOUT)] if self._unsent else []
        return wanted + ([] if self._mute else [(self._err, select.POLLIN)])

    def handle(self, descriptor: int) -> None:
        """Move what can be moved through a pipe that is ready."""
        try:
            if descriptor == self._in:
                del self._unsent[:os.write(descriptor, bytes(self._unsent[:1 << 16]))]
                return
            data = os.read(descriptor, 1 << 18)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if descriptor == self._err:
            self._mute = not data
            self._said = (self._said + data)[-LAST_WORDS:]
        elif data and descriptor == self._out:
            self._received += data
        elif self.dead is None:
            self.dead = self._obituary()

    def _obituary(self) -> str:
        try:
            code = self.process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            return "closed its pipe"
        with contextlib.suppress(OSError):
            self._said = (self._said + (os.read(self._err, 1 << 16) or b""))[-LAST_WORDS:]
        lines = self._said.decode(errors="replace").split("\n")
        words = next((line.strip() for line in lines if line.startswith("Fatal Python error")),
                     next((line.strip() for line in reversed(lines) if line.strip()), ""))
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
        return f"{how}{f' ({words[:160]})' if words else ''}"

    def kill(self) -> None:
        """At once, with whatever it started; safe to call twice."""
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def pump(children: list[Child], timeout_s: float) -> None:
    """Wait until a pipe of one of `children` is ready, at most `timeout_s`, and move what can be moved."""
    poll, owner = select.poll(), {}
    for child in children:
        for descriptor, event in child.descriptors():
            owner[descriptor] = child
            poll.register(descriptor, event)
    for descriptor, _ in poll.poll(timeout_s * 1000):
        owner[descriptor].handle(descriptor)
