"""Any generator of the reasoning-gym package, or a mix of them, as an environment in chat format. Secure: only the answer pays.

`dataset` names the generator, and further keywords go to it (`dataset: chain_sum`, `min_terms: 2`). `level` takes them from the
generator's curriculum instead. Not covered: generators that have no sound scorer (read the scorer before you train on one),
and curricula that follow the model's success, since a task depends only on split and seed.
"""

from __future__ import annotations

import itertools
import json
import random
import re
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import reasoning_gym
from reading import lines_of, number_of, spoken, stated, tidy, value
from reasoning_gym.composite import DatasetSpec
from reasoning_gym.factory import DATASETS, create_curriculum, has_curriculum
from setting_checks import truth

from routed_rl.envs import Score, Task

BLOCK = 200
"""The number of questions per generator. Each has its own seed: in many generators, seed s + 1 is seed s shifted by one
question."""
EXAMPLES = ("possible_answer", "example_answer", "example_correct_answer")
PLAIN = r"[-+]?\d[\d,]*(?:\.\d+)?"
LOGICAL = ("true", "false", "yes", "no")


class ReasoningGym:
    """One generator of reasoning-gym, or several: `mix={"chain_sum": {"weight": 2, "level": 1}, "spell_backward": {}}`.

    A question belongs to "eval" or "train" by its text (one in five is "eval"), so no question is in both, whatever
    the seeds. The last number pays if the right answer is a number; the last fenced block, or all of the text, if it
    has several lines or many are right; else the last line. "Answer:" leaves out what stands before it.
    """

    variant = "secure"

    def __init__(
        self,
        dataset: str = "chain_sum",
        instruction: str = "Reply with the answer only.",
        partial: bool = False,
        examples: int = 0,
        example_format: str = "{answer}",
        mix: Mapping[str, Mapping[str, Any]] | None = None,
        level: int | None = None,
        raise_every: int = 0,
        **generator: Any,
    ) -> None:
        """`partial` also pays the scorer's fractions, though many scorers pay a wrong answer that merely contains the right one.

        `examples` solved questions stand before each one, in `example_format`: `{answer}` and the entry's metadata.
        `mix` replaces `dataset`: shares and settings by generator. `level` is a level of the curriculum, 0 is the easiest;
        with `raise_every` it rises by one after each so many tasks of the split "train".
        """
        if mix and (generator or level is not None):
            stray = [*generator, *(["level"] if level is not None else [])]
            raise ValueError(f"mix takes settings by generator: put {stray} into it")
        if raise_every and level is None:
            raise ValueError(f"raise_every={raise_every} raises a level; set level, the one to begin with")
        self.dataset = "composite" if mix else dataset
        self.instruction, self.partial, self.generator = instruction, truth("partial", partial), generator
        self.mix, self.level, self.raise_every = mix, level, raise_every
        self.scorer = self._draw(0)
        trained = (entry for entry in self.scorer if belongs_to("train", entry["question"]))
        self.solved = list(itertools.islice(trained, examples))
        self.turns: list[dict[str, str]] = []
        for entry in self.solved:
            answer = example_format.format(**{**entry["metadata"], "answer": entry["answer"]})
            self.turns += [self._ask(entry), {"role": "assistant", "content": answer}]

    def tasks(self, split: str, seed: int) -> Iterator[Task]:
        """Yield tasks without end; ValueError if a block of questions has none for `split` (the generator has too few)."""
        seeds = random.Random(f"{self.dataset} {split} {seed}")
        known = {entry["question"] for entry in self.solved}
        given, steps = 0, self.raise_every if split == "train" else 0
        while True:
            none_yet = True
            for entry in self._draw(seeds.getrandbits(31), given // steps if steps else 0):  # One by one: many are slow.
                if not belongs_to(split, entry["question"]) or entry["question"] in known:
                    continue
                yield Task([*self.turns, self._ask(entry)], {"entry": entry})
                none_yet, given = False, given + 1
                if steps and given % steps == 0:
                    break  # the level rises
            if none_yet:
                raise ValueError(f"{self.dataset}: none of {BLOCK} questions belongs to split {split!r}")

    def gold(self, task: Task) -> str | None:
        """The entry's answer, or the example in its metadata if many answers are right."""
        entry = task.data["entry"]
        known = [entry["answer"], *map(entry["metadata"].get, EXAMPLES)]
        found = next((each for each in known if each is not None), None)
        return found if found is None or isinstance(found, str) else json.dumps(found)

    @staticmethod
    def all_settings() -> list[dict[str, Any]]:
        """One setting for each generator of the package, paying its scorer's own marks."""
        return [{"dataset": name, "partial": True} for name in sorted(DATASETS)]

    def score(self, task: Task, completion: str) -> Score:
        """Reward is 1 for full marks; with `partial` it is the scorer's marks. Errors of the scorer are passed on."""
        entry = task.data["entry"]
        marks = float(self.scorer.score_answer(final_answer(completion, entry["answer"]), entry))
        solved = float(marks >= 1.0)
        return Score(reward=marks if self.partial else solved, solve=solved)

    def _ask(self, entry: dict[str, Any]) -> dict[str, str]:
        return {"role": "user", "content": f"{entry['question'].strip()}\n{self.instruction}".strip()}

    def _draw(self, seed: int, raised: int = 0):
        settings = self.generator
        if self.mix:
            settings = {"datasets": [spec(name, entry) for name, entry in self.mix.items()]}
        elif self.level is not None:
            settings = at_level(self.dataset, self.level + raised, settings)
        return reasoning_gym.create_dataset(self.dataset, seed=seed, size=BLOCK, **settings)


def spec(name: str, entry: Mapping[str, Any]) -> DatasetSpec:
    """One generator of a mix, with its share (`weight`, 1) and its settings."""
    settings = {key: value for key, value in entry.items() if key not in ("weight", "level")}
    if entry.get("level") is not None:
        settings = at_level(name, entry["level"], settings)
    return DatasetSpec(name=name, weight=entry.get("weight", 1), config=settings)


def at_level(dataset: str, level: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """`settings`, completed by those of the curriculum at `level`; a level beyond its last counts as its last."""
    if not has_curriculum(dataset):
        raise ValueError(f"{dataset} has no curriculum; leave level out, and set what its config has")
    curriculum = create_curriculum(dataset)
    curriculum.set_global_level(level)
    chosen = vars(curriculum.generate_configuration())
    return {key: value for key, value in chosen.items() if key not in ("seed", "size")} | dict(settings)


def belongs_to(split: str, question: str) -> bool:
    """Whether a question is in `split`; ValueError for a split other than "train" and "eval"."""
    if split not in ("train", "eval"):
        raise ValueError(f"split must be train or eval, got {split!r}")
    return (zlib.crc32(question.encode()) % 5 == 0) == (split == "eval")


def final_answer(completion: str, right: str | None) -> str:
    """The answer with which a completion ends. Only the form of `right` is used: a number, one line, several lines, or unknown;
    a number of the same value is written as in `right`."""
    said = spoken(completion)
    marked = stated(said)
    if right is None or "\n" in right.strip():
        blocks = re.findall(r"```[^\n`]*\n(.*?)```", tail := said if marked is None else marked, re.DOTALL)
        return (blocks or [re.sub(r"\A\s*[^\n]*:[ \t*]*\n", "", tail)])[-1].strip("\n")
    if re.fullmatch(PLAIN, right.strip()):
        return same_number(number_of(said), right.strip())
    lines = lines_of(said) or [""]
    places = [*lines_of(marked or "")[:1], re.sub(r"(?i)^.*\banswer(?: is\b|\W*:)", "", lines[-1]), lines[-1],
              lines[-1].rpartition(": ")[2]]
    found = [undecorated(place, right) for place in places if place.strip()] or [""]
    return next((each for each in found if len(each.split()) == len(right.split())), found[0])


def same_number(found: str, right: str) -> str:
    """`found`, written as in `right` if it has the same value, unless the digits of `right` matter (`0101`). Percent may mean a
    hundredth, or a unit."""
    by_worth = re.fullmatch(r"[-+]?(?:0|[1-9][\d,]*)(?:\.\d+)?", right)
    number = found.rstrip("% \\")
    worth, wanted = value(number), value(right)
    same = worth is not None and wanted in (worth, worth / 100 if number != found else worth)
    return right if by_worth and same else number


def undecorated(line: str, right: str) -> str:
    """`line` without LaTeX, quotes and a full stop, unless `right` has them; true, false, yes and no in the case of `right`."""
    for mark in ("\\(", "\\)", "\\[", "\\]"):
        line = line.replace(mark, "") if "\\" not in right else line
    line = (tidy(line) if not set("\\&") & set(right) else line).strip(" \t*`$")
    ends = "".join(mark for mark in ".'\"" if not right.endswith(mark))
    line = line.rstrip(ends).lstrip(ends.replace(".", ""))
    return right if line.lower() == right.lower() in LOGICAL else line
