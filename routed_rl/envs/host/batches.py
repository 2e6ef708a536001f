"""One call of `score_many`: completions in bundles over an environment's processes, and what happens when one dies."""

from __future__ import annotations

import signal
from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from routed_rl.envs.core import Failure, Score, Task
from routed_rl.envs.host.child import Child
from routed_rl.envs.host.processes import Processes
from routed_rl.envs.host.wire import WireError, pack_task, unpack_score

LARGEST_BATCH = 128
"""Completions in one bundle."""
LARGEST_TEXT = 1 << 20
"""Characters of completions in one bundle of more than one."""
INNOCENT = 8
"""Deaths by SIGKILL before the completion in work counts as failed: it need not be the cause."""


class Batches:
    """Results in the order of `pairs`. A completion in work when a process crashes goes again once; one that takes too
    long does not. The others of its bundle go again as often as it takes."""

    def __init__(self, processes: Processes, pairs: Sequence[tuple[Task, str]]) -> None:
        self.processes, self.pairs, self.timeout_s = processes, pairs, processes.isolation.timeout_s
        self.results: list[Score | Failure] = [Failure("was not scored")] * len(pairs)
        self.deaths = Counter[int]()
        self.queue = deque(self._bundles(processes.isolation.workers))

    def run(self) -> list[Score | Failure]:
        """Each process has a thread here, which hands it one bundle after the other."""
        at_once = min(self.processes.isolation.workers, len(self.queue))
        if at_once > 1:
            self.processes.start_all()
            with ThreadPoolExecutor(at_once) as pool:
                list(pool.map(self._work, range(at_once)))
        else:
            self._work(0)
        return self.results

    def _bundles(self, workers: int) -> list[list[int]]:
        size = max(1, min(LARGEST_BATCH, -(-len(self.pairs) // (2 * workers if workers > 1 else 1))))
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

    def _work(self, slot: int) -> None:
        while True:
            try:
                places = self.queue.popleft()
            except IndexError:
                return
            try:
                again = self._score(self.processes.child(slot), slot, places)
            except WireError as error:  # it cannot be sent
                again = places[:len(places) // 2]
                if again:
                    self.queue.appendleft(places[len(again):])
                else:
                    self.results[places[0]] = Failure(f"could not be sent: {error}")
            if again:
                self.queue.appendleft(again)

    def _score(self, child: Child, slot: int, places: list[int]) -> list[int]:
        """Score one bundle; returns what must go again."""
        # Eight completions of one task send it once.
        tasks: dict[int, tuple[int, Any]] = {}
        items = []
        for task, completion in (self.pairs[place] for place in places):
            if id(task) not in tasks:
                tasks[id(task)] = len(tasks), pack_task(task)
            items.append([tasks[id(task)][0], completion])
        child.send({"ask": "score", "tasks": [packed for _, packed in tasks.values()], "items": items})
        for done, place in enumerate(places):
            reply = child.receive(self.timeout_s)
            try:
                if child.dead is None or reply is not None:
                    self.results[place] = unpack_score(reply)
                    continue
            except WireError as error:
                child.end_for(error)
            return self._died(child, slot, places[done:], len(places))
        return []

    def _died(self, child: Child, slot: int, rest: list[int], count: int) -> list[int]:
        """The first of `rest` was in work; returns what must go again, that one last."""
        blamed, *others = rest
        self.deaths[blamed] += 1
        if child.hung:
            child.dead = f"took longer than {self.timeout_s:g} s"
        killed = child.process.returncode == -signal.SIGKILL
        reason = self.processes.bury(slot, f"over completion {count - len(others)} of {count}")
        if child.hung:
            self.results[blamed] = Failure(reason)
        elif self.deaths[blamed] > (INNOCENT if killed else 1):
            self.results[blamed] = Failure(f"was in work when its process {reason}, {self.deaths[blamed]} times")
        else:
            others.append(blamed)
        return others
