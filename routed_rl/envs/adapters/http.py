"""JSON over HTTP with one server: time-outs on every call, retries where a repeat is safe, errors without secrets.

Not covered: redirects, cookies, compression.
"""

from __future__ import annotations

import http.client
import json
import math
import os
import time
from typing import Any
from urllib.parse import SplitResult, urlsplit

from routed_rl.errors import ConfigError

LARGEST = 64 * 2**20
"""Bytes of an answer; more is an error."""
AGAIN = (408, 429, 500, 502, 503, 504)
"""Answers after which a repeat may help."""
PAUSE_S = 0.25
"""Before the first repeat; doubled each time."""


class Refused(RuntimeError):
    """The server answered, and a repeat would not help."""


class JsonServer:
    """`call(path, body)` posts JSON and returns the JSON object that comes back.

    `timeout_s` bounds connecting, each wait for data, and the whole answer, so a dead server costs about `attempts` times
    that, plus the pauses.
    The value of the environment variable `token_env` is sent as a bearer token and never stands in an error.
    """

    def __init__(self, url: str, timeout_s: float = 30.0, attempts: int = 3, token_env: str | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or not _port_fits(parts):
            raise ConfigError(f"url={parts.scheme}://{parts.hostname} is no server; write http://HOST:PORT")
        if parts.username or parts.password:
            raise ConfigError(f"url has a password for {parts.hostname}; put it into an environment variable, set token_env=NAME")
        if not 0 < timeout_s < math.inf or not attempts >= 1:
            raise ConfigError(f"timeout_s must be > 0 and attempts >= 1, got {timeout_s} and {attempts}")
        if token_env and not os.environ.get(token_env):
            raise ConfigError(f"token_env={token_env}: there is no such environment variable; export it, or leave token_env out")
        self.parts, self.timeout_s, self.attempts = parts, timeout_s, attempts
        self.token_env = token_env
        self.place = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"

    def call(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """ConnectionError once all attempts have failed; Refused, with the server's own words, where it says no."""
        data = json.dumps(body).encode()
        problem = ""
        for attempt in range(self.attempts):
            if attempt:
                time.sleep(PAUSE_S * 2 ** (attempt - 1))
            try:
                status, text = self._post(path, data)
            except (OSError, http.client.HTTPException) as error:
                problem = f"{type(error).__name__}: {error}"
                continue
            if status == 200:
                return self._parsed(path, text)
            problem = f"status {status}: {self._shown(text)}"
            if status not in AGAIN:
                raise Refused(f"{self.place}{path} refused: {problem}")
        raise ConnectionError(f"{self.place}{path} gave no answer in {self.attempts} attempts of {self.timeout_s:g} s: "
                              f"{problem}; is the server up? (timeout_s and attempts are settings)")

    def _post(self, path: str, data: bytes) -> tuple[int, bytes]:
        kind = http.client.HTTPSConnection if self.parts.scheme == "https" else http.client.HTTPConnection
        assert self.parts.hostname is not None
        connection = kind(self.parts.hostname, self.parts.port, timeout=self.timeout_s)
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if token := self._token():
            headers["Authorization"] = f"Bearer {token}"
        try:
            connection.request("POST", self.parts.path.rstrip("/") + path, data, headers)
            answer = connection.getresponse()
            return answer.status, self._read(answer, path)
        finally:
            connection.close()

    def _read(self, answer: http.client.HTTPResponse, path: str) -> bytes:
        # In pieces: a server that sends a byte now and then would never run into the time-out of one wait.
        text, deadline = bytearray(), time.monotonic() + self.timeout_s
        while piece := answer.read1(2**16):
            text += piece
            if len(text) > LARGEST:
                raise Refused(f"{self.place}{path} answered with more than {LARGEST} bytes")
            if time.monotonic() > deadline:
                raise TimeoutError("the answer was not complete in time")
        return bytes(text)

    def _parsed(self, path: str, text: bytes) -> dict[str, Any]:
        try:
            found = json.loads(text)
        except ValueError as error:
            raise Refused(f"{self.place}{path} answered with what is no JSON: {self._shown(text)}") from error
        if not isinstance(found, dict):
            raise Refused(f"{self.place}{path} answered with a {type(found).__name__}, not a JSON object")
        return found

    def _token(self) -> str | None:
        return os.environ.get(self.token_env) if self.token_env else None

    def _shown(self, text: bytes) -> str:
        """The start of an answer, in one line, without the token: a server may repeat what it was sent."""
        shown = " ".join(text.decode(errors="replace").split())
        token = self._token()
        return (shown.replace(token, "***") if token else shown)[:200]


def _port_fits(parts: SplitResult) -> bool:
    try:
        return parts.port != 0
    except ValueError:
        return False
