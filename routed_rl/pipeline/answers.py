"""Writes RUN/answers.jsonl: the answers of a run's models to the same few prompts, which the report shows."""

import json
from collections.abc import Mapping
from itertools import chain, zip_longest
from typing import Any, cast

from routed_rl.artifacts import RunFolder, write_text
from routed_rl.config import EvaluationConfig
from routed_rl.evaluate import Answer, Told
from routed_rl.report.answers import read_answers


def keep_answers(run: RunFolder, config: EvaluationConfig, model: str) -> Told | None:
    """A function that gets the first answers of `model` in each environment and adds them to RUN/answers.jsonl in one step. None
    if `config` asks for no answers."""
    if not config.answers:
        return None

    def told(found: dict[str, list[Answer]]) -> None:
        in_turn = chain(*zip_longest(*([(name, place, each) for place, each in enumerate(few)] for name, few in found.items())))
        chosen = list(filter(None, in_turn))[:config.answers]
        known = {(row["environment"], row["task"], row["prompt"]): row["answers"] for row in read_answers(run.answers)}
        rows: list[dict[str, Any]] = []
        for name, place, answer in chosen:
            row = {"environment": name, "task": place, "prompt": _as_text(answer.prompt)}
            others = known.get((name, place, row["prompt"]), {})
            rows.append(row | {"answers": others | {model: _described(answer)}})
        write_text(run.answers, "".join(json.dumps(row) + "\n" for row in rows))

    return told


def copy_base_answers(source: RunFolder, target: RunFolder) -> None:
    """Copy the base model's answers from the run `source` to the run `target`, which may be the same run. The answers of the
    policy and the deployed model are left out, because in `target` these models are of another step."""
    rows = [row | {"answers": {"base": base}} for row in read_answers(source.answers) if (base := row["answers"].get("base"))]
    if rows:
        write_text(target.answers, "".join(json.dumps(row) + "\n" for row in rows))
    else:
        target.answers.unlink(missing_ok=True)


def _described(answer: Answer) -> dict[str, Any]:
    score = answer.score
    numbers = {"reward": None, "solve": None, "flags": {}} if score is None else {
        "reward": score.reward, "solve": score.solve, "flags": dict(cast(Mapping[str, float], score.flags))}
    return {"completion": _as_text(answer.completion), **numbers}


def _as_text(text: Any) -> str:
    """Text unchanged, messages as JSON."""
    return text if isinstance(text, str) else json.dumps(text)
