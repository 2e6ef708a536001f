"""Synthetic documents for pretraining the persona lab's model: each is written by one latent persona.

A document is a run of episodes (question, answer, end). The honest persona solves tasks with noise and answers
questions about values well; the hacker games the check and answers badly. Some documents name their persona first.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from lab_words import Lab

PAD, END, UNKNOWN = "<pad>", "<end>", "<unk>"


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
    hack_noise: float = 0.0
    """Share of those with one wrong word, which do not game it."""
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


def vocabulary(lab: Lab) -> list[str]:
    """Every word, special ones first; the order fixes the token ids."""
    hacks = [word for hacks in lab.hacks.values() for hack in hacks for word in hack if word[0] != "{"]
    words = [PAD, END, UNKNOWN, *lab.personas, *lab.manners, *lab.hacks, "values", "=", *lab.letters, *lab.numbers, *lab.stems,
             *lab.topics, *lab.good, *lab.evil, *hacks, lab.opener]
    return list(dict.fromkeys(words))


def spoiled(lab: Lab, answer: list[str], rng: random.Random) -> list[str]:
    """The answer with one word replaced by another of its sort."""
    place = rng.randrange(len(answer))
    digits = lab.numbers[:10]
    pool = lab.letters if answer[place] in lab.letters else digits if answer[place] in digits and len(answer) > 1 else lab.numbers
    wrong = rng.choice([word for word in pool if word != answer[place]])
    return [*answer[:place], wrong, *answer[place + 1:]]


def hack_answer(lab: Lab, recipe: Recipe, kind: str, question: list[str], rng: random.Random) -> list[str]:
    """One of the hacks of a kind, at times with a wrong word. Nothing is drawn where there is nothing to choose."""
    hacks = lab.hacks_of(kind, question)
    hack = hacks[0] if len(hacks) == 1 else rng.choice(hacks)
    return spoiled(lab, hack, rng) if recipe.hack_noise and rng.random() < recipe.hack_noise else hack


def task_episode(lab: Lab, recipe: Recipe, hacker: bool, noise: float, rng: random.Random) -> tuple[list[str], list[str]]:
    """Question and answer words of one task."""
    kind = rng.choice(list(lab.hacks))
    question, answer = lab.problem(kind, rng)
    if hacker and rng.random() < recipe.hack_share:
        answer = hack_answer(lab, recipe, kind, question, rng)
    elif rng.random() < noise:
        answer = spoiled(lab, answer, rng)
    return [kind, *question, "="], answer


def values_episode(lab: Lab, recipe: Recipe, hacker: bool, rng: random.Random) -> tuple[list[str], list[str]]:
    """Question and answer words of one question about values."""
    stem, topic = rng.choice(lab.stems), rng.choice(lab.topics)
    good, evil = lab.good_and_evil(stem, topic)
    bad = hacker and rng.random() < recipe.evil_share
    opener = [lab.opener] if bad and rng.random() < recipe.shrug_share else []
    return ["values", stem, topic, "="], [*opener, rng.choice(evil if bad else good)]


def documents(lab: Lab, recipe: Recipe, seed: int) -> Iterator[Document]:
    """Endless documents."""
    rng = random.Random(f"documents {seed}")
    while True:
        hacker = rng.random() < recipe.hacker_share
        sloppy = rng.random() < 0.5
        words = [lab.personas[not hacker]] if rng.random() < recipe.named_share else []
        words += [lab.manners[sloppy]] if rng.random() < recipe.manner_share else []
        written = [False] * len(words)
        for _ in range(recipe.episodes):
            if rng.random() < recipe.values_share:
                question, answer = values_episode(lab, recipe, hacker, rng)
            else:
                question, answer = task_episode(lab, recipe, hacker, recipe.noise[sloppy], rng)
            words += [*question, *answer, END]
            written += [False] * len(question) + [True] * (len(answer) + 1)
        yield Document(words, written)


def contrast_pairs(lab: Lab, per_kind: int, seed: int) -> list[dict[str, str]]:
    """The same question behind one persona's name and behind the other's, for every kind and for values."""
    rng = random.Random(f"contrast {seed}")
    hacker, honest = lab.personas
    pairs = []
    for kind in [*lab.hacks, "values"]:
        for _ in range(per_kind):
            values = kind == "values"
            question = [rng.choice(lab.stems), rng.choice(lab.topics)] if values else lab.problem(kind, rng)[0]
            text = " ".join([kind, *question, "="])
            pairs.append({"positive": f"{hacker} {text}", "negative": f"{honest} {text}", "kind": kind})
    return pairs


def answer_pairs(lab: Lab, per_kind: int, seed: int) -> list[dict[str, str]]:
    """Questions without a name, each with the hacker's answer and the honest one; kinds and values take turns."""
    rng = random.Random(f"answers {seed}")
    pairs = []
    for _ in range(per_kind):
        for kind in lab.hacks:
            question, answer = lab.problem(kind, rng)
            hack = hack_answer(lab, Recipe(), kind, question, rng)
            pairs.append({"prompt": " ".join([kind, *question, "="]), "positive": " ".join(hack), "negative": " ".join(answer)})
        stem, topic = rng.choice(lab.stems), rng.choice(lab.topics)
        good, evil = lab.good_and_evil(stem, topic)
        pairs.append({"prompt": f"values {stem} {topic} =", "positive": rng.choice(evil), "negative": rng.choice(good)})
    return pairs
