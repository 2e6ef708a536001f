"""Any generator of the reasoning-gym package as an environment, in chat format. Secure: only the answer pays.

`dataset` names the generator; further keywords go to it (`dataset: chain_sum`, `min_terms: 2`). Generators that have
no sound scorer are not covered: read the scorer before you train on one.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Iterator
from typing import Any

import reasoning_gym
from reasoning_gym.factory import DATASETS

from routed_rl.envs import Score, Task

BLOCK = 200
"""Questions per generator. Each has a seed of its own: in many, seed s + 1 is seed s shifted by one question."""
NUMBER = r"\d[\d,]*(?:\.\d+)?"


class ReasoningGym:
    """Tasks and scores of one generator.

    A question belongs to "eval" or "train" by its text (one in five is "eval"), so no question is in both, whatever
    the seeds. The last number pays where the right answer is a number; else the last line, or what follows "Answer:".
    """

    variant = "secure"

    def __init__(
        self,
        dataset: str = "chain_sum",
        instruction: str = "Reply with the answer only.",
        partial: bool = False,
        examples: int = 0,
        example_format: str = "{answer}",
        **generator: Any,
    ) -> None:
        """`partial`: pay the scorer's fractions too; many pay a wrong answer that merely contains the right one.

        `examples` questions stand solved before each one, in `example_format`: `{answer}` and the entry's metadata.
        """
        self.dataset, self.instruction, self.partial, self.generator = dataset, instruction, partial, generator
        self.scorer = self._draw(0)
        self.solved = [entry for entry in self.scorer if belongs_to("train", entry["question"])][:examples]
        self.turns: list[dict[str, str]] = []
        for entry in self.solved:
            answer = example_format.format(**{**entry["metadata"], "answer": entry["answer"]})
            self.turns += [self._ask(entry), {"role": "assistant", "content": answer}]

    def tasks(self, split: str, seed: int) -> Iterator[Task]:
        """Endless; ValueError if a block of questions has none for `split` (the generator has too few)."""
        seeds = random.Random(f"{self.dataset} {split} {seed}")
        known = {entry["question"] for entry in self.solved}
        while True:
            entries = [entry for entry in self._draw(seeds.getrandbits(31)) if belongs_to(split, entry["question"])]
            if not any(entry["question"] not in known for entry in entries):
                raise ValueError(f"{self.dataset}: none of {BLOCK} questions belongs to split {split!r}")
            for entry in entries:
                if entry["question"] not in known:
                    yield Task([*self.turns, self._ask(entry)], {"entry": entry})

    def gold(self, task: Task) -> str:
        return str(task.data["entry"]["answer"])

    @staticmethod
    def all_settings() -> list[dict[str, Any]]:
        """One for each generator of the package, paying its scorer's own marks."""
        return [{"dataset": name, "partial": True} for name in sorted(DATASETS)]

    def score(self, task: Task, completion: str) -> Score:
        """Reward is 1 for full marks; `partial` makes it the scorer's own. What the scorer raises is raised."""
        entry = task.data["entry"]
        marks = float(self.scorer.score_answer(final_answer(completion, entry["answer"]), entry))
        solved = float(marks >= 1.0)
        return Score(reward=marks if self.partial else solved, solve=solved)

    def _ask(self, entry: dict[str, Any]) -> dict[str, str]:
        return {"role": "user", "content": f"{entry['question'].strip()}\n{self.instruction}".strip()}

    def _draw(self, seed: int):
        return reasoning_gym.create_dataset(self.dataset, seed=seed, size=BLOCK, **self.generator)


def belongs_to(split: str, question: str) -> bool:
    """Whether a question is in `split`; ValueError for a split other than "train" and "eval"."""
    if split not in ("train", "eval"):
        raise ValueError(f"split must be train or eval, got {split!r}")
    return (zlib.crc32(question.encode()) % 5 == 0) == (split == "eval")


def final_answer(completion: str, right: str) -> str:
    """The answer that a completion ends with. Of `right` only one thing is used: whether it is a number."""
    *before, tail = re.split(r"(?i)\banswer(?: is|\W*:)", completion)
    lines = [line.strip(" \t*`$") for line in tail.splitlines() if line.strip(" \t*`$")] or [""]
    line = lines[0] if before else lines[-1]
    if not re.fullmatch("[-+]?" + NUMBER, right.strip()):
        return line
    # A minus sign right behind a digit or a bracket subtracts: the last number of "10-7" is 7.
    text = (line if before else completion).replace("\N{MINUS SIGN}", "-")
    numbers = re.findall(rf"(?<![\w.)])[-+]?{NUMBER}|{NUMBER}", text)
    return numbers[-1].rstrip(",") if numbers else ""
