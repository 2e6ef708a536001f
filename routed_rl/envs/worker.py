"""The program inside an environment's process: builds one environment, then answers until its pipe closes. No torch.

Started by `routed_rl.envs.child`, never by hand. Messages come on stdin and leave on stdout, both taken away at the start:
what the environment prints goes to stderr.
"""

from __future__ import annotations

import faulthandler
import itertools
import mmap
import os
import select
import signal
import struct
import sys
import time
from collections.abc import Iterator
from typing import IO, Any

FLUSH_S = 0.1
"""Scores are handed over at least this often, between two scorings."""
TASKS_S = 0.2
"""Time after which a bundle of tasks is handed over, full or not."""
LARGEST_BUNDLE = 1 << 20
"""Characters of a bundle of tasks after which it is handed over."""
PROGRESS = struct.Struct("<Q")


def main() -> None:
    """`worker PARENT PROGRESS`: the trainer's process id, and the descriptor of the page that says what is in work."""
    parent, progress = int(sys.argv[1]), mmap.mmap(int(sys.argv[2]), PROGRESS.size)
    os.close(int(sys.argv[2]))
    inbox, outbox = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", buffering=0)
    silent = os.open(os.devnull, os.O_RDONLY)
    os.dup2(silent, 0)
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the trainer's to handle
    _guard(parent)
    faulthandler.enable()
    Worker(inbox, outbox, progress).run()


def _guard(parent: int) -> None:
    """Fork a process that kills this whole group when the trainer or this worker is gone, whatever a scorer is doing."""
    worker = os.getpid()
    try:
        watched = [os.pidfd_open(parent), os.pidfd_open(worker)]
    except (AttributeError, ProcessLookupError, OSError):
        return  # no Linux: an idle worker still ends when its pipe closes
    if child := os.fork():
        os.waitpid(child, 0)
        for descriptor in watched:
            os.close(descriptor)
        return
    if os.fork():
        os._exit(0)
    top = max(watched) + 1
    for descriptor in set(range(top)) - set(watched):
        try:
            os.close(descriptor)
        except OSError:
            pass
    poll = select.poll()
    for descriptor in watched:
        poll.register(descriptor, select.POLLIN)
    poll.poll()
    os.killpg(worker, signal.SIGKILL)
    os._exit(0)


class Worker:
    """One environment and its open task streams."""

    def __init__(self, inbox: IO[bytes], outbox: IO[bytes], progress: mmap.mmap) -> None:
        self.inbox, self.outbox, self.progress = inbox, outbox, progress
        self.streams: dict[tuple[str, int], tuple[Iterator[Any], int]] = {}

    def run(self) -> None:
        """Until the trainer closes the pipe."""
        self.setup = self.receive()
        sys.path[:] = self.setup["sys_path"] or sys.path
        self.build({})
        answers = {"build": self.build, "tasks": self.tasks, "score": self.score, "gold": self.gold, "play": self.play}
        while (request := self.receive()) is not None:
            answers[request["ask"]](request)

    def build(self, request: dict[str, Any]) -> None:
        """The environment of the setup, under other `arguments` where the request has them; without it, the end."""
        from routed_rl.envs import wire
        from routed_rl.envs.curriculum import build_staged
        from routed_rl.envs.isolated_episode import OpenEpisodes
        from routed_rl.errors import RoutedRLError

        setup = self.setup | {"arguments": request.get("arguments", self.setup["arguments"])}
        self.streams.clear()
        self.episodes = OpenEpisodes()
        try:
            self.environment: Any = build_staged(setup["name"], setup["path"], setup["arguments"], setup["stages"])
            self.send(wire.frame({"ready": describe_environment(self.environment)}))
        except RoutedRLError as error:
            self.send(wire.frame({"error": [type(error).__name__, str(error)]}))
            sys.exit()

    def receive(self) -> Any:
        """The next message; None when the pipe is closed."""
        from routed_rl.envs import wire

        head = self.inbox.read(wire.HEADER.size)
        if len(head) < wire.HEADER.size:
            return None
        buffer = bytearray(head + self.inbox.read(wire.HEADER.unpack(head)[0]))
        messages = wire.take_frames(buffer)
        return messages[0] if messages else None

    def send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self.outbox.write(view):]

    def tasks(self, request: dict[str, Any]) -> None:
        """Tasks `start` onwards of a stream; one that is not where it should be is made anew and skipped ahead."""
        from routed_rl.envs import Task, wire
        from routed_rl.envs.scoring import describe

        key, start = (request["split"], request["seed"]), request["start"]
        bundle: list[str] = []
        end, problem, began = False, None, time.monotonic()
        try:
            stream, position = self.streams.pop(key, (None, -1))
            if stream is None or position != start:
                stream = iter(self.environment.tasks(*key))
                skipped = sum(1 for _ in itertools.islice(stream, start))
                end = skipped < start
            size = 0
            while not end and len(bundle) < request["count"] and size < LARGEST_BUNDLE and time.monotonic() - began < TASKS_S:
                task = next(stream, stream)
                end = task is stream
                if end:
                    break
                if not isinstance(task, Task):
                    problem = f"yielded {type(task).__name__}, not a Task; wrap it: routed_rl.envs.Task(prompt, data)"
                    break
                bundle.append(wire.json_text(wire.pack_task(task)))
                size += len(bundle[-1])
            self.streams[key] = stream, start + len(bundle)
        except (Exception, SystemExit) as error:
            problem = f"failed to make tasks: {describe(error)}"
        rest = wire.json_text({"end": end, "error": problem and problem[:500]})
        self.send(wire.frame_text(f'{{"tasks":[{",".join(bundle)}],{rest[1:]}'))

    def score(self, request: dict[str, Any]) -> None:
        """A score for each item, handed over in bundles; the page says which one is in work."""
        from routed_rl.envs import wire
        from routed_rl.envs.scoring import score_one

        number, items = request["number"] << 32, request["items"]
        tasks: dict[int, Any] = {}
        done: list[str] = []
        first, flushed = 0, time.monotonic()
        for place, (index, completion) in enumerate(items):
            PROGRESS.pack_into(self.progress, 0, number | place)
            if index not in tasks:
                tasks[index] = wire.unpack_task(request["tasks"][index], sealed=False)
            done.append(wire.pack_score(score_one(self.environment, tasks[index], completion)))
            now = time.monotonic()
            if now - flushed >= FLUSH_S or place + 1 == len(items):
                self.send(wire.frame_text(f'{{"first":{first},"scores":[{",".join(done)}]}}'))
                first, flushed = place + 1, now
                done.clear()

    def gold(self, request: dict[str, Any]) -> None:
        from routed_rl.envs import wire
        from routed_rl.envs.scoring import describe

        try:
            answer = self.environment.gold(wire.unpack_task(request["task"], sealed=False))  # type: ignore[attr-defined]
            self.send(wire.frame({"gold": answer}))
        except (Exception, SystemExit) as error:
            self.send(wire.frame({"error": f"gold raised {describe(error)}"[:500]}))

    def play(self, request: dict[str, Any]) -> None:
        from routed_rl.envs import wire

        self.send(wire.frame(self.episodes.answer(self.environment, request)))


def describe_environment(environment: Any) -> dict[str, Any]:
    """What the trainer may ask without running it."""
    variant, every = getattr(environment, "variant", None), getattr(environment, "all_settings", None)
    return {"variant": None if variant is None else str(variant), "gold": callable(getattr(environment, "gold", None)),
            "episodes": hasattr(environment, "episode"),
            "all_settings": list(every()) if every is not None else []}


if __name__ == "__main__":
    main()
