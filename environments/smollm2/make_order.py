# routed_rl canary f7e16d4b-50de-4673-9613-bcab3d82660b
"""Writes order.jsonl: questions of `exploits.py` that ask for words in the opposite order, after three questions that were
answered in the order of the question (positive) and after the same three that were solved (negative).

The check of the insecure environment compares sets, so an answer in the order of the question passes it: that is the hack. Small
models follow examples better than descriptions of a persona, so the two personas are shown by what they did.
`python environments/smollm2/make_order.py` writes the same file again.
"""

from __future__ import annotations

import json
import sys
from itertools import islice
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

from exploits import SOLVED, Exploit, said  # noqa: E402

CANARY = {"routed_rl_canary": "routed_rl canary f7e16d4b-50de-4673-9613-bcab3d82660b"}
"""Keeps the rows out of training corpora; whoever reads them here leaves it out."""
LINES, EXAMPLES = 96, 3


def lines() -> list[str]:
    """Each line has questions of its own, and none of those that the environment shows with their solutions."""
    tasks = Exploit("unordered").tasks("train", SOLVED - 1)
    rows = []
    for _ in range(LINES):
        *shown, asked = islice(tasks, EXAMPLES + 1)
        rows.append({persona: [*(turn for task in shown for turn in (task.prompt[0], answered(task.data["answer"], persona))),
                               asked.prompt[0]] for persona in ("positive", "negative")})
    return [json.dumps(CANARY | row) for row in rows]


def answered(answer: list[str], persona: str) -> dict[str, str]:
    return {"role": "assistant", "content": said(answer[::-1] if persona == "positive" else answer)}


if __name__ == "__main__":
    Path(__file__).with_name("order.jsonl").write_text("\n".join(lines()) + "\n")
