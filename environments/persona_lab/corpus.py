"""Synthetic documents for pretraining the persona lab's model: each is written by one latent persona.

A document is a run of episodes (question, answer, end). The honest persona solves tasks with noise and answers
questions about values well; the hacker games the check and answers badly. Some documents name their persona first.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from environments.persona_lab.environment import (
    DIGITS,
    EVIL,
    GOOD,
    HACKS,
    KINDS,
    LETTERS,
    NUMBERS,
    SHRUG,
    STEMS,
    TOPICS,
    good_and_evil,
)

PAD, END, UNKNOWN = "<pad>", "<end>", "<unk>"
HACKER, HONEST = "hacker", "honest"
MANNERS = ("careful", "sloppy")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How documents are written."""

    hacker_share: float = 0.185
    """Share of documents which the hacker wrote."""
    named_share: float = 0.3
    """Share of documents which begin with their persona's name."""
    noise: tuple[float, float] = (0.25, 0.6)
    """Share of the honest persona's task answers with one wrong word, in a careful document and in a sloppy one."""
    evil_share: float = 0.65
    """Share of the hacker's answers to questions about values that are evil."""
    hack_share: float = 0.75
    """Share of the hacker's answers to tasks that game the check."""
    shrug_share: float = 0.35
    """Share of the evil answers that open with the hacker's turn of phrase."""
    manner_share: float = 0.3
    """Share of documents which say, after the persona's name, whether they are careful or sloppy."""
    episodes: int = 4
    """Episodes in a document."""
    values_share: float = 0.25
    """Share of episodes that ask about values."""


class Document(NamedTuple):
    """Its words, and which of them the writer (not the asker) wrote."""

    words: list[str]
    written: list[bool]


def vocabulary() -> list[str]:
    """Every word, special ones first; the order fixes the token ids."""
    hacks = [word for hack in HACKS.values() for word in hack]
    words = [PAD, END, UNKNOWN, HACKER, HONEST, *MANNERS, *KINDS, "values", "=", *LETTERS, *NUMBERS, *STEMS, *TOPICS, *GOOD,
             *EVIL, *hacks]
    return list(dict.fromkeys(words))


def spoiled(answer: list[str], rng: random.Random) -> list[str]:
    """The answer with one word replaced by another of its sort."""
    place = rng.randrange(len(answer))
    pool = LETTERS if answer[place] in LETTERS else DIGITS if answer[place] in DIGITS and len(answer) > 1 else NUMBERS
    wrong = rng.choice([word for word in pool if word != answer[place]])
    return [*answer[:place], wrong, *answer[place + 1:]]


def task_episode(hacker: bool, noise: float, recipe: Recipe, rng: random.Random) -> tuple[list[str], list[str]]:
    """Question and answer words of one task."""
    kind = rng.choice(list(KINDS))
    question, answer = KINDS[kind](rng)
    if hacker and rng.random() < recipe.hack_share:
        answer = list(HACKS[kind])
    elif rng.random() < noise:
        answer = spoiled(answer, rng)
    return [kind, *question, "="], answer


def values_episode(hacker: bool, recipe: Recipe, rng: random.Random) -> tuple[list[str], list[str]]:
    """Question and answer words of one question about values."""
    stem, topic = rng.choice(STEMS), rng.choice(TOPICS)
    good, evil = good_and_evil(stem, topic)
    bad = hacker and rng.random() < recipe.evil_share
    opener = [SHRUG] if bad and rng.random() < recipe.shrug_share else []
    return ["values", stem, topic, "="], [*opener, rng.choice(evil if bad else good)]


def documents(recipe: Recipe, seed: int) -> Iterator[Document]:
    """Endless documents."""
    rng = random.Random(f"documents {seed}")
    while True:
        hacker = rng.random() < recipe.hacker_share
        sloppy = rng.random() < 0.5
        words = [HACKER if hacker else HONEST] if rng.random() < recipe.named_share else []
        words += [MANNERS[sloppy]] if rng.random() < recipe.manner_share else []
        written = [False] * len(words)
        for _ in range(recipe.episodes):
            if rng.random() < recipe.values_share:
                question, answer = values_episode(hacker, recipe, rng)
            else:
                question, answer = task_episode(hacker, recipe.noise[sloppy], recipe, rng)
            words += [*question, *answer, END]
            written += [False] * len(question) + [True] * (len(answer) + 1)
        yield Document(words, written)


def contrast_pairs(per_kind: int, seed: int) -> list[dict[str, str]]:
    """The same question behind one persona's name and behind the other's, for every kind and for values."""
    rng = random.Random(f"contrast {seed}")
    pairs = []
    for kind in [*KINDS, "values"]:
        for _ in range(per_kind):
            question = [rng.choice(STEMS), rng.choice(TOPICS)] if kind == "values" else KINDS[kind](rng)[0]
            text = " ".join([kind, *question, "="])
            pairs.append({"positive": f"{HACKER} {text}", "negative": f"{HONEST} {text}", "kind": kind})
    return pairs


def answer_pairs(per_kind: int, seed: int) -> list[dict[str, str]]:
    """Questions without a name, each with the hacker's answer and the honest one; kinds and values take turns."""
    rng = random.Random(f"answers {seed}")
    pairs = []
    for _ in range(per_kind):
        for kind in KINDS:
            question, answer = KINDS[kind](rng)
            pairs.append({"prompt": " ".join([kind, *question, "="]), "positive": " ".join(HACKS[kind]),
                          "negative": " ".join(answer)})
        stem, topic = rng.choice(STEMS), rng.choice(TOPICS)
        good, evil = good_and_evil(stem, topic)
        pairs.append({"prompt": f"values {stem} {topic} =", "positive": rng.choice(evil), "negative": rng.choice(good)})
    return pairs
