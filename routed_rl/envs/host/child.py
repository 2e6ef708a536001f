"""The trainer's end of the connection to one process: start, send, receive with a time limit, kill. It knows nothing of
environments."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from routed_rl.envs.host.isolation import LIMIT, Isolation
from routed_rl.envs.host.wire import LARGEST, frame
from routed_rl.guard import GIVE_UP_S, guarded

LOOK_S = 0.25
"""Largest number of seconds between two checks whether a process that is waited for is still alive."""
SEND_S = 60.0
"""Seconds that a process may take to read a message that is sent to it."""
LAST_WORDS = 2000
"""How many bytes of the newest output are kept, so that a message can quote what a process printed before it died."""
SECRET = re.compile(
    r"(^|_)(API|TOKENS?|SECRETS?|KEYS?|PASS|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|AUTH|COOKIES?|NETRC|DSN)(_|$)"
    r"|^(AWS|AZURE|GCP|GOOGLE|WANDB|GITHUB|GITLAB|OPENAI|ANTHROPIC|SSH|DOCKER|KUBE)_|(TOKEN|SECRET|PASSWORD|APIKEY)$", re.I)
CREDENTIALS = re.compile(r"://[^/\s@]*:[^/\s@]+@")
ROOT = str(Path(__file__).parents[3])


def scrubbed(variables: dict[str, str], allowed: Collection[str] = ()) -> dict[str, str]:
    """The environment variables `variables` without secrets: those whose name looks like that of a secret, or whose value holds a
    URL with a password. Variables in `allowed` stay."""
    return {name: value for name, value in variables.items()
            if name in allowed or not (SECRET.search(name) or CREDENTIALS.search(value))}


class Child:
    """A worker process, started under `routed_rl.guard`, which ends it when the trainer dies. `setup` is the first message to the
    worker. `allowed` names environment variables that the worker may see although they look like secrets. `dead` says why the
    process can no longer be used; code that finds it set must call `kill`.

    A message is one line of JSON, `[number of the request, content]`; its answer has the same number.
    """

    def __init__(self, setup: dict[str, Any], isolation: Isolation, allowed: Collection[str]) -> None:
        python = isolation.python
        variables = scrubbed(dict(os.environ), allowed) | {"PYTHONPATH": ROOT, LIMIT: str(isolation.timeout_s)}
        # Another interpreter has libraries of its own.
        setup = setup | {"sys_path": None if python else [str(Path(entry).absolute()) for entry in sys.path]}
        self._socket, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(guarded([python or sys.executable, "-P", "-m", "routed_rl.envs.host.worker"]),
                                            stdin=theirs.fileno(), stdout=subprocess.DEVNULL,
                                            stderr=None if isolation.show_output else subprocess.PIPE,
                                            env=variables, bufsize=0, start_new_session=True)
        self._number, self._said = 0, b""
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        self.facts: dict[str, Any] | None = None
        """The worker's description of its environment, once the worker is ready. Its `pid` is that of the worker; `self.process`
        is the guard of the worker."""
        self.dead: str | None = None
        self.hung = False
        self.send(setup)

    def send(self, message: Any) -> None:
        """Send a message; WireError if it is too large. If the process does not take the message, `receive` reports that."""
        line = frame([self._number + 1, message])
        self._number += 1
        self._socket.settimeout(SEND_S)
        with contextlib.suppress(OSError):
            self._socket.sendall(line)

    def receive(self, timeout_s: float, tell: Callable[[float], None] = lambda _: None) -> Any:
        """The answer to the last message. None if the process gives no answer; then `dead` says why. An empty line from the
        process is a sign of life, which restarts the time limit. While there is no answer, `tell` is called often, with the
        seconds that were waited."""
        line, waited, looked = bytearray(), 0.0, time.monotonic()
        while self.dead is None and not line.endswith(b"\n"):
            data = self._read(min(LOOK_S, timeout_s / 4))
            passed, looked = time.monotonic() - looked, time.monotonic()
            waited += min(passed, 2 * LOOK_S)  # a trainer that was stopped for an hour has not waited for an hour
            line += data or b""
            tell(waited)
            if line.isspace():
                line.clear()
                waited = 0.0
            if data == b"":
                self.dead = self._obituary()
            elif len(line) > LARGEST:
                self.dead = f"sent a message of more than {LARGEST} bytes"
            elif waited > timeout_s and not line.endswith(b"\n"):
                self.dead, self.hung = f"took longer than {timeout_s:g} s", True
        return self._answer(line) if self.dead is None else None

    def _answer(self, line: bytearray) -> Any:
        try:
            number, answer = json.loads(line.decode("utf-8", "surrogatepass"))
            if number != self._number:
                raise ValueError(f"it has the number {number!r:.20}, not {self._number}")
            return answer
        except (ValueError, TypeError, RecursionError) as error:
            self.dead = f"sent a message that is none of ours: {error}"

    def _read(self, timeout_s: float) -> bytes | None:
        """The data that was received, b"" if the other end is closed, None if nothing was received in time."""
        self._socket.settimeout(timeout_s)
        try:
            return self._socket.recv(1 << 18)
        except TimeoutError:
            return None
        except OSError:
            return b""

    def _listen(self) -> None:
        """Keep the newest bytes that the worker prints, until every process that could print has ended. Runs in a thread of its
        own."""
        if self.process.stderr is None:  # what is printed appears, and is not kept
            return
        with self.process.stderr as pipe:
            while data := pipe.read(1 << 16):
                self._said = (self._said + data)[-LAST_WORDS:]

    def _obituary(self) -> str:
        try:
            code = self.process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            return "closed its connection"
        self._listener.join(1)
        lines = self._said.decode(errors="replace").split("\n")
        words = next((line.strip() for line in lines if line.startswith("Fatal Python error")),
                     next((line.strip() for line in reversed(lines) if line.strip()), ""))
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
        return f"{how}{f' ({words[:160]})' if words else ''}"

    def kill(self) -> None:
        """End the process at once, with everything that it has started. Calling this again has no effect."""
        if self.process.returncode is None:
            self.process.terminate()  # tells the guard to kill
            try:
                self.process.wait(GIVE_UP_S + 1)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._socket.close()
