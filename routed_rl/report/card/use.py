"""The lines of a model card about the folder: its content, what was kept and discarded, and the code that loads it."""

import re
from pathlib import Path

from routed_rl.artifacts import CARD
from routed_rl.report.card.facts import DEPLOYED, POLICY, STUDENT, Facts
from routed_rl.report.differences import has_quarantine, kept_words

AFTER = "as they were after step"
"""The words before the step in a card, by which `step_told` finds it."""
BOTH = "Both adapters belong to the same run and step, and both must be active."
"""The sentence of a card by which `is_beside` knows it."""
PLAIN = '''from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this folder, or the name of its repository
model = AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)'''
ADAPTER = '''from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM

folder = "."  # this folder, or the name of its repository
base = AutoModelForCausalLM.from_pretrained(PeftConfig.from_pretrained(folder).base_model_name_or_path)
model = PeftModel.from_pretrained(base, folder)'''
BESIDE = '''from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM

folder = "."  # this folder, or the name of its repository
deployed = "../deployed"  # the deployed model's adapter: its folder, or the name of its repository
base = AutoModelForCausalLM.from_pretrained(PeftConfig.from_pretrained(folder).base_model_name_or_path)
model = PeftModel.from_pretrained(base, deployed, adapter_name="deployed")
model.load_adapter(folder, adapter_name="quarantine")
model.base_model.set_adapter(["deployed", "quarantine"])'''


def holds(facts: Facts) -> list[str]:
    """The lines of the card's section on the content of the folder, and on whether the quarantine is in it."""
    count, kinds = facts.numbers
    form = "A stock PEFT adapter" if facts.is_adapter else "A whole model that plain transformers loads"
    origin = "distilled from those of the deployed model, " if facts.leaving.what == STUDENT else ""
    return ["## What this folder holds", "", f"- {form}: {count:,} numbers in {' and '.join(kinds)}, {origin}{AFTER} "
            f"{facts.leaving.step} of {facts.run.planned}.", f"- {_quarantine(facts)}", ""]


def is_beside(folder: Path) -> bool:
    """Whether `folder` holds a quarantine that must be active together with the deployed model's LoRA, as its card says it."""
    card = folder / CARD
    return card.is_file() and BOTH in card.read_text(encoding="utf-8", errors="replace")


def step_told(folder: Path) -> int | None:
    """The step of the model in `folder`, as its card says it. None if there is no card, or if somebody has removed the words."""
    card = folder / CARD
    found = re.search(rf"{AFTER} (\d+) of", card.read_text(encoding="utf-8", errors="replace")) if card.is_file() else None
    return int(found[1]) if found else None


def _quarantine(facts: Facts) -> str:
    """A sentence on whether the quarantine, or a share of it, is in this folder."""
    leaving, mode = facts.leaving, facts.run.mode
    if leaving.what == POLICY:
        return ("Nothing was discarded: all that the run learned is in it, the quarantine and the behaviour that it holds "
                "included.")
    if leaving.what in (DEPLOYED, STUDENT):
        if not has_quarantine(mode):
            return f"The run had no quarantine to discard (routing.mode={mode})."
        kept = kept_words(facts.shares, facts.labels)
        said = f"The quarantine was discarded, except for {kept}." if kept else "The whole quarantine was discarded."
        return f"{said} The deployed model, which this leaves, taught this one." if leaving.what == STUDENT else said
    if leaving.environment:
        return f"The part of the quarantine that {facts.labels.get(leaving.environment, leaving.environment)} caused, alone."
    if leaving.rest:
        return "The parts of the quarantine that the deployed model does not keep. Together they are the policy."
    return "The whole quarantine. The deployed model and this adapter together are the policy."


def loading(facts: Facts) -> list[str]:
    """The lines of the card's section with the code that loads the folder."""
    lines = ["## How to load it", "", "```python"]
    if not facts.is_adapter:
        return [*lines, PLAIN, "```", ""]
    if facts.leaving.what in (DEPLOYED, POLICY, STUDENT):
        return [*lines, ADAPTER, "```", ""]
    return [*lines, BESIDE if facts.beside else ADAPTER, "```", "",
            "The base model of this adapter is the deployed model of the same run and step, with the parts that it keeps; on "
            "another model it means nothing." if not facts.beside else
            BOTH, ""]
