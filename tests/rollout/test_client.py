"""A server that hangs, breaks or dies: bounded tries, then an error that names it. Real sockets."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from routed_rl import web
from routed_rl.config import RolloutConfig
from routed_rl.errors import RolloutError
from routed_rl.rollout.client import PolicyClient


class Server:
    """Answers `/v1/models`; `/health` as `behave` says."""

    def __init__(self) -> None:
        outer = self
        self.calls, self.behave = 0, lambda: (200, {})

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/v1/models":
                    status, body = 200, {"data": [{"id": "m", "root": "/models/m", "max_model_len": 64}]}
                else:
                    outer.calls += 1
                    status, body = outer.behave()
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps(body).encode())

            def log_message(self, *arguments) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.handle_error = lambda *_: None  # a client that gave up; told, it would be on the screen of a later test
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def server():
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(web, "PAUSE_S", 0.01)


def connect(url: str, **settings) -> PolicyClient:
    config = RolloutConfig(engine="vllm_server", urls=[url], **{"timeout_s": 0.3, "retries": 2} | settings)
    return PolicyClient(url, config, 1, lambda: None)


def test_a_server_that_hangs_is_given_up_in_bounded_time(server):
    client = connect(server.url)
    server.behave = lambda: (time.sleep(3), (200, {}))[1]
    begin = time.monotonic()
    with pytest.raises(RolloutError, match=r"failed 3 times at GET /health, last: no whole answer within 0.3 s"):
        client._get(f"{server.url}/health")
    assert time.monotonic() - begin < 2.5 and server.calls == 3


def test_a_server_that_breaks_is_asked_again_and_one_that_recovers_is_used(server):
    client = connect(server.url)
    server.behave = lambda: (500, {}) if server.calls < 3 else (200, {"fine": 1})
    assert client._get(f"{server.url}/health") == {"fine": 1} and server.calls == 3
    server.calls, server.behave = 0, lambda: (503, {"why": "busy"})
    with pytest.raises(RolloutError, match="status 503"):
        client._get(f"{server.url}/health")


def test_what_a_server_refuses_is_not_asked_again(server):
    client = connect(server.url)
    server.behave = lambda: (400, {"error": "token 99 is not in the vocabulary"})
    with pytest.raises(RolloutError, match="token 99"):
        client._get(f"{server.url}/health")
    assert server.calls == 1


def test_a_server_without_the_endpoints_for_development_says_how_to_start_it(server):
    client = connect(server.url)
    server.behave = lambda: (404, {})
    with pytest.raises(RolloutError, match="VLLM_SERVER_DEV_MODE=1"):
        client._get(f"{server.url}/health")


@pytest.mark.parametrize(("answer", "missing"), [({}, "vllm_config"), ("busy", "vllm_config"), ([], "vllm_config"),
                                                 ({"vllm_config": {}}, "model_config"),
                                                 ({"vllm_config": {"model_config": {"dtype": "float32"}}}, "logprobs_mode")])
def test_settings_that_a_server_does_not_tell_are_named(server, answer, missing):
    client = connect(server.url)
    server.behave = lambda: (200, answer)
    with pytest.raises(RolloutError, match=f"answers /server_info without {missing}; it must be a `vllm serve`"):
        client.get_server_info()


def test_completions_that_a_server_does_not_send_are_named(server):
    client = connect(server.url)
    client.session.ask = lambda *_: SimpleNamespace(status_code=200, json=dict, text="")
    with pytest.raises(RolloutError, match="answers /v1/completions without choices"):
        client.complete([[1]], "m", {})


WHOLE = {"prompt_token_ids": [1], "token_ids": [2], "logprobs": {"tokens": ["token_id:2"], "token_logprobs": [-1.0],
                                                                 "top_logprobs": [None]}}


@pytest.mark.parametrize(("choices", "problem"), [
    ([WHOLE], "with 1 completions in place of 2"), ([WHOLE] * 3, "with 3 completions in place of 2"),
    ([WHOLE, WHOLE | {"token_ids": []}], "with token_ids that are empty"),
    ([WHOLE, WHOLE | {"logprobs": None}], "with logprobs that are empty"),
    ([WHOLE, {"text": "a", "logprobs": WHOLE["logprobs"]}], "without token_ids; it must be a `vllm serve`"),
])
def test_completions_that_are_missing_or_not_whole_are_named_and_whole_ones_are_taken(server, choices, problem):
    client, answer = connect(server.url), [WHOLE, WHOLE]
    client.session.ask = lambda *_: SimpleNamespace(status_code=200, json=lambda: {"choices": answer}, text="")
    assert client.generate(prompts=[[1], [1]], max_tokens=1)["completion_ids"] == [[2], [2]]
    answer[:] = choices
    with pytest.raises(RolloutError, match=f"answers /v1/completions {problem}"):
        client.generate(prompts=[[1], [1]], max_tokens=1)


def test_an_adapter_that_was_taken_away_is_not_taken_for_a_missing_endpoint(server):
    client = connect(server.url)
    server.behave = lambda: (404, {"error": {"message": "The model `policy` does not exist."}})
    with pytest.raises(RolloutError, match="refuses /health: .*The model `policy` does not exist"):
        client._get(f"{server.url}/health")


def test_an_answer_that_is_too_large_is_an_error_of_one_line(server):
    client = connect(server.url)
    client.session.largest, server.behave = 4, lambda: (200, {"fine": 1})
    with pytest.raises(RolloutError, match="/health answered with more than 4 bytes"):
        client._get(f"{server.url}/health")


def test_nobody_there_is_an_error_with_the_address(server):
    server.http.server_close()
    with pytest.raises(RolloutError, match="127.0.0.1"):
        connect("http://127.0.0.1:9", retries=0)


def test_the_guard_ends_its_command_when_the_parent_is_gone(tmp_path):
    """Killed outright, as an out-of-memory killer would: the command and its own child end too."""
    pids = tmp_path / "pids"
    command = ("import os, subprocess, sys, time\n"
               "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
               f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}'); time.sleep(60)")
    script = ("import subprocess, sys, time; from routed_rl.guard import guarded\n"
              f"subprocess.Popen(guarded([sys.executable, '-c', {command!r}]), start_new_session=True); time.sleep(60)")
    parent = subprocess.Popen([sys.executable, "-c", script])
    wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    parent.kill()
    parent.wait()
    wait_until(lambda: not any(alive(int(pid)) for pid in pids.read_text().split()))


def wait_until(holds, seconds: float = 20) -> None:
    give_up = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < give_up
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """Whether it runs; a zombie that nobody waits for does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
