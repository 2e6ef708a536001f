"""A server that sends whatever it likes, byte by byte: every request is over in time, and no token gets out."""

from __future__ import annotations

import socket
import socketserver
import threading
import time
import traceback
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

import pytest

from routed_rl import web
from routed_rl.envs import Task, load_environments
from routed_rl.envs.adapters.http import JsonServer
from routed_rl.envs.adapters.remote import RemoteEnvironment
from routed_rl.errors import ConfigError, TaskError
from routed_rl.web import Refused
from tests.envs.server import Server

HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
SCORE = b'{"reward": 1}'
WHOLE = HEAD + b"Content-Length: 13\r\n\r\n" + SCORE
"""Its end is known by the length alone, where the connection is kept."""


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(web, "PAUSE_S", 0.01)


@contextmanager
def raw(*answers: tuple[bytes, bytes]):
    """A server that answers each connection with some bytes and then others without end; the last pair goes for all that follow.

    Yields its URL and what was asked. `{token}` stands for what came as Authorization.
    """
    asked: list[bytes] = []

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            asked.append(self.request.recv(65536))
            first, forever = answers[min(len(asked), len(answers)) - 1]
            token = next((line[15:] for line in asked[-1].split(b"\r\n") if line.startswith(b"Authorization: ")), b"")
            with suppress(OSError):
                self.request.sendall(first.replace(b"{token}", token))
                while forever:
                    self.request.sendall(forever)
                    time.sleep(0.002 if len(forever) < 1000 else 0)

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.block_on_close = True, False
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", asked
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("first", "forever"), [
    (HEAD, b"A: b\r\n"), (HEAD + b"A: ", b"b"), (b"", b"HTTP/1.1 100 Continue\r\n\r\n"), (b"", b"HTTP/1.1 100 C\r\n\r\n" * 4000),
    (CHUNKED + b"1", b";a=b"), (CHUNKED + b"0\r\n", b"A: b\r\n"), (CHUNKED + b"0\r\n", b"A: b\r\n" * 9000),
    (CHUNKED, b"1\r\n \r\n"), (HEAD + b"Content-Length: 999\r\n\r\n", b" "), (HEAD + b"\r\n", b" "), (b"HTTP/1.1 200 ", b"x"),
    (b"", b"y")],
    ids=["headers", "a header", "100", "100 at full speed", "chunk extension", "trailers", "trailers at full speed", "chunks",
         "drip", "no length", "status line", "no status"])
def test_no_answer_without_end_outlasts_the_deadline(first, forever):
    before = set(threading.enumerate())
    with raw((first, forever)) as (url, asked):
        begin = time.monotonic()
        with pytest.raises(ConnectionError, match=r"gave no answer in 1 attempts of 0.3 s"):
            JsonServer(url, timeout_s=0.3, attempts=1).call("/score", {})
        assert time.monotonic() - begin < 1.5 and len(asked) == 1
        mine = [thread for thread in set(threading.enumerate()) - before if thread.name.endswith("(work)")]
        for thread in mine:
            thread.join(5)
        assert not any(thread.is_alive() for thread in mine)


def test_a_look_up_of_a_name_that_stalls_is_given_up(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: time.sleep(1.5))
    begin = time.monotonic()
    with pytest.raises(ConnectionError, match=r"no whole answer within 0.2 s"):
        JsonServer("http://somewhere", timeout_s=0.2, attempts=1).call("/score", {})
    assert time.monotonic() - begin < 1


@pytest.mark.parametrize("cut", [
    HEAD + b"Content-Length: 50\r\n\r\n" + SCORE, CHUNKED + b"40\r\n" + SCORE, CHUNKED + b"d\r\n" + SCORE, HEAD + b"\r\n{\"rew",
    HEAD + b"Content-Le", b"HTTP/1.1 2", b""])
def test_an_answer_cut_short_is_asked_for_again(cut):
    with raw((cut, b""), (WHOLE, b"")) as (url, asked):
        assert JsonServer(url, timeout_s=3).call("/score", {}) == {"reward": 1}
        assert len(asked) == 2
    with raw((cut, b"")) as (url, asked), pytest.raises(ConnectionError, match="in 2 attempts"):
        JsonServer(url, timeout_s=3, attempts=2).call("/score", {})


def test_a_connection_that_the_server_keeps_open_costs_no_time():
    with raw((WHOLE, b" ")) as (url, _):
        begin = time.monotonic()
        assert JsonServer(url, timeout_s=5).call("/score", {}) == {"reward": 1}
        assert time.monotonic() - begin < 2


@pytest.mark.parametrize(("answer", "message"), [
    (HEAD + b"Content-Length: 99999999999999999999\r\n\r\n", "more than"), (CHUNKED + b"fffffffff\r\n", "more than|no answer"),
    (HEAD + b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc", "compressed"),
    (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/x\r\nContent-Length: 0\r\n\r\n", "status 302"),
    (HEAD + b"Content-Length: 100000\r\n\r\n" + b"[" * 100000, "no JSON")], ids=["length", "chunk", "gzip", "redirect", "deep"])
def test_what_is_too_large_compressed_or_elsewhere_is_refused(answer, message):
    with raw((answer, b"")) as (url, asked):
        with pytest.raises((Refused, ConnectionError), match=message):
            JsonServer(url, timeout_s=2, attempts=1).call("/score", {})
        assert len(asked) == 1


@pytest.mark.parametrize("answer", [
    b"{token}\r\n\r\n", b"HTTP/1.1 {token} OK\r\n\r\n", HEAD + b"{token}\r\n\r\nno", CHUNKED + b"{token}\r\n",
    b"HTTP/1.1 401 {token}\r\n\r\n{token}", HEAD + b"Content-Length: {token}\r\n\r\n{token}",
    b"HTTP/1.1 302 Found\r\nLocation: http://x/{token}\r\n\r\n{token}", HEAD + b'\r\n{"{token}": 1}',
    HEAD + b'\r\n{"reward": "{token}"}', HEAD + b'\r\n{"reward": 1, "{token}": 1}', HEAD + b'\r\n["{token}"]',
    b"HTTP/1.1 503 {token}\r\n\r\n{token}", HEAD + b'\r\n{"tasks": ["{token}"]}',
    HEAD + b'\r\n{"reward": 1, "flags": {"{token}": 1}}', HEAD + b'\r\n{"tasks": [{"prompt": "say {token}"}]}'])
def test_no_answer_brings_the_token_into_an_error_or_a_file(monkeypatch, answer):
    monkeypatch.setenv("GUESS_TOKEN", "s3cr%t'<&x")
    with raw((answer, b"")) as (url, asked):
        environment = RemoteEnvironment(url, timeout_s=3, attempts=1, token_env="GUESS_TOKEN")
        for call in (lambda: next(environment.tasks("train", 0)), lambda: environment.score(Task("?"), "1")):
            try:
                said = repr(call())
            except Exception:
                said = traceback.format_exc()
            assert asked and "s3cr" not in said


@pytest.mark.parametrize("token", ["s3cret\nX-Y: 1", "s3cret t", "s3crät", "s3cret\x7f"])
def test_a_token_that_no_header_can_carry_is_refused_unseen_and_an_end_of_line_after_it_does_no_harm(monkeypatch, token):
    monkeypatch.setenv("GUESS_TOKEN", token)
    with pytest.raises(ConfigError, match="token_env=GUESS_TOKEN: its value has characters") as caught:
        RemoteEnvironment("http://host", token_env="GUESS_TOKEN")
    assert "s3cr" not in str(caught.value)
    monkeypatch.setenv("GUESS_TOKEN", "s3cret\n")
    assert RemoteEnvironment("http://host", token_env="GUESS_TOKEN").server.headers() == {"Authorization": "Bearer s3cret"}


@pytest.mark.parametrize("settings", [{"url": "http://[::1"},
                                      {"url": 3}, {"url": "http://a b"}, {"url": f"http://{'a' * 70}.org"},
                                      {"url": "http://host/\n"}, {"url": "http://h", "timeout_s": float("nan")},
                                      {"url": "http://h", "timeout_s": "1"}, {"url": "http://h", "attempts": True}])
def test_settings_that_cannot_be_asked_with_are_refused_before_anything_is_sent(settings):
    with pytest.raises(ConfigError, match="is no server|timeout_s must be"):
        RemoteEnvironment(**settings)


def test_the_token_reaches_the_process_of_the_environment_that_names_it_and_no_other(monkeypatch):
    monkeypatch.setenv("GUESS_TOKEN", "s3cret")
    monkeypatch.setenv("OTHER_TOKEN", "other1")
    with Server(token="s3cret") as server:
        path = "routed_rl.envs.adapters.remote:RemoteEnvironment"
        there = load_environments({"x": {"path": path, "url": server.url, "token_env": "GUESS_TOKEN"}})[0].environment
        assert len(list(islice(there.tasks("train", 0), 3))) == 3
        variables = Path(f"/proc/{there.child(0).facts['pid']}/environ")
        if variables.exists():
            assert b"s3cret" in variables.read_bytes() and b"other1" not in variables.read_bytes()
        there.rebuild({"url": server.url, "token_env": "OTHER_TOKEN"})
        with pytest.raises(TaskError, match="status 403: you sent 'Bearer"):
            next(there.tasks("train", 0))
        there.close()
