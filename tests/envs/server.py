"""A small server of the remote protocol, with faults to order. Not a test itself.

    GUESS_TOKEN=secret python tests/envs/server.py 8000
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TASKS = 100


def answer(path: str, body: dict[str, Any]) -> dict[str, Any]:
    """What each call is answered with; depends on the request alone, so that a repeated one gets the same."""
    if path == "/tasks":
        numbers = range(body["start"], min(TASKS, body["start"] + body["count"]))
        asked = body["seed"] % 7 + 100 * (body["split"] == "eval")
        return {"tasks": [{"prompt": [{"role": "user", "content": f"guess {asked + n}"}], "data": {"secret": n % 10}}
                          for n in numbers]}
    if path == "/score":
        right = str(body["task"]["data"]["secret"]) in body["completion"].split()
        return {"reward": float(right), "solve": float(right), "flags": ["lucky"] if right else [], "metrics": {"one": 1}}
    if path == "/episode/start":
        secret = body["task"]["data"]["secret"]
        return {"messages": [*body["task"]["prompt"], {"role": "user", "content": f"{secret} or another"}], "max_turns": 3}
    secret = body["messages"][1]["content"].split()[0]
    right = secret in body["messages"][-1]["content"].split()
    if path == "/episode/step" and not right:
        return {"messages": [{"role": "user", "content": "again"}]}
    return {"score": {"reward": float(right), "solve": float(right)}}


class Server:
    """`with Server() as server`: answers at `server.url`; `fault(path, how often so far)` may spoil an answer."""

    def __init__(self, port: int = 0, token: str = "") -> None:
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.fault: Callable[[str, int], str] = lambda path, times: ""
        self.token = token
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer.handle(self)

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/api"

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        path = handler.path.removeprefix("/api")
        fault = self.fault(path, sum(path == known for known, _ in self.requests))
        self.requests.append((path, body))
        sent = handler.headers.get("Authorization", "")
        if self.token and sent != f"Bearer {self.token}":
            return self.reply(handler, 403, f"you sent {sent!r}".encode())
        if fault == "drop":
            handler.connection.close()
        elif fault == "hang":
            time.sleep(2)
        elif fault == "drip":
            handler.send_response(200)
            handler.end_headers()
            for _ in range(20):
                handler.wfile.write(b" ")
                handler.wfile.flush()
                time.sleep(0.1)
        elif fault.isdigit():
            self.reply(handler, int(fault), f"sorry, {sent or 'nobody'}".encode())
        else:
            self.reply(handler, 200, fault.encode() or json.dumps(answer(path, body)).encode())

    @staticmethod
    def reply(handler: BaseHTTPRequestHandler, status: int, text: bytes) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(text)))
        handler.end_headers()
        handler.wfile.write(text)

    def __enter__(self) -> Server:
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


if __name__ == "__main__":
    Server(int(sys.argv[1]), os.environ.get("GUESS_TOKEN", "")).server.serve_forever()
