"""The section with the answers of base model, policy and deployed model to the same prompts, side by side."""

import json
from pathlib import Path
from typing import Any

from routed_rl.artifacts import RunFolder
from routed_rl.report.completions import readable_text
from routed_rl.report.data import RunData
from routed_rl.report.differences import has_quarantine
from routed_rl.report.page import cell
from routed_rl.report.parts import Answer, Asked, Section
from routed_rl.shapes import fits
from routed_rl.tracking import MODELS

SAID = {"completion": str, "reward": float | None, "solve": float | None, "flags": dict[str, float]}
ROW = {"environment": str, "task": int, "prompt": str, "answers": dict[str, dict[str, Any]]}


def read_answers(path: Path) -> list[dict[str, Any]]:
    """The rows of RUN/answers.jsonl: an environment, the index of a task among the evaluation tasks of this environment, the
    prompt, and the answer of each model. Torn lines are left out; a missing file has no rows."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return []
    return [row for line in lines if (row := _parsed(line))]


def answers(run: RunData) -> Section:
    """The section with a prompt in each row and the answer of each model. Flags that hold for an answer are shown."""
    section = Section("answers", "The same prompts, before and after", "Tasks of the evaluation, of all environments in turn, "
                      "with the same random numbers for each model. Answers with a flag are marked.",
                      "This run kept no answers (evaluation.answers).")
    names = {model: model for model in MODELS} if has_quarantine(run.mode) else {"base": "base", "policy": "trained"}
    section.answers.extend(
        Asked(row["environment"], readable_text(row["prompt"]), [_shown(names[model], row["answers"][model]) for model in names
                                                                 if model in row["answers"]])
        for row in read_answers(RunFolder(run.path).answers))
    return section


def _shown(model: str, said: dict[str, Any]) -> Answer:
    facts = "could not be scored" if said["reward"] is None else f"paid {cell(said['reward'])}" + (
        "" if said["solve"] is None else f" \N{MIDDLE DOT} true {cell(said['solve'])}")
    return Answer(model, readable_text(said["completion"]), facts, [name for name, value in said["flags"].items() if value > 0])


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = fits(row, ROW) and row.keys() >= ROW.keys()
    return row if whole and all(each.keys() >= SAID.keys() and fits(each, SAID) for each in row["answers"].values()) else None
