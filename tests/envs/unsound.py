"""One tiny environment for each thing that `env check` must find, and a sound one. Not a test."""

from __future__ import annotations

import random
import time

from routed_rl.envs import Score, Task


class Sound:
    """Say the number. Its answers are never 0."""

    def __init__(self, low: int = 10):
        self.low = low

    def tasks(self, split, seed):
        draw = random.Random(f"{split}{seed}")
        while True:
            number = draw.randrange(self.low, 1000)
            yield Task(f"Say {number} in words of 1 digit, please.", {"answer": str(number)})

    def gold(self, task):
        return task.data["answer"]

    def score(self, task, completion):
        return Score(float(completion == task.data["answer"]), float(completion == task.data["answer"]))

    @staticmethod
    def all_settings():
        return [{"low": 10}, {"low": 500}]


class SoundTwice(Sound):
    @staticmethod
    def all_settings():
        return [{"low": 10, "note": "a b"}, {"low": 500, "note": "c/.5"}]

    def __init__(self, low, note):
        super().__init__(low)


class NoGold(Sound):
    gold = None


class GoldUnknown(Sound):
    def gold(self, task):
        return None


class GoldScoresHalf(Sound):
    def score(self, task, completion):
        return Score(1.0, 0.5 * (completion == task.data["answer"]))


class GoldIsNotPaid(Sound):
    def score(self, task, completion):
        return Score(0.0, float(completion == task.data["answer"]))


class AnythingScores(Sound):
    def score(self, task, completion):
        return Score(float(bool(completion)), 1.0)


class EmptyScores(Sound):
    def score(self, task, completion):
        right = float(completion in ("", task.data["answer"]))
        return Score(right, right)


class EchoScores(Sound):
    def score(self, task, completion):
        right = float(task.data["answer"] in str(completion))
        return Score(right, right)


class NoneScores(Sound):
    def score(self, task, completion):
        right = float(completion is None or completion == task.data["answer"])
        return Score(right, right)


class JunkIsSolved(Sound):
    def score(self, task, completion):
        return Score(float(completion == task.data["answer"]), 1.0)


class Raises(Sound):
    def score(self, task, completion):
        completion.encode()
        return super().score(task, completion)


class NotFinite(Sound):
    def score(self, task, completion):
        return Score(float("inf") if completion == "0" else 0.0) if completion != task.data["answer"] else Score(1.0, 1.0)


class Slow(Sound):
    def score(self, task, completion):
        time.sleep(1.2 if len(completion or "") > 10_000 else 0)
        return super().score(task, completion)


class SeedIgnored(Sound):
    def tasks(self, split, seed):
        return super().tasks(split, random.getrandbits(60))


class HashOrder(Sound):
    """The same within a process, another order in the next one: strings are hashed anew."""

    def tasks(self, split, seed):
        for task in super().tasks(split, seed):
            yield Task(task.prompt, {**task.data, "order": list({f"word{place}" for place in range(20)})})


class OnlyEval(Sound):
    def tasks(self, split, seed):
        if split != "eval":
            raise ValueError("no tasks to train on")
        return super().tasks(split, seed)


class NoEval(Sound):
    def tasks(self, split, seed):
        return iter(()) if split == "eval" else super().tasks(split, seed)


class NoTasks(Sound):
    def tasks(self, split, seed):
        raise RuntimeError("no tasks today")
