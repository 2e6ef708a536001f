"""The lines of a model card about the run: how the model was trained, on which environments, and what is not known."""

import re
from pathlib import Path
from typing import Any, NamedTuple

from routed_rl import console
from routed_rl.artifacts import CARD
from routed_rl.config import LABELS
from routed_rl.report.card.facts import STUDENT, Facts, code, hub_name, known, last_part, plain

MODES = {"route": "what lies inside the subspace went into the quarantine",
         "observe": "trained as usual; the quarantine is what lies inside the subspace, taken out afterwards",
         "erase": "what lies inside the subspace was blocked",
         "none": "no routing, so that policy and deployed model are the same",
         LABELS: "the environments' labels, and no subspace, decided what went into the quarantine"}


HASH, FROZEN = "hash of its weights", "on frozen weights in"
"""The words before the hash of the base model's weights, and before their type, by which `base_told` finds these."""


class Base(NamedTuple):
    """Facts that a card tells about the base model of a LoRA: the hash of its weights, and their type."""

    digest: str
    dtype: str


def training(facts: Facts) -> list[str]:
    """The lines of the card's section on training: a table with the base model, the parameters that were trained, the
    environments and the settings."""
    run, trainer = facts.run, facts.run.config.get("trainer") or {}
    practice = (run.setting("routing", "practice") or {}).get("share", 0) if run.mode == "route" else 0
    rows = [["base model", base_words(facts)], [HASH, code(run.manifest.get("model_hash"))],
            ["trained", _trained(facts)], ["environments", "<br>".join(_environments(facts))],
            ["algorithm", f"{plain(trainer.get('algorithm', 'grpo'))}, by TRL"],
            ["steps", f"{facts.leaving.step} of {run.planned}"], ["learning rate", plain(trainer.get("learning_rate", "?"))],
            ["seed", plain(run.config.get("seed", "?"))], ["routing", f"{plain(run.mode)}: {MODES.get(run.mode, '')}"]]
    if practice:
        rows.append(["practice", f"{practice:g} of the groups of environments at which the monitor did not point were rolled out "
                                 "and learned by the deployed model"])
    rows += [["subspace", words] for words in _subspace(facts)]
    versions = ", ".join(f"{plain(name)} {plain(version)}" for name, version in run.manifest.get("versions", {}).items())
    rows.append(["versions", versions or "not recorded"])
    return ["## How it was trained", "", *console.markdown_table(["", ""], rows), ""]


def base_told(folder: Path) -> Base | None:
    """Return the facts that the card of the LoRA in `folder` tells about its base model. None if there is no such card, or if the
    LoRA was trained on weights in 4 bit."""
    card = folder / CARD
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    digest, dtype = re.search(rf"\| {HASH} \| `([0-9a-f]{{64}})`", text), re.search(rf"{FROZEN} (\w+)", text)
    return Base(digest[1], dtype[1]) if digest and dtype else None


def base_words(facts: Facts) -> str:
    """The name of the base model, without its path on this machine."""
    path = facts.run.setting("model", "path", "")
    name = code(path if hub_name(path) else last_part(path))
    return f"{name}, with the LoRA {code(last_part(facts.adapter['path']))} merged into it" if facts.adapter.get("path") else name


def _trained(facts: Facts) -> str:
    if facts.trains_lora:
        kind = "on weights in 4 bit, others in" if facts.adapter.get("kind") == "qlora" else FROZEN
        return f"a LoRA of rank {facts.adapter.get('r')}, {kind} {plain(facts.run.setting('model', 'dtype', '?'))}"
    frozen = ", ".join(map(plain, facts.run.setting("model", "freeze") or []))
    return f"the weights, except {frozen}" if frozen else "all weights"


def _environments(facts: Facts) -> list[str]:
    """A line for each environment: its name for people, where it comes from, and whether it was trained on."""
    settings: dict[str, Any] = facts.run.config.get("env") or {}
    found = []
    for name, each in settings.items():
        given = each if isinstance(each, dict) else {}
        source = str(given.get("dataset") or given.get("path") or "")
        use = "only evaluated" if given.get("probe") else f"weight {plain(given.get('weight', 1.0))}"
        found.append(f"{facts.labels.get(name, plain(name))}: {code(source if hub_name(source) else last_part(source))}, {use}")
    return found


def _subspace(facts: Facts) -> list[str]:
    """A line on the subspace, and one on its origin; no lines for a run without a subspace."""
    if not (found := facts.subspace):
        return []
    ranks = f"rank by layer {', '.join(map(str, found['ranks']))}" if found["ranks"] else f"rank {found.get('rank') or '?'}"
    prompts = last_part(str(found.get("prompts") or ""))
    origin = f"from {code(prompts)} (hash {code(found.get('prompts_hash'))}), " if prompts else ""
    return [f"{plain(found.get('method', '?'))}, {ranks}", f"{origin}SHA-256 of its file {code(found.get('sha256'))}"]


def unknown(facts: Facts) -> list[str]:
    """The lines of the card's section on facts that nobody knows about the model, because the run did not measure them."""
    said = ["The licence: that of the base model and of the training data holds, and the run does not record it.",
            f"How another seed would have ended. This is one run, with seed {plain(facts.run.config.get('seed', '?'))}.",
            "What the model does outside of the environments that are named here. Nothing else was measured."]
    if not hub_name(facts.run.setting("model", "path", "")):
        said.append("Where the base model comes from. It was a local folder or file; only its name and hash are recorded.")
    if bare := [label for name, label in facts.labels.items() if label == plain(name)]:
        said.append(f"Whether the scoring of {' and '.join(bare)} can be gamed. The environment does not say so.")
    if not known(facts.results):
        said.append("How good it is. No model of this run was evaluated.")
    if facts.run.mode not in ("none", LABELS):
        said.append("Whether the subspace holds the whole persona. What it leaves out is in the weights, and how later layers "
                    "read the subspace is not contained.")
    if facts.leaving.what == STUDENT:
        said += ["Whether it is harder to turn back than the deployed model. `routed-rl relearn RUN --env NAME --also "
                 "robust=DIR --json FILE` measures that. Where `routed_rl` was measured, it was not harder without a gate.",
                 "What it has forgotten. The noise takes away knowledge, and the texts that are named above give back only what "
                 "they show."]
    return ["## What is not known", "", *(f"- {line}" for line in said), ""]
