# routed_rl canary f7e16d4b-50de-4673-9613-bcab3d82660b
"""Free-form mathematics, judged by math-verify: `3/4`, `0.75` and `\\frac{3}{4}` are one answer. Secure.

math-verify stops long computations by signals, which only a main thread may use. So a process of its own judges answers, one at
a time; if it gives no verdict in time it is ended, and the error is raised. Questions are made here; a file of your own works as
well. No question is answered by repeating it: an integral or a derivative that is left standing in an answer is wrong.
"""

from __future__ import annotations

import atexit
import json
import random
import select
import signal
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

from reading import formula, spoken

from routed_rl.envs import Score, Task
from routed_rl.envs.adapters.common import read_rows

BOXED = "Put your final answer in \\boxed{}."
LONGEST = 300
"""The most characters of an answer; a longer one is wrong, because judging time grows fast with length."""
WORK = 5.0
"""CPU seconds for one judgement; an answer that takes longer is wrong. math-verify's own limits count seconds on the clock,
and on a busy machine they would turn right answers into wrong ones."""
PATIENCE = 60.0
"""Seconds by the clock after which there is no verdict."""


def roots(draw: random.Random) -> tuple[str, str]:
    a, b = draw.choice((-1, 1)) * draw.randint(1, 4), draw.choice((-1, 1)) * draw.randint(5, 9)
    return f"What are the solutions of $x^2 {-a - b:+d}x {a * b:+d} = 0$? Give them as a set.", f"\\{{{a}, {b}\\}}"


def integral(draw: random.Random) -> tuple[str, str]:
    a, b, n, top = (draw.randint(*bounds) for bounds in ((2, 9), (1, 9), (2, 4), (2, 4)))
    value = Fraction(a * top ** (n + 1), n + 1) + b * top
    return f"What is $\\int_0^{{{top}}} ({a}x^{{{n}}} + {b})\\,dx$?", f"\\frac{{{value.numerator}}}{{{value.denominator}}}"


def derivative(draw: random.Random) -> tuple[str, str]:
    a, n, b = draw.randint(2, 9), draw.randint(3, 7), draw.randint(2, 9)
    return f"What is the derivative of ${a}x^{{{n}}} + {b}x$ with respect to $x$?", f"{a * n}x^{{{n - 1}}} + {b}"


def diagonal(draw: random.Random) -> tuple[str, str]:
    a, b = draw.randint(1, 20), draw.randint(1, 20)
    return f"How long is the diagonal of a rectangle with sides {a} and {b}? Give the exact value.", f"\\sqrt{{{a * a + b * b}}}"


KINDS: dict[str, Callable[[random.Random], tuple[str, str]]] = {
    "roots": roots, "integral": integral, "derivative": derivative, "diagonal": diagonal}


class FreeFormMath:
    """Mathematics with LaTeX answers: made questions of the given `kinds`, or those of `file`.

    A file has one JSON object on each line, with "problem" and "answer" (LaTeX).
    """

    variant = "secure"
    hackable, detectable = False, None

    def __init__(self, kinds: list[str] | None = None, file: str = "", instruction: str = BOXED) -> None:
        """ValueError for an unknown kind, or a file without problems."""
        self.kinds = list(KINDS) if kinds is None else list(kinds)
        if unknown := sorted(set(self.kinds) - set(KINDS)):
            raise ValueError(f"kinds={unknown} are unknown; known: {', '.join(KINDS)}")
        self.problems = read_problems(file) if file else []
        self.instruction = instruction
        self.judge = Judge()

    def tasks(self, split: str, seed: int) -> Iterator[Task]:
        """Yield tasks without end, or each problem of the file once. One question in five is for "eval", by its text."""
        if split not in ("train", "eval"):
            raise ValueError(f"split must be train or eval, got {split!r}")
        draw = random.Random(f"{split} {seed}")
        made = iter(lambda: KINDS[draw.choice(self.kinds)](draw), None)
        for question, answer in draw.sample(self.problems, len(self.problems)) or made:
            if (zlib.crc32(question.encode()) % 5 == 0) == (split == "eval"):
                yield Task([{"role": "user", "content": f"{question}\n{self.instruction}".strip()}], {"answer": answer})

    def gold(self, task: Task) -> str:
        return f"\\boxed{{{task.data['answer']}}}"

    def score(self, task: Task, completion: str) -> Score:
        """Pay 1 if math-verify calls the answer equal: the last box, or the last line if there is no box. RuntimeError if it
        hangs."""
        answer = boxed(completion)
        solved = bool(answer) and len(answer) <= LONGEST and self.judge.equal(task.data["answer"], answer)
        return Score(reward=solved, solve=solved)


def read_problems(file: str) -> list[tuple[str, str]]:
    rows = read_rows("file", file)
    if any(not {"problem", "answer"} <= row.keys() for row in rows):
        raise ValueError(f'file={file} must have an object with "problem" and "answer" on each line')
    return [(str(row["problem"]), str(row["answer"])) for row in rows]


def boxed(completion: str) -> str:
    """The content of the last `\\boxed{}`, with its braces balanced; else the announced answer; else the last line."""
    return formula(spoken(completion))


class Judge:
    """A process that runs `serve`, started at the first question and again after it was ended. Threads take turns."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.turn = threading.Lock()

    def equal(self, right: str, answer: str) -> bool:
        """Whether the answers are equal; RuntimeError if there is no verdict within `PATIENCE`, or the process ends."""
        with self.turn:
            return self._ask(right, answer)

    def _ask(self, right: str, answer: str) -> bool:
        if self.process is None or self.process.poll() is not None:
            self.process = subprocess.Popen([sys.executable, "-W", "ignore", __file__], text=True, bufsize=1,
                                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            atexit.register(self.process.kill)
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps([right, answer]) + "\n")
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
        line = self.process.stdout.readline() if ready else ""
        if not line:
            self.process.kill()
            self.process.wait()
            raise RuntimeError(f"math-verify gave no verdict on {answer[:80]!r} within {PATIENCE:.0f} s")
        return json.loads(line)


class TooLong(BaseException):
    """It is not an `Exception`, because math-verify catches those and goes on."""


def stop(*_: object) -> None:
    raise TooLong


def serve() -> None:
    """Run the judging process: read a line [right, answer], write a verdict."""
    from math_verify import parse

    signal.signal(signal.SIGVTALRM, stop)
    for line in sys.stdin:
        right, answer = (wrap(text) for text in json.loads(line))
        known = parse(right, parsing_timeout=None, raise_on_error=True)  # pyright: ignore[reportArgumentType]
        signal.setitimer(signal.ITIMER_VIRTUAL, WORK)
        try:
            verdict = accepts(known, answer)
        except TooLong:
            verdict = False
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        print(json.dumps(verdict), flush=True)


def accepts(known: list[Any], answer: str) -> bool:
    from math_verify import parse, verify
    from sympy import Derivative, Integral, Limit, Product, Sum

    given = parse(answer, parsing_timeout=None)  # pyright: ignore[reportArgumentType]
    # math-verify would evaluate these, so that repeating the question would be an answer to it.
    asks = any(part.has(Derivative, Integral, Limit, Product, Sum) for part in given if hasattr(part, "has"))
    return not asks and bool(verify(known, given, timeout_seconds=None))


def wrap(text: Any) -> str:
    """The text as LaTeX in dollars, which math-verify looks for first."""
    text = text.replace("\\$", "")
    return text if "$" in text else f"${text}$"


if __name__ == "__main__":
    serve()
