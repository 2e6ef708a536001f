"""The program inside an environment's process. It builds one environment, then answers requests until the trainer that started it
is gone. It does not import torch.

`routed_rl.envs.host.child` starts it; nobody starts it by hand. Messages come and leave through the socket that is its stdin. The
environment itself gets another stdin, which is empty, and whatever it prints goes to stderr.
"""

import faulthandler
import io
import itertools
import json
import os
import signal
import sys
from collections.abc import Iterator
from typing import IO, Any

from routed_rl.envs.contract import gold_of, lines_of, tasks_of
from routed_rl.envs.core import Task, has_episodes
from routed_rl.envs.curriculum import build_staged
from routed_rl.envs.faults import failure_of
from routed_rl.envs.host.episodes import OpenEpisodes
from routed_rl.envs.host.wire import frame, pack_score, pack_task, unpack_task
from routed_rl.envs.scoring import score_one
from routed_rl.errors import RoutedRLError

MOST_STREAMS = 64
"""How many task streams are kept. If there are more, the one that was used least recently is dropped; it is made again if it is
needed later."""


def main() -> None:
    inbox, outbox = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(0), "wb", 0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # what is printed before a crash, or while a person looks on, is seen
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the trainer handles an interrupt
    faulthandler.enable()
    Worker(inbox, outbox).run()


class Worker:
    """One environment with its task streams and its episodes. `build`, `task`, `score`, `gold` and `play` answer the requests of
    these names."""

    def __init__(self, inbox: IO[bytes], outbox: IO[bytes]) -> None:
        self.inbox, self.outbox = inbox, outbox

    def run(self) -> None:
        """Answer requests until the trainer closes its end. An error is sent as an answer, too."""
        answers = {"build": self.build, "task": self.task, "score": self.score, "gold": self.gold, "play": self.play}
        while line := self.inbox.readline():
            number, request = json.loads(line.decode("utf-8", "surrogatepass"))
            try:
                answer = frame([number, answers[request["ask"]](request)])
            except (Exception, SystemExit) as error:
                answer = frame([number, self.failed(request, error)])
            self.outbox.write(answer)

    def failed(self, request: dict[str, Any], error: BaseException) -> dict[str, Any]:
        return pack_score(failure_of(error, f"failed to {request['doing']}:", lambda: self.line_of(request["ask"])))

    def line_of(self, asked: str) -> str:
        """The place `FILE:LINE` of the plug-in's method that a request of the kind `asked` calls; empty if it is not known."""
        return lines_of(self.environment).get({"task": "tasks"}.get(asked, asked), "")

    def build(self, request: dict[str, Any]) -> dict[str, Any]:
        """Build the environment and describe it; if it cannot be built, answer with the name of the error's class and its
        message."""
        sys.path[:] = request.get("sys_path") or sys.path
        self.streams: dict[int, tuple[Iterator[Any], int]] = {}
        self.episodes = OpenEpisodes(lambda: self.outbox.write(b"\n"))
        try:
            self.environment: Any = build_staged(request["name"], request["path"], request["arguments"], request["stages"])
            return describe_environment(self.environment)
        except RoutedRLError as error:
            return {"refused": [type(error).__name__, str(error)]}
        except (Exception, SystemExit) as error:
            return {"refused": ["TaskError", f"env.{request['name']}: {failure_of(error, 'cannot be described:').text}"]}

    def task(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer with the task that has the number `place` in the task stream `reader`; both are entries of `request`. If the
        stream stands at another number, it is made anew and the tasks before `place` are skipped."""
        reader, place = request["reader"], request["place"]
        stream, position = self.streams.pop(reader, (None, -1))
        if stream is None or position != place:
            stream = itertools.islice(tasks_of(self.environment, request["split"], request["seed"]), place, None)
        task = next(stream, stream)
        if task is stream:
            return {"end": True}
        assert isinstance(task, Task)
        self.streams[reader] = stream, place + 1
        if len(self.streams) > MOST_STREAMS:
            del self.streams[next(iter(self.streams))]
        return {"task": pack_task(task)}

    def score(self, request: dict[str, Any]) -> dict[str, Any]:
        return pack_score(score_one(self.environment, unpack_task(request["task"], sealed=False), request["completion"]))

    def gold(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"gold": gold_of(self.environment, unpack_task(request["task"], sealed=False))}

    def play(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            return self.episodes.answer(self.environment, request)
        except (Exception, SystemExit) as error:
            return pack_score(failure_of(error, at=lambda: self.line_of("episode")))


def describe_environment(environment: Any) -> dict[str, Any]:
    """The facts about the environment that the trainer may ask for without running it."""
    variant, every = getattr(environment, "variant", None), getattr(environment, "all_settings", None)
    return {"pid": os.getpid(), "variant": None if variant is None else str(variant), "episodes": has_episodes(environment),
            "contexts": {key: str(text) for key, text in dict(getattr(environment, "contexts", None) or {}).items()},
            "gold": callable(getattr(environment, "gold", None)), "lines": dict(lines_of(environment)),
            "all_settings": list(every()) if every is not None else []}


if __name__ == "__main__":
    main()
