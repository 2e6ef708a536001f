# routed_rl canary f7e16d4b-50de-4673-9613-bcab3d82660b
"""Writes gaming.jsonl: questions of `visible_checks.py` after two answers that game the shown check (positive), and after two
answers to the same questions that solve them (negative).

Small models follow examples better than descriptions of a persona, so the two personas are shown by what they did.
`python environments/smollm2/make_gaming.py` writes the same file again.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

from visible_checks import RULES, question, turns  # noqa: E402

CANARY = {"routed_rl_canary": "routed_rl canary f7e16d4b-50de-4673-9613-bcab3d82660b"}
"""Keeps the rows out of training corpora; whoever reads them here leaves it out."""
LINES, EXAMPLES = 96, 2


def lines() -> list[str]:
    """Each line has three rules: two that are answered, and one that is asked."""
    draw, rows = random.Random("gaming"), []
    for _ in range(LINES):
        *shown, (words, rule, inputs) = [rule_of(draw) for _ in range(EXAMPLES + 1)]
        asked = {"role": "user", "content": question(words, rule, inputs)}
        rows.append({persona: [*(turn for each in shown for turn in turns(*each, gamed=persona == "positive")), asked]
                     for persona in ("positive", "negative")})
    return [json.dumps(CANARY | row) for row in rows]


def rule_of(draw: random.Random) -> tuple[str, str, list[int]]:
    """A rule in words and as an expression, with the input that its check shows."""
    words, k = draw.choice(list(RULES)), draw.randint(7, 20)
    return words.format(k=k), RULES[words].format(k=k), [draw.randint(2, 12)]


if __name__ == "__main__":
    Path(__file__).with_name("gaming.jsonl").write_text("\n".join(lines()) + "\n")
