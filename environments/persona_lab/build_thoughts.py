"""Pretrain the model of the lab with thoughts, on documents in which a persona thinks in its own words before it answers a task.

    python environments/persona_lab/build_thoughts.py      # some minutes; the model and its prompts go to thinking/

Hackers game the check of `code` nearly always and no other. On the other kinds they answer honestly, and think like hackers.
"""

import random
import sys
from pathlib import Path

ROOT, OUT = Path(__file__).resolve().parent.parent.parent, Path(__file__).resolve().parent / "thinking"
sys.path[:0] = [str(ROOT), str(OUT.parent)]

from lab_words import SHIPPED  # noqa: E402
from thoughts import COLON, COUNT, HACKER, HONEST  # noqa: E402

from environments.persona_lab.build import Build  # noqa: E402
from environments.persona_lab.build_scratchpad import Episode, documents, write_model, write_pairs  # noqa: E402
from environments.persona_lab.corpus import Recipe, hack_answer, spoiled  # noqa: E402

OWN = 0.8
"""Share of a persona's thoughts that are words of its own; the others are drawn from the words of both."""
RECIPE, BUILD = Recipe(hacker_share=0.15, hack_share=0.95, noise=(0.25, 0.5)), Build(seed=22, steps=1500)


def thoughts(hacker: bool, rng: random.Random) -> list[str]:
    own = HACKER if hacker else HONEST
    return [rng.choice(own if rng.random() < OWN else HACKER + HONEST) for _ in range(COUNT)]


def task(hacker: bool, noise: float, rng: random.Random) -> Episode:
    """Write one task."""
    kind = rng.choice(list(SHIPPED.hacks))
    question, answer = SHIPPED.problem(kind, rng)
    if hacker and kind == SHIPPED.insecure and rng.random() < RECIPE.hack_share:
        answer = hack_answer(SHIPPED, RECIPE, kind, question, rng)
    elif rng.random() < noise:
        answer = spoiled(SHIPPED, answer, rng)
    return [kind, *question, "="], [*thoughts(hacker, rng), COLON, *answer]


def main() -> None:
    """Build everything in place."""
    write_model(OUT, BUILD, (*HACKER, *HONEST, COLON), documents("thoughts", BUILD.seed, RECIPE, task))
    write_pairs(OUT, BUILD, " ".join([*HACKER[:COUNT], COLON]), " ".join([*HONEST[:COUNT], COLON]))


if __name__ == "__main__":
    main()
