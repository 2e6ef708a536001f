"""One call of `score_many`: completions in bundles over an environment's processes, and what happens when one dies."""

from __future__ import annotations

import signal
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from routed_rl.envs import wire
from routed_rl.envs.child import LOOK_S, Child, pump
from routed_rl.envs.core import Failure, Score, Task

if TYPE_CHECKING:
    from routed_rl.envs.process import EnvironmentProcess

LARGEST_BATCH = 128
"""Completions in one bundle."""
LARGEST_TEXT = 1 << 20
"""Characters of completions in one bundle of more than one."""
INNOCENT = 8
"""Deaths before a completion counts as failed where it need not be the cause: SIGKILL, or a bundle that had not begun."""


@dataclass
class Batch:
    """A bundle in flight: places in the call's list, and how far it is."""

    places: list[int]
    number: int
    child: Child
    done: int = 0
    seen: int | None = None
    waited: float = 0.0

    def current(self) -> int | None:
        """The item in work, where the process says a believable one."""
        number, item = divmod(self.child.in_work(), 1 << 32)
        return item if number == self.number and self.done <= item < len(self.places) else None

    def wait(self, seconds: float) -> float:
        """Seconds the item in work has been waited for, after `seconds` more."""
        item = self.current()
        self.waited = self.waited + seconds if item == self.seen else 0.0
        self.seen = item
        return self.waited


class Batches:
    """Results in the order of `pairs`. A completion in work when a process crashes goes again once; one that takes too
    long does not. The others of its bundle go again as often as it takes."""

    def __init__(self, host: EnvironmentProcess, pairs: Sequence[tuple[Task, str]], timeout_s: float) -> None:
        self.host, self.pairs, self.timeout_s = host, pairs, timeout_s
        self.results: list[Score | Failure] = [Failure("was not scored")] * len(pairs)
        self.deaths = Counter[int]()
        self.workers = host.isolation.workers
        self.queue = deque(self._bundles())
        self.flying: dict[int, Batch] = {}
        self.number = 0

    def run(self) -> list[Score | Failure]:
        if self.workers > 1 and len(self.queue) > 1:
            self.host.start_all()
        looked = time.monotonic()
        while self.queue or self.flying:
            for slot in range(self.workers):
                if self.queue and slot not in self.flying:
                    self._send(slot, self.queue.popleft())
            pump([batch.child for batch in self.flying.values()], min(LOOK_S, self.timeout_s / 4))
            now = time.monotonic()
            # A trainer that was stopped for an hour has not waited for an hour.
            passed, looked = min(now - looked, 2 * LOOK_S), now
            for slot, batch in list(self.flying.items()):
                self._look(slot, batch, passed)
        return self.results

    def _bundles(self) -> list[list[int]]:
        size = max(1, min(LARGEST_BATCH, -(-len(self.pairs) // (2 * self.workers if self.workers > 1 else 1))))
        bundles: list[list[int]] = []
        room = 0
        for place, (_, completion) in enumerate(self.pairs):
            length = len(completion or "")
            if not bundles or len(bundles[-1]) >= size or length > room:
                bundles.append([])
                room = LARGEST_TEXT
            bundles[-1].append(place)
            room -= length
        return bundles

    def _send(self, slot: int, places: list[int]) -> None:
        child = self.host.child(slot)
        # Eight completions of one task send it once.
        tasks: dict[int, tuple[int, Any]] = {}
        items = []
        for place in places:
            task, completion = self.pairs[place]
            if id(task) not in tasks:
                tasks[id(task)] = len(tasks), wire.pack_task(task)
            items.append([tasks[id(task)][0], completion])
        self.number = self.host.next_number()
        try:
            child.send({"ask": "score", "number": self.number, "tasks": [packed for _, packed in tasks.values()], "items": items})
        except wire.WireError as error:
            if len(places) == 1:
                self.results[places[0]] = Failure(f"could not be sent: {error}")
            else:
                self.queue.extendleft((places[:len(places) // 2], places[len(places) // 2:]))
            return
        self.flying[slot] = Batch(places, self.number, child)

    def _look(self, slot: int, batch: Batch, passed: float) -> None:
        """Take what has arrived; end the flight when all is there, or when the process is dead or too slow."""
        for message in batch.child.take():
            try:
                self._accept(batch, message)
            except wire.WireError as error:
                batch.child.end_for(error)
        if batch.child.dead is None and batch.done == len(batch.places):
            del self.flying[slot]
        elif batch.child.dead is not None:
            self._died(slot, batch)
        elif batch.wait(passed) > self.timeout_s:
            batch.child.dead = f"took longer than {self.timeout_s:g} s"
            self._died(slot, batch, hung=True)

    def _accept(self, batch: Batch, message: Any) -> None:
        match message:
            case {"first": int(first), "scores": list(scores)} if first == batch.done <= len(batch.places) - len(scores):
                for place, score in zip(batch.places[first:], scores, strict=False):
                    self.results[place] = wire.unpack_score(score)
                batch.done += len(scores)
            case _:
                raise wire.WireError(f"no bundle of scores: {str(message)[:80]}")

    def _died(self, slot: int, batch: Batch, hung: bool = False) -> None:
        """Blame the item in work; one that was only waiting is not blamed, unless its bundle never gets begun."""
        del self.flying[slot]
        item, rest = batch.current(), batch.places[batch.done:]
        killed = batch.child.process.returncode == -signal.SIGKILL
        reason = self.host.bury(slot, f"over a completion; {len(rest)} to go again")
        if not rest:
            return
        if batch.child.garbled and len(rest) > 1:
            self.queue.extendleft([place] for place in reversed(rest))  # Each by itself, which tells whose message it was.
            return
        blamed = rest[0] if item is None else batch.places[item]
        self.deaths[blamed] += 1
        rest = [place for place in rest if place != blamed]
        if hung or self.deaths[blamed] > (INNOCENT if killed or item is None else 1):
            self.results[blamed] = Failure(reason if hung else f"was in work when its process {reason}, "
                                                               f"{self.deaths[blamed]} times")
        else:
            rest.append(blamed)
        if rest:
            self.queue.appendleft(rest)
