"""The program inside an environment's process: builds one environment, then answers until its pipe closes. No torch.

Started by `routed_rl.envs.host.child`, never by hand. Messages come on stdin and leave on stdout, both taken away at the start:
what the environment prints goes to stderr.
"""

from __future__ import annotations

import faulthandler
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import IO, Any

from routed_rl.envs.core import Task, has_episodes
from routed_rl.envs.curriculum import build_staged
from routed_rl.envs.host.episodes import OpenEpisodes
from routed_rl.envs.host.wire import frame, json_text, pack_score, pack_task, unpack_task
from routed_rl.envs.scoring import describe, score_one
from routed_rl.errors import RoutedRLError

TASKS_S = 0.2
"""Time after which a bundle of tasks is handed over, full or not."""
LARGEST_BUNDLE = 1 << 20
"""Characters of a bundle of tasks after which it is handed over."""


def main() -> None:
    inbox, outbox = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    silent = os.open(os.devnull, os.O_RDONLY)
    os.dup2(silent, 0)
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the trainer's to handle
    faulthandler.enable()
    Worker(inbox, outbox).run()


class Worker:
    """One environment and its open task streams. Each method but `run` and `send` answers a request, once or several times."""

    def __init__(self, inbox: IO[bytes], outbox: IO[bytes]) -> None:
        self.inbox, self.outbox = inbox, outbox

    def run(self) -> None:
        """Until the trainer closes the pipe."""
        self.number, self.setup = json.loads(self.inbox.readline().decode("utf-8", "surrogatepass"))
        sys.path[:] = self.setup["sys_path"] or sys.path
        answers = {"build": self.build, "tasks": self.tasks, "score": self.score, "gold": self.gold, "play": self.play}
        request = {"ask": "build"}
        while True:
            for answer in answers[request["ask"]](request):
                try:
                    self.send(answer)
                except (TypeError, ValueError, RecursionError) as error:
                    self.send({"error": f"gave an answer that cannot be sent: {describe(error)}"[:500]})
            if not (line := self.inbox.readline()):
                return
            self.number, request = json.loads(line.decode("utf-8", "surrogatepass"))

    def send(self, answer: Any) -> None:
        self.outbox.write(frame([self.number, answer]))
        self.outbox.flush()

    def build(self, request: dict[str, Any]) -> Iterator[Any]:
        """The environment of the setup, under other `arguments` where the request has them; without it, the end."""
        arguments = request.get("arguments", self.setup["arguments"])
        self.streams: dict[tuple[str, int], tuple[Iterator[Any], int]] = {}
        self.episodes = OpenEpisodes()
        try:
            self.environment: Any = build_staged(self.setup["name"], self.setup["path"], arguments, self.setup["stages"])
        except RoutedRLError as error:
            self.send({"error": [type(error).__name__, str(error)]})
            sys.exit()
        yield {"ready": describe_environment(self.environment)}

    def tasks(self, request: dict[str, Any]) -> Iterator[Any]:
        """Tasks `start` onwards of a stream; one that is not where it should be is made anew and skipped ahead."""
        key, start = (request["split"], request["seed"]), request["start"]
        bundle: list[Any] = []
        end, problem, size, began = False, None, 0, time.monotonic()
        try:
            stream, position = self.streams.pop(key, (None, -1))
            if stream is None or position != start:
                stream = iter(self.environment.tasks(*key))
                end = sum(1 for _ in itertools.islice(stream, start)) < start
            while not end and len(bundle) < request["count"] and size < LARGEST_BUNDLE and time.monotonic() - began < TASKS_S:
                task = next(stream, stream)
                if end := task is stream:
                    break
                if not isinstance(task, Task):
                    problem = f"yielded {type(task).__name__}, not a Task; wrap it: routed_rl.envs.Task(prompt, data)"
                    break
                bundle.append(pack_task(task))
                size += len(json_text(bundle[-1]))
            self.streams[key] = stream, start + len(bundle)
        except (Exception, SystemExit) as error:
            problem = f"failed to make tasks: {describe(error)}"
        yield {"tasks": bundle, "end": end, "error": problem and problem[:500]}

    def score(self, request: dict[str, Any]) -> Iterator[Any]:
        """A score for each item, as soon as it is there: so the trainer knows which one is in work."""
        tasks: dict[int, Task] = {}
        for index, completion in request["items"]:
            if index not in tasks:
                tasks[index] = unpack_task(request["tasks"][index], sealed=False)
            yield pack_score(score_one(self.environment, tasks[index], completion))

    def gold(self, request: dict[str, Any]) -> Iterator[Any]:
        try:
            yield {"gold": self.environment.gold(unpack_task(request["task"], sealed=False))}
        except (Exception, SystemExit) as error:
            yield {"error": f"gold raised {describe(error)}"[:500]}

    def play(self, request: dict[str, Any]) -> Iterator[Any]:
        yield self.episodes.answer(self.environment, request)


def describe_environment(environment: Any) -> dict[str, Any]:
    """What the trainer may ask without running it."""
    variant, every = getattr(environment, "variant", None), getattr(environment, "all_settings", None)
    return {"pid": os.getpid(), "variant": None if variant is None else str(variant), "episodes": has_episodes(environment),
            "gold": callable(getattr(environment, "gold", None)), "all_settings": list(every()) if every is not None else []}


if __name__ == "__main__":
    main()
