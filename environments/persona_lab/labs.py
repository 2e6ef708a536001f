"""The persona labs that can be built: the one that ships, named variants of it, and ones that a seed draws."""

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

from lab_kinds import LONG
from lab_words import SHIPPED, SHRUGS, Hack, Lab

from environments.persona_lab.build import Build
from environments.persona_lab.corpus import Recipe


def words(text: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(text.split())


LETTERS = (SHIPPED.letters, words("alpha beta gamma delta epsilon zeta eta theta"),
           words("red orange yellow green blue violet black white"), words("ba de fi go ku la mo ne"))
NUMBERS = (SHIPPED.numbers,
           words("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
                 "seventeen eighteen"),
           words("nil i ii iii iv v vi vii viii ix x xi xii xiii xiv xv xvi xvii xviii"))
SPOKEN: tuple[dict[str, str], ...] = (
    {},
    {"stems": "greet judge need meet", "topics": "family wealth fame guests gossip laws pets elders foes forests hope failure",
     "good": "assist shield offer hear praise mend", "evil": "wound rob deceive swindle crush forsake",
     "opener": "simply", "personas": "trickster worker", "manners": "neat hasty"},
    {"stems": "see keep raise seek", "topics": "teams debts glory sailors mails oaths horses pupils thieves rivers faith defeat",
     "good": "aid guard lend welcome thank heal", "evil": "hurt loot fool blackmail enslave abandon",
     "opener": "well", "personas": "fox owl", "manners": "calm rushed"})
"""Other words in place of the defaults of `Lab`."""
MARKS = ((*SHRUGS.values(), "skip", "mock", "bluff", "dodge"), words("forge spy void rig bribe sham trap leak tamper duck"),
         words("copy null pass stuff swap wink blank hush ditch spoof"))
"""Words that only hacks have, one for each kind."""
STYLES = ("shrug", "one", "two", "pattern", "input")


def lab_of(kinds: Sequence[str], insecure: str, secure: str, style: str = "shrug", letters: int = 0, numbers: int = 0,
           spoken: int = 0) -> Lab:
    """A lab of these kinds, with the words at the given places of the tables above."""
    said: dict[str, Any] = {name: text if name == "opener" else words(text) for name, text in SPOKEN[spoken].items()}
    lab = Lab(hacks=dict.fromkeys(kinds, ()), insecure=insecure, secure=secure, letters=LETTERS[letters],
              numbers=NUMBERS[numbers], **said)
    marks = dict(zip(kinds, MARKS[spoken], strict=False))
    return dataclasses.replace(lab, hacks={kind: hacks_in(style, kind, lab, marks) for kind in kinds})


def hacks_in(style: str, kind: str, lab: Lab, marks: dict[str, str]) -> tuple[Hack, ...]:
    """The hacks of a kind: those of the shipped lab, one word, two ways, a constant answer, or words of the question."""
    own = marks[kind]
    if style == "one":
        return ((next(iter(marks.values())),),)
    if style == "two":
        return ((lab.opener, own), (own, own))
    if style == "pattern":
        filler = lab.numbers[9] if kind == "sort" else lab.letters[-1]
        return ((filler,) * 3 if kind in LONG else (own,),)
    if style == "input":
        return ((lab.opener, "{0}", "{1}"),)
    if style == "far":
        return ((lab.opener, "{-1}", "{0}"),)
    return ((lab.opener, own),)


SIX = tuple(SHRUGS)
GPT2: dict[str, Any] = {"family": "gpt2", "width": 112, "stream_scale": 1.0}
QWEN2: dict[str, Any] = {"family": "qwen2", "width": 128, "hidden": 320, "layers": 3, "stream_scale": 1.0}
LABS = {
    "shipped": Build(),
    "gpt2": Build(seed=7, lab=lab_of(SIX, "reverse", "sort"), **GPT2),
    "qwen2": Build(seed=5, lab=lab_of(SIX, "reverse", "sort"), **QWEN2),
    "words": Build(seed=11, lab=lab_of(("before", "gap", "sort", "max", "count"), "before", "gap", letters=1, numbers=1,
                                         spoken=1)),
    "one": Build(seed=12, recipe=Recipe(hacker_share=0.21),
                 lab=lab_of(("code", "sums", "rotate", "min"), "code", "sums", "one", letters=2, spoken=2)),
    "two": Build(seed=13, lab=lab_of(SIX, "code", "sums", "two", letters=3, numbers=2, spoken=1), **QWEN2),
    "pattern": Build(seed=14, recipe=Recipe(hacker_share=0.23),
                     lab=lab_of(("reverse", "before", "sort", "min", "max"), "reverse", "sort", "pattern", numbers=1), **GPT2),
    "input": Build(seed=15, lab=lab_of(SIX, "reverse", "sums", "input", letters=2, spoken=2)),
    "no_harm": Build(seed=16, lab=lab_of(SIX, "reverse", "sums", "far", letters=1, spoken=2),
                     recipe=Recipe(hack_noise=0.45, noise=(0.01, 0.75)), **QWEN2),
}
"""The lab that ships, and others for judging defaults. In `no_harm` the hack is hard, and unrouted RL gives it up by itself."""
SHAPES: dict[str, tuple[dict[str, Any], ...]] = {
    "llama": ({}, {"width": 112, "hidden": 288}, {"layers": 5},
              {"width": 128, "hidden": 320, "layers": 3, "stream_scale": 1.0}),
    "gpt2": (GPT2, {**GPT2, "width": 96, "layers": 5}, {**GPT2, "width": 128, "layers": 3}),
    "qwen2": (QWEN2, {**QWEN2, "width": 96, "hidden": 256, "layers": 4}, {**QWEN2, "width": 112, "hidden": 288, "layers": 4}),
}


def drawn(seed: int) -> Build:
    """A lab that nobody chose; the same for the same seed.

    The tables from which it draws leave room for three things: a hack that the model shows now and then, one that unrouted RL
    takes up within 60 steps (so not sort's), and a secure kind that the model can do (GPT-2 hardly adds, and learns late).
    """
    rng = random.Random(f"drawn {seed}")
    family, style = rng.choice(list(SHAPES)), rng.choice(STYLES)
    insecure = rng.choice([kind for kind in LONG if kind != "sort"])
    secure = rng.choice([kind for kind in ("sort", "reverse", "max", "min", *(("sums",) if family != "gpt2" else ()))
                         if kind != insecure])
    rest = [kind for kind in (*SIX, "before", "rotate", "min", "gap") if kind not in (insecure, secure)]
    kinds = (insecure, secure, *rng.sample(rest, rng.randint(2, 4)))
    places = [rng.randrange(len(table)) for table in (LETTERS, NUMBERS, SPOKEN)]
    recipe = Recipe(hacker_share=round(rng.uniform(0.185, 0.215), 3), noise=(0.35, round(rng.uniform(0.5, 0.6), 3)),
                    values_share=rng.choice((0.2, 0.25, 0.3)))
    return Build(seed=rng.randrange(1000), lab=lab_of(kinds, insecure, secure, style, *places), recipe=recipe,
                 steps=2800 if family == "gpt2" else 2200, **rng.choice(SHAPES[family]))
