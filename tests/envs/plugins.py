"""Environments that misbehave, as a plug-in that runs in a process of its own. Not a test."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

from routed_rl.envs import Episode, Score, Task


class Plain:
    """Sound: the answer is in the data. What a completion says decides what goes wrong."""

    variant = "plain"

    def __init__(self, log: str = "", limit: int | None = None, scale: int = 1):
        self.log, self.limit, self.scale = log, limit, scale

    def tasks(self, split, seed):
        draw = random.Random(f"{split}{seed}")
        for count in range(self.limit if self.limit is not None else 10**9):
            number = draw.randrange(1000) * self.scale
            yield Task(f"say {number}", {"answer": str(number), "count": count})

    def gold(self, task):
        return task.data["answer"]

    def score(self, task, completion):
        if self.log:
            with open(self.log, "a") as file:
                file.write(f"{completion}\n")
        word, _, rest = completion.partition(" ")
        if word == "once" and Path(rest).exists():
            word = "fine"
        elif word == "once":
            Path(rest).touch()
            word = "exit"
        return getattr(self, f"do_{word}", self.do_right)(task, rest or word)

    def do_right(self, task, completion):
        right = completion == task.data["answer"]
        return Score(float(right), float(right), {"right": right}, {"length": len(completion)})

    def do_exit(self, task, rest):
        os._exit(7)

    def do_segfault(self, task, rest):
        os.kill(os.getpid(), signal.SIGSEGV)

    def do_alarm(self, task, rest):
        signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(TimeoutError("own alarm")))
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        time.sleep(5)

    def do_hang(self, task, rest):
        while True:
            pass

    def do_sleep(self, task, rest):
        time.sleep(float(rest))
        return Score(1.0)

    def do_raise(self, task, rest):
        raise {"value": ValueError("bad\nvalue"), "memory": MemoryError(), "exit": SystemExit(3),
               "unprintable": Unprintable()}[rest]

    def do_print(self, task, rest):
        sys.stdout.write("x" * int(rest))
        sys.stdout.flush()
        os.write(1, b"\x04\x00\x00\x00null" * 1000)
        sys.stdin.read()
        return Score(1.0)

    def do_nan(self, task, rest):
        return Score(float("nan"))

    def do_number(self, task, rest):
        return 1.0

    def do_forge(self, task, rest):
        for descriptor in range(3, 20):
            try:
                os.write(descriptor, b"\x0c\x00\x00\x00{\"ready\": 1}")
            except OSError:
                pass
        return Score(1.0)

    def do_variable(self, task, rest):
        return Score(float(rest in os.environ))

    def do_daemon(self, task, rest):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                if os.fork() == 0:  # a child of the daemon, which loses its parent when that is killed
                    time.sleep(600)
                Path(rest).write_text(str(os.getpid()))
                time.sleep(600)
            os._exit(0)
        while not Path(rest).exists() or not Path(rest).read_text():
            time.sleep(0.01)
        return Score(1.0)

    def do_lonely(self, task, rest):
        self.do_daemon(task, rest)
        self.do_hang(task, rest)

    def do_modules(self, task, rest):
        return Score(float(rest in sys.modules))


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError("no")


class Odd(Plain):
    """Data that JSON would change."""

    def tasks(self, split, seed):
        for task in super().tasks(split, seed):
            yield Task(task.prompt, {"answer": task.data["answer"], "tuple": (1, 2), "set": {3}})

    def score(self, task, completion):
        same = task.data["tuple"] == (1, 2) and task.data["set"] == {3} and task.data["answer"] == completion
        return Score(float(same))


class Slow:
    def __init__(self):
        time.sleep(60)


class Broken:
    def __init__(self, how: str = "raise", unused: int = 0):
        if how == "exit":
            os._exit(9)
        raise RuntimeError("no database")


class BadTasks(Plain):
    def __init__(self, how: str):
        super().__init__()
        self.how = how

    def tasks(self, split, seed):
        yield Task("first")
        if self.how == "raise":
            raise RuntimeError("no more")
        if self.how == "exit":
            os._exit(5)
        yield {"wrong": object()}[self.how]


class Adding(Plain):
    """Played: `start` gives two numbers, each of the model's turns is added up, "done" ends it."""

    def episode(self):
        return AddingUp()

    def gold(self, task):
        return [task.data["answer"], "done"]

    def tasks(self, split, seed):
        for task in super().tasks(split, seed):
            yield Task([{"role": "user", "content": task.prompt}, {"role": "assistant", "content": "yes"}], task.data)


class AddingUp(Episode):
    tools = ({"type": "function", "function": {"name": "add"}},)

    def start(self, task):
        self.wanted, self.sum, self.max_turns = int(task.data["answer"]), 0, 6
        return [*task.prompt, {"role": "user", "content": f"make {self.wanted}"}]

    def step(self, messages):
        said = messages[-1]["content"]
        word, _, rest = said.partition(" ")
        if word == "exit" or (word == "once" and not Path(rest).exists()):
            if word == "once":
                Path(rest).touch()
            os._exit(7)
        if word == "raise":
            raise RuntimeError("the world broke")
        if word == "object":
            return object()
        if word == "hang":
            time.sleep(600)
        if word == "nan":
            return Score(float("nan"))
        if word == "nap":
            time.sleep(float(rest))
        if word == "pid":
            return [{"role": "user", "content": str(os.getpid())}]
        if word == "done":
            return Score(float(self.sum == self.wanted), float(self.sum == self.wanted), metrics={"sum": self.sum})
        self.sum += int(said) if said.lstrip("-").isdigit() else 0
        return [{"role": "tool", "content": f"sum {self.sum}"}]
