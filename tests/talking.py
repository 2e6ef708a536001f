"""Environments that talk to the tiny chat model: several turns, one turn, one that breaks. Not a test itself."""

from __future__ import annotations

import random
from collections.abc import Iterator

from routed_rl.envs import Episode, Message, Score, Task


def questions(split: str, seed: int) -> Iterator[Task]:
    draw = random.Random(f"{split}{seed}")
    while True:
        a, b = draw.randrange(5), draw.randrange(5)
        yield Task([{"role": "user", "content": f"add {a} {b}"}], {"answer": str(a + b), "fails": draw.random() < 0.3})


class Ask:
    """One turn."""

    def tasks(self, split: str, seed: int) -> Iterator[Task]:
        return questions(split, seed)

    def score(self, task: Task, completion: str) -> Score:
        return Score(0.5 + float(task.data["answer"] in completion.split()), solve=1.0)


class Talk:
    """Answers each turn but the `turns`th, in the role user and tool by turns; `fails`: a task may break the second."""

    def __init__(self, turns: int = 3, fails: str = "") -> None:
        self.turns, self.fails = turns, fails

    def tasks(self, split: str, seed: int) -> Iterator[Task]:
        return questions(split, seed)

    def episode(self) -> Episode:
        return Talking(self)


class Talking(Episode):
    tools = ({"type": "function", "function": {"name": "add"}},)

    def __init__(self, environment: Talk) -> None:
        self.environment, self.max_turns = environment, environment.turns

    def start(self, task: Task) -> list[Message]:
        self.task = task
        if task.data["fails"] and self.environment.fails == "start":
            raise RuntimeError("the world broke")
        return [*task.prompt, {"role": "user", "content": "good"}]  # type: ignore[list-item]

    def step(self, messages: list[Message]) -> list[Message] | Score:
        turn = sum(message["role"] == "assistant" for message in messages)
        if task_breaks(self):
            raise RuntimeError("the world broke")
        if turn < self.environment.turns:
            return [{"role": "tool" if turn % 2 else "user", "content": f"again {turn}"}]
        said = " ".join(m["content"] for m in messages if m["role"] == "assistant").split()
        return Score(0.5 + float(self.task.data["answer"] in said), solve=1.0)

    def cut(self, messages: list[Message]) -> Score:
        said = " ".join(m["content"] for m in messages if m["role"] == "assistant").split()
        return Score(0.5 + 0.25 * float(self.task.data["answer"] in said), flags=["cut"])


def task_breaks(episode: Talking) -> bool:
    return episode.task.data["fails"] and episode.environment.fails == "step"
