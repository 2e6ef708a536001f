"""Tasksets as verifiers' documentation writes them. Not a test, and it knows nothing of routed_rl."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import verifiers.v1 as vf


class SumData(vf.TaskData):
    answer: str = ""


class SumState(vf.State):
    seen: int = 0


class SumTask(vf.Task[SumData, SumState, vf.TaskConfig]):
    @vf.reward(weight=2.0)
    async def right(self, task, trace) -> float:
        trace.state.seen += 1
        return float(trace.last_reply == task.answer)

    @vf.reward(weight=0.5)
    async def short(self, trace) -> float:
        assert trace.state.seen <= 1
        return float(len(trace.last_reply) < 5)

    @vf.metric
    async def letters(self, trace) -> float:
        if "raise" in trace.last_reply:
            raise RuntimeError("the scorer broke")
        return len(trace.last_reply)


class SumConfig(vf.TasksetConfig):
    count: int = 40
    instruction: str = "Add."


class Sums(vf.Taskset[SumTask, SumConfig]):
    def load(self) -> Iterator[SumTask]:
        for a in range(self.config.count):
            yield SumTask(SumData(prompt=f"{a} + 1", system_prompt=self.config.instruction, answer=str(a + 1)), self.config.task)


class Endless(vf.Taskset[SumTask, SumConfig]):
    INFINITE = True

    def load(self) -> Iterator[SumTask]:
        a = 0
        while True:
            yield SumTask(SumData(prompt=[vf.UserMessage(content=f"{a} + 1")], answer=str(a + 1)), self.config.task)
            a += 1


class Again(vf.Taskset[SumTask, SumConfig]):
    """Draws from 300 tasks for ever, more than the adapter reads at a time, and numbers them as they come."""

    INFINITE = True

    def load(self) -> Iterator[SumTask]:
        for idx in itertools.count():
            a = idx * 7 % 300
            yield SumTask(SumData(idx=idx, prompt=f"{a} + 1", answer=str(a + 1)), self.config.task)


class Few(vf.Taskset[SumTask, SumConfig]):
    """Repeats three tasks for ever."""

    INFINITE = True

    def load(self) -> Iterator[SumTask]:
        for a in itertools.cycle(range(3)):
            yield SumTask(SumData(prompt=f"{a} + 1", answer=str(a + 1)), self.config.task)


class InBox(SumTask):
    NEEDS_CONTAINER = True


class Prepared(SumTask):
    async def setup(self, trace, runtime) -> None:
        raise AssertionError("there is no harness")


class Run(SumTask):
    @vf.reward
    async def runs(self, trace, runtime) -> float:
        return 1.0


class Maybe(SumTask):
    @vf.metric
    async def runs(self, trace, runtime=None) -> float:
        return 1.0


class Stops(SumTask):
    @vf.stop
    def enough(self, trace: vf.Trace) -> bool:
        return True


class Intercepts(SumTask):
    @vf.intercept
    def change(self, request: vf.Request) -> vf.Request | None:
        return None


class Worthless(vf.Task[SumData, vf.State, vf.TaskConfig]):
    pass


def taskset(kind: type, **data) -> type:
    class One(vf.Taskset[kind, vf.TasksetConfig]):
        def load(self):
            yield kind(SumData(**{"prompt": "1 + 1", "answer": "2"} | data), self.config.task)

    return One


class Tooled(SumTask):
    @classmethod
    def toolsets(cls, config):
        return [vf.Toolset]


class Remembers(SumTask):
    def __init__(self, data, config=None) -> None:
        super().__init__(data, config)
        self.secret = 1


BOX, HOOK, RUNTIME, STOP, TOOLS, CHANGE = map(taskset, (InBox, Prepared, Run, Stops, Tooled, Intercepts))
NOTHING, MEMORY, OPTIONAL = map(taskset, (Worthless, Remembers, Maybe))
IMAGE, SKILL = taskset(SumTask, image="python:3.12"), taskset(SumTask, skills=["here"])
SILENT = taskset(SumTask, prompt=None)
