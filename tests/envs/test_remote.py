"""The remote protocol against a real server on this machine: what it carries, and what becomes of each fault."""

from __future__ import annotations

import socket
import time
from itertools import islice

import pytest

from routed_rl import web
from routed_rl.envs import Conversation, Environment, EpisodicEnvironment, LoadedEnvironment, Score, Scorer, task_stream
from routed_rl.envs.adapters import http
from routed_rl.envs.adapters.http import JsonServer
from routed_rl.envs.adapters.remote import RemoteEnvironment, RemoteEpisodes
from routed_rl.envs.build import build
from routed_rl.envs.loading import load_environment
from routed_rl.errors import ConfigError, TaskError
from routed_rl.web import Refused
from tests.envs.server import Server
from tests.tiers import tiered


@pytest.fixture
def server():
    with Server() as running:
        yield running


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(web, "PAUSE_S", 0.01)


def remote(server: Server, **settings) -> RemoteEnvironment:
    return RemoteEnvironment(server.url, **{"timeout_s": 0.5} | settings)


def test_tasks_come_in_pieces_and_all_of_them_once(server):
    environment = build("x", "routed_rl.envs.adapters.remote:RemoteEnvironment", {"url": server.url})
    assert isinstance(environment, Environment) and not isinstance(environment, EpisodicEnvironment)
    tasks = list(environment.tasks("train", 3))
    assert [task.prompt[0]["content"] for task in tasks] == [f"guess {3 + n}" for n in range(100)]
    assert [body["start"] for _, body in server.requests] == [0, 64]
    held = next(environment.tasks("eval", 3))
    assert held.prompt[0]["content"] == "guess 103"


def test_a_score_is_the_servers(server):
    environment = remote(server)
    task = next(environment.tasks("train", 0))
    assert environment.score(task, "it is 0") == Score(1.0, 1.0, ["lucky"], {"one": 1})
    assert environment.score(task, "\ud83d\ude00 \x00 7").reward == 0.0
    assert server.requests[-1][1]["task"] == {"prompt": task.prompt, "data": task.data}


def test_an_episode_is_played_on_the_server(server):
    environment = RemoteEpisodes(server.url)
    assert isinstance(environment, EpisodicEnvironment)
    task = next(environment.tasks("train", 5))
    first, second = Conversation(environment, task), Conversation(environment, task)
    assert first.messages[-1]["content"] == "0 or another"
    assert first.reply("4") == [{"role": "user", "content": "again"}]
    assert first.reply("0") == [] and first.outcome == Score(1.0, 1.0, metrics={"turns": 2})
    for _ in range(3):
        second.reply("no")
    assert second.outcome == Score(0.0, metrics={"turns": 3}) and server.requests[-1][0] == "/episode/cut"
    ids = [body["episode"] for path, body in server.requests if path.startswith("/episode")]
    assert len(set(ids)) == 2 and len(ids) == 3 + 5


@pytest.mark.parametrize("fault", tiered(["drop", "hang", "drip", "500", "503", "429"], slow=["drip"]))
def test_a_passing_fault_is_repeated_and_a_lasting_one_is_an_error_in_time(server, fault):
    environment = remote(server, timeout_s=0.3)
    task = next(environment.tasks("train", 0))
    server.fault = lambda path, times: fault if times < 2 else ""
    assert environment.score(task, "0").reward == 1.0 and len(server.requests) == 1 + 3
    server.fault, begin = lambda path, times: fault, time.monotonic()
    message = r"127.0.0.1:\d+/api/score gave no answer in 3 attempts of 0.3 s: .*is the server up"
    with pytest.raises(ConnectionError, match=message):
        environment.score(task, "0")
    assert time.monotonic() - begin < 3 and len(server.requests) == 4 + 3


@pytest.mark.parametrize(("fault", "message"), [
    ("404", "status 404: sorry, nobody"), ("400", "refused"), ("<html>", "no JSON: <html>"), ("[1]", "a list, not a JSON object"),
    ('{"solve": 1}', "reward is needed|needs reward"), ('{"reward": 1, "price": 2}', "price"), ('{"reward": "much"}', "much")])
def test_a_wrong_answer_is_an_error_at_once_and_never_a_reward(server, fault, message):
    environment = remote(server)
    task = next(environment.tasks("train", 0))
    server.fault = lambda path, times: fault
    with pytest.raises((Refused, ValueError), match=message):
        environment.score(task, "0")
    assert len(server.requests) == 2
    scorer = Scorer({"x": LoadedEnvironment("x", environment)}, 1.0)
    assert scorer.score_many("x", [(task, "0")]) == [None] and scorer.failed["x"] == 1


def test_nan_from_the_server_is_a_failure(server):
    environment = remote(server)
    task = next(environment.tasks("train", 0))
    server.fault = lambda path, times: '{"reward": NaN}'
    scorer = Scorer({"x": LoadedEnvironment("x", environment)}, 1.0)
    assert scorer.score_many("x", [(task, "0")]) == [None] and "not finite" in scorer.last_error["x"]


def test_an_answer_without_end_is_cut_off(server, monkeypatch):
    monkeypatch.setattr(http, "LARGEST", 1000)
    server.fault = lambda path, times: "[" + "1," * 5000
    with pytest.raises(Refused, match="more than 1000 bytes"):
        JsonServer(server.url).call("/tasks", {})


def test_no_server_is_one_clear_line():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(TaskError, match="environment x failed to make tasks: ConnectionError: .*refused.*is the server up"):
        next(task_stream(LoadedEnvironment("x", RemoteEnvironment(url)), "train", 0))


def test_the_token_is_sent_and_never_shown(monkeypatch):
    monkeypatch.setenv("GUESS_TOKEN", "s3cret")
    with Server(token="s3cret") as server:
        environment = remote(server, token_env="GUESS_TOKEN")
        assert len(list(islice(environment.tasks("train", 0), 5))) == 5
        with pytest.raises(Refused, match="status 403: you sent ''"):
            next(remote(server).tasks("train", 0))
        for fault in ("404", "500"):
            server.fault = lambda path, times, fault=fault: fault
            with pytest.raises((Refused, ConnectionError), match=r"sorry, Bearer \*\*\*") as caught:
                next(environment.tasks("train", 0))
            assert "s3cret" not in repr(caught.value)
    assert "s3cret" not in repr(vars(environment.server))


@pytest.mark.parametrize(("settings", "message"), [
    ({"url": "ftp://host"}, "is no server"), ({"url": "localhost:80"}, "is no server"),
    ({"url": "http://host:99999"}, "is no server"),
    ({"url": "http://me:hunter2@host"}, "token_env=NAME"), ({"url": "http://host", "timeout_s": 0}, "timeout_s must be > 0"),
    ({"url": "http://host", "token_env": "NOT_THERE"}, "no such environment variable")])
def test_wrong_settings_are_refused_without_showing_a_password(settings, message):
    with pytest.raises(ConfigError, match=message) as caught:
        RemoteEnvironment(**settings)
    assert "hunter2" not in str(caught.value)


@pytest.mark.slow
def test_a_server_that_hangs_is_named_before_the_limit_of_the_process_ends_it():
    """Three attempts of .9 s do not fit into 2 s: the process would be killed over them, and nobody would hear of the server."""
    with Server() as server:
        settings = {"path": "routed_rl.envs.adapters.remote:RemoteEnvironment", "url": server.url, "timeout_s": 0.9}
        environment = load_environment("x", settings | {"isolate": {"timeout_s": 2}}).environment
        task = next(environment.tasks("train", 0))
        server.fault = lambda path, times: "hang"
        with pytest.raises(TaskError, match="3 attempts of 0.9 s: .*no time for attempt 3 within 1.8 s.*is the server up"):
            environment.score(task, "0")  # type: ignore[union-attr]
        assert environment.restarts == 0  # type: ignore[union-attr]
        environment.close()  # type: ignore[union-attr]


@pytest.mark.parametrize(("url", "asked"), [
    ("http://[::1]", ("::1", 80)), ("https://[::1]:8443/api", ("::1", 8443)), ("https://host", ("host", 443))])
def test_an_address_of_ipv6_and_https_are_asked_where_they_say(url, asked, monkeypatch):
    seen = []
    monkeypatch.setattr("socket.create_connection", lambda address, *_: seen.append(address) or (_ for _ in ()).throw(OSError))
    with pytest.raises(ConnectionError):
        JsonServer(url, attempts=1).call("/tasks", {})
    assert seen == [asked]
