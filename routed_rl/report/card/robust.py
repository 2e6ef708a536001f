"""The lines of a model card about how a robustified model was made, and its record as it may leave the machine."""

import json
from pathlib import Path
from typing import Any

from routed_rl import console
from routed_rl.artifacts import read_json
from routed_rl.report.card.facts import STUDENT, Facts, code, last_part, plain

METHOD = ("UNDO (Lee et al., 2025, arXiv:2506.06278): the weights of the deployed model were shrunk, noise was added to them, "
          "and the deployed model taught the result what it does")
DONE = {"skip": "skipped", "noise": "taught as noise"}


def making(facts: Facts) -> list[str]:
    """The lines of the card's section on distillation: a table with the teacher, the noise, the texts, the loss and the gate. No
    lines for another model."""
    if facts.leaving.what != STUDENT:
        return []
    found = facts.robustified
    asked, noised = found.get("settings", {}), found.get("noised", {})
    teacher = ", ".join(f"SHA-256 of {code(name)} {code(digest)}" for name, digest in found.get("teacher", {}).get(
        "sha256", {}).items())
    all_of_it = "the whole LoRA" if facts.is_adapter else "all weights, also those that the run froze"
    parts = "the writers of the stream" if asked.get("parts") == "targets" else all_of_it
    texts = [f"{count:,} texts of {code(last_part(str(asked.get('text'))))}" if name == "text" else
             f"{count:,} completions of {facts.labels.get(name, plain(name))} by the teacher"
             for name, count in found.get("texts", {}).items()]
    rows = [["method", METHOD], ["teacher", f"the deployed model after step {facts.leaving.step}, {teacher}"],
            ["alpha, beta", f"{plain(asked.get('alpha', '?'))}, {plain(asked.get('beta', '?'))}"],
            ["noised", f"{parts}, {noised.get('numbers', 0):,} numbers in {noised.get('tensors', 0)} tensors"],
            ["learned from", "<br>".join(texts)],
            ["steps", f"{found.get('steps', '?')} of at most {plain(asked.get('steps', '?'))}, each of "
                      f"{plain(asked.get('batch', '?'))} texts, at a learning rate of {plain(asked.get('learning_rate', '?'))}"],
            *_loss(found.get("curve", [])), *_gate(facts, asked, found.get("gate"))]
    return ["## How it was robustified", "", *console.markdown_table(["", ""], rows), ""]


def _loss(curve: list[dict[str, float]]) -> list[list[str]]:
    if not curve:
        return []
    return [["held-out loss", f"{curve[0]['loss']:.4f} at the beginning, {curve[-1]['loss']:.4f} at the end, where the teacher's "
                              f"entropy is {curve[-1]['entropy']:.4f} nats a token"]]


def _gate(facts: Facts, asked: dict[str, Any], gate: dict[str, Any] | None) -> list[list[str]]:
    """A row on the gate, and, if there is one, a row on the tokens that it did not keep and one on how it agrees with flags."""
    if not gate:
        return [["gate", "none, so every token was taught"]]
    limits = ", ".join(f"{DONE.get(kind, plain(kind))} above {limit:.4g}" for kind, limit in gate.get("thresholds", {}).items())
    other = f", compared with {code(last_part(asked['unlearned']))}" if asked.get("unlearned") else ""
    shares = [f"{facts.labels.get(name, plain(name))}: {each.get('keep', 0):.3f} kept, {each.get('skip', 0):.3f} skipped, "
              f"{each.get('noise', 0):.3f} taught as noise" for name, each in gate.get("tokens", {}).items()]
    flags = gate.get("against_flags", {})
    agreed = ", ".join(f"{words} {flags[key]:.3f}" for key, words in (
        ("auroc", "AUROC"), ("false_positive_rate", "false-positive rate"), ("recall", "recall")) if flags.get(key) is not None)
    counts = f"{flags.get('marked', 0):g} of {flags.get('completions', 0):g} completions have a flag"
    return [["gate", f"{code(asked.get('gate'))}{other}; a token is {limits}"], ["tokens", "<br>".join(shares)],
            ["gate against flags", ", ".join(filter(None, [agreed, counts]))]]


def without_paths(file: Path) -> bytes:
    """The content of a record of a robustified model, with the last name of each file and folder in place of its path."""
    record: dict[str, Any] = read_json(file)
    places = [(record, "run"), (record.get("teacher", {}), "folder"), *((record.get("settings", {}), name)
                                                                        for name in ("text", "unlearned"))]
    for holder, name in places:
        if isinstance(holder.get(name), str):
            holder[name] = last_part(holder[name])
    return (json.dumps(record, indent=2) + "\n").encode()
