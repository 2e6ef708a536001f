"""The trainer's end of one process: start, send, receive with a limit of time, kill. It knows nothing of environments."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Collection
from pathlib import Path
from typing import Any

from routed_rl.envs.host.wire import LARGEST, frame
from routed_rl.guard import GIVE_UP_S, guarded

LOOK_S = 0.25
"""Seconds between two looks at a process that is waited for, at most."""
LAST_WORDS = 2000
"""Bytes of the newest output that are kept, to say what a process said before it died."""
SECRET = re.compile(
    r"(^|_)(API|TOKENS?|SECRETS?|KEYS?|PASS|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|AUTH|COOKIES?|NETRC|DSN)(_|$)"
    r"|^(AWS|AZURE|GCP|GOOGLE|WANDB|GITHUB|GITLAB|OPENAI|ANTHROPIC|SSH|DOCKER|KUBE)_|(TOKEN|SECRET|PASSWORD|APIKEY)$", re.I)
CREDENTIALS = re.compile(r"://[^/\s@]*:[^/\s@]+@")
ROOT = str(Path(__file__).parents[3])


def scrubbed(variables: dict[str, str], allowed: Collection[str] = ()) -> dict[str, str]:
    """`variables` without those that look like secrets by their name, or hold a URL with a password; `allowed` ones stay."""
    return {name: value for name, value in variables.items()
            if name in allowed or not (SECRET.search(name) or CREDENTIALS.search(value))}


class Child:
    """A worker process under a guard. `dead` says why it can no longer be used; whoever finds that calls `kill`.

    A message is one line of JSON, `[number of the request, content]`; an answer bears the number of what it answers.
    """

    def __init__(self, setup: dict[str, Any], python: str | None = None, allowed: Collection[str] = ()) -> None:
        variables = scrubbed(dict(os.environ), allowed) | {"PYTHONPATH": ROOT}
        # Another interpreter has libraries of its own.
        setup = setup | {"sys_path": None if python else [str(Path(entry).absolute()) for entry in sys.path]}
        self.process = subprocess.Popen(guarded([python or sys.executable, "-P", "-m", "routed_rl.envs.host.worker"]),
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=variables,
                                        bufsize=0, start_new_session=True)
        self._pipes = [pipe for pipe in (self.process.stdin, self.process.stdout, self.process.stderr) if pipe is not None]
        self._in, self._out, self._err = (pipe.fileno() for pipe in self._pipes)
        for descriptor in (self._in, self._out, self._err):
            os.set_blocking(descriptor, False)
        self._unsent, self._partial, self._said, self._mute = bytearray(), bytearray(), b"", False
        self._lines: deque[bytearray] = deque()
        self._number = 0
        self.pid = 0
        """Of the worker itself, once it is ready; `process` is its guard."""
        self.dead: str | None = None
        self.hung = False
        self.send(setup)

    def send(self, message: Any) -> None:
        """Begin to write a message, which `receive` goes on with. WireError for one that is too large."""
        self._unsent += frame([self._number + 1, message])
        self._number += 1
        self._handle(self._in)

    def receive(self, timeout_s: float) -> Any:
        """The next answer to what was sent last, or None: then `dead` says why."""
        waited, looked = 0.0, time.monotonic()
        while self.dead is None or self._lines:
            if self._lines:
                try:
                    number, answer = json.loads(self._lines.popleft().decode("utf-8", "surrogatepass"))
                except (ValueError, TypeError, RecursionError) as error:
                    self.end_for(error)
                    continue
                if number == self._number:
                    return answer
            elif waited > timeout_s:
                self.dead, self.hung = f"gave no answer within {timeout_s:g} s", True
            else:
                self._pump(min(LOOK_S, timeout_s / 4))
                passed, looked = time.monotonic() - looked, time.monotonic()
                waited += min(passed, 2 * LOOK_S)  # a trainer that was stopped for an hour has not waited for an hour
        return None

    def end_for(self, error: Exception) -> None:
        """Believe nothing more that comes from it."""
        self._lines.clear()
        self.dead = f"sent a message that is none of ours: {error}"

    def _pump(self, timeout_s: float) -> None:
        """Wait until a pipe is ready, at most `timeout_s`, and move what can be moved."""
        poll = select.poll()
        poll.register(self._out, select.POLLIN)
        if self._unsent:
            poll.register(self._in, select.POLLOUT)
        if not self._mute:
            poll.register(self._err, select.POLLIN)
        for descriptor, _ in poll.poll(timeout_s * 1000):
            self._handle(descriptor)

    def _handle(self, descriptor: int) -> None:
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
        elif descriptor == self._in or not data:
            self._unsent.clear()
            self.dead = self.dead or (None if descriptor == self._in else self._obituary())
        else:
            self._partial += data
            if b"\n" in data:
                *lines, self._partial = self._partial.split(b"\n")
                self._lines.extend(lines)
            elif len(self._partial) > LARGEST:
                self.end_for(ValueError(f"it is longer than {LARGEST} bytes"))

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
            self.process.terminate()  # the guard's sign to kill
            try:
                self.process.wait(GIVE_UP_S + 1)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.close()
