"""An environment that scores what the completion says, in this process or in its own: no torch."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction

import numpy as np

from routed_rl.envs import Episode, Score, Task

NAMES = {"Score": Score, "np": np, "math": math, "Decimal": Decimal, "Fraction": Fraction}


class Said:
    def tasks(self, split, seed):
        yield Task("?")

    def score(self, task, completion):
        return eval(completion, dict(NAMES))


class SaidAtLast(Episode):
    def step(self, messages):
        return Said().score(Task("?"), messages[-1]["content"])


class Talk:
    """The same as an episode of one turn."""

    def tasks(self, split, seed):
        yield Task([{"role": "user", "content": "?"}])

    def episode(self):
        return SaidAtLast()
