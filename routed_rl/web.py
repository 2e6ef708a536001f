"""HTTP requests to one server. Every request ends in time, whatever the server does, and is repeated if a repeat may help.

Not covered: redirects, cookies, compression, proxies, connections that are kept open.
"""

import http.client
import json
import math
import os
import queue
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, urlsplit

from routed_rl.errors import ConfigError

PAUSE_S = 0.25
"""Seconds before the first repeat. Each further pause is twice as long."""


class Refused(RuntimeError):
    """The server answered with an error after which a repeat would not help."""


class NoAnswer(ConnectionError):
    """All attempts have failed. The message says why the last one failed."""


@dataclass(frozen=True)
class Answer:
    """The answer of a server. `whole`: whether the server marked where the answer ends, and all of the answer up to there was
    read."""

    status_code: int
    body: bytes
    whole: bool

    @property
    def text(self) -> str:
        return self.body.decode(errors="replace")

    def json(self) -> Any:
        return json.loads(self.body)


class Server:
    """A client of one server. `timeout_s` limits the wall-clock time of one request, from the look-up of the name to the last
    byte. A request is made at most `attempts` times, and an answer may have at most `largest` bytes."""

    whole_s = math.inf
    """Limit in seconds of a request with all its repeats and pauses."""

    def __init__(self, url: str, timeout_s: float, attempts: int, largest: int) -> None:
        self.parts, self.timeout_s, self.attempts, self.largest = _parts(url), timeout_s, attempts, largest
        self.base = self.parts.path.rstrip("/")
        self.place = f"{self.parts.scheme}://{self.parts.netloc}{self.base}"

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Make a request to `path` below the server's address, with `body` as JSON, and return the result of `accept` for the
        answer. NoAnswer if all attempts fail."""
        data = None if body is None else json.dumps(body).encode()
        problem, give_up = "", time.monotonic() + self.whole_s
        for attempt in range(self.attempts):
            pause = PAUSE_S * 2 ** (attempt - 1) if attempt else 0.0
            if (left := give_up - time.monotonic() - pause) <= 0:
                raise NoAnswer(f"{problem}; there was no time for attempt {attempt + 1} within {self.whole_s:g} s")
            time.sleep(pause)
            try:
                answer = self._exchange(method, path, data, min(self.timeout_s, left))
                if answer.status_code < 500 and answer.status_code not in (408, 429):
                    return self.accept(path, answer)
                problem = f"status {answer.status_code}: {self.shown(answer.text)}"
            except (OSError, http.client.HTTPException, ValueError) as error:
                problem = self.shown(str(error) if isinstance(error, TimeoutError) else f"{type(error).__name__}: {error}")
            self.failed()
        raise NoAnswer(problem)

    def accept(self, path: str, answer: Answer) -> Any:
        """Turn an answer into a result; here the answer itself. An override may raise ValueError for an answer after which the
        request should be repeated."""
        return answer

    def failed(self) -> None:
        """Called after each request that failed. An override may raise an error if a repeat is useless."""

    def headers(self) -> dict[str, str]:
        return {}

    def shown(self, text: str) -> str:
        """The start of a server's or a library's message, as one line."""
        return " ".join(text.split())[:200]

    def _exchange(self, method: str, path: str, data: bytes | None, timeout_s: float) -> Answer:
        """Make one request. It runs in a thread, because the look-up of a name and `http.client`'s loops over headers have no
        time limit."""
        kind = http.client.HTTPSConnection if self.parts.scheme == "https" else http.client.HTTPConnection
        # The port is always given; otherwise the end of an IPv6 address would be taken for a port.
        connection = kind(str(self.parts.hostname), self.parts.port or kind.default_port, timeout=timeout_s)
        found: queue.SimpleQueue[Answer | Exception] = queue.SimpleQueue()
        over, sockets = threading.Event(), list[socket.socket]()

        def work() -> None:
            try:
                connection.connect()
                sockets.append(connection.sock)
                if not over.is_set():
                    found.put(self._talk(connection, method, path, data))
            except Exception as error:
                found.put(error)
            finally:
                connection.close()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            answer = found.get(timeout=min(timeout_s, threading.TIMEOUT_MAX))
        except queue.Empty:
            answer = TimeoutError()
        finally:
            over.set()
            _end(thread, sockets)
        if isinstance(answer, TimeoutError):
            raise TimeoutError(f"no whole answer within {timeout_s:.3g} s")
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _talk(self, connection: http.client.HTTPConnection, method: str, path: str, data: bytes | None) -> Answer:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "Connection": "close", **self.headers()}
        connection.request(method, self.base + path, data, headers)
        with connection.getresponse() as answer:
            if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise Refused(f"{self.place}{path} answered with compressed data, which was not asked for")
            body = bytearray()
            while (answer.length or 0) + len(body) <= self.largest and (piece := answer.read(2**16)):
                body += piece
            if (answer.length or 0) + len(body) > self.largest:
                raise Refused(f"{self.place}{path} answered with more than {self.largest} bytes")
            if answer.length:
                raise http.client.IncompleteRead(bytes(body), answer.length)
            return Answer(answer.status, bytes(body), answer.chunked or answer.length == 0)


def _end(thread: threading.Thread, sockets: list[socket.socket]) -> None:
    """End the thread of a request by shutting down its `sockets`. A thread that still looks up a name has no socket yet; it ends
    after the look-up and sends nothing."""
    for each in sockets:
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
            thread.join(0.1)
            if thread.is_alive():  # data that still arrives can be read even after a shutdown
                os.close(each.detach())


def _parts(url: str) -> SplitResult:
    """The parts of a URL. ConfigError if it is no http or https address. The error shows only the host, because the URL may hold
    a password."""
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and parts.hostname and not parts.query and parts.port != 0 and url.isprintable()
        str(parts.hostname).encode("idna" if ":" not in str(parts.hostname) else "ascii")
    except (ValueError, AttributeError, TypeError):
        raise ConfigError("url is no server that can be asked; write http://HOST:PORT") from None
    if not fits or " " in url:
        raise ConfigError(f"url={parts.scheme}://{parts.hostname} is no server; write http://HOST:PORT")
    return parts


def free_port() -> int:
    """A port of this machine that is free now. Nothing reserves it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
