"""Model cards of made-up runs: what they tell, what they never show, and that the hub can read them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from safetensors.numpy import save_file

from routed_rl.artifacts import RunFolder
from routed_rl.config.references import remember
from routed_rl.report.card import DEPLOYED, POLICY, QUARANTINE, Leaving, write_card
from tests.report.folders import HOSTILE, write, write_run

MODEL = {"path": "owner/base-1B", "freeze": ["embedding"]}
LORA = {"adapter": {"kind": "lora", "r": 4}, "dtype": "bfloat16"}


@pytest.fixture
def run(tmp_path) -> Path:
    folder = write_run(tmp_path / "run", steps=6, environments=2, layers=2, completions=0)
    write(folder / "manifest.json", json.loads((folder / "manifest.json").read_text()) | {
        "environments": {"env0": "env0 (insecure)", "env1": "env1 (secure)", "probe": "probe"}})
    configure(folder, model=MODEL, name="mine")
    return folder


def configure(run: Path, **sections: Any) -> None:
    file = run / "config.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | sections))


def card(run: Path, what: str = DEPLOYED, *, step: int = 6, adapter: bool = False, **leaving: Any) -> ModelCard:
    """As the hub's own library reads it."""
    folder = run.parent / "out"
    folder.mkdir(exist_ok=True)
    save_file({"a": np.zeros((3, 5), np.float32)}, folder / "model.safetensors")
    if adapter:
        (folder / "adapter_config.json").write_text("{}")
    return ModelCard.load(write_card(RunFolder(run), folder, Leaving(what, step, **leaving)))


def test_a_card_tells_who_did_it_the_figures_and_what_was_discarded(run):
    text = card(run).text
    assert "env0 (insecure)" in text and "env1 (secure)" in text
    assert "- Hack in env0 (insecure): the policy 0.90, the deployed model 0.12, base 0.10." in text
    assert "| env0 (insecure) | hack | 0.100 | 0.900 | 0.120 | 9 |" in text
    assert "The whole quarantine was discarded." in text and "15 numbers in float32, as they were after step 6 of 6" in text
    assert "# mine: the deployed model" in text and "`abc`" in text and "routed_rl 0, torch 2" in text
    assert "Nothing was discarded" in card(run, POLICY).text


def test_figures_of_another_step_say_so_and_a_run_that_was_not_evaluated_has_none(run):
    assert "of step 6, the end of the run, and this folder is of step 4" in card(run, step=4).text
    (run / "summary.json").unlink()
    text = card(run).text
    assert "## Figures" not in text and "No model of this run was evaluated." in text and "Hack in" not in text


@pytest.mark.parametrize(("lora", "adapter", "what", "base", "library"), [
    (False, False, DEPLOYED, ("owner/base-1B", "finetune"), "transformers"),
    (True, True, DEPLOYED, ("owner/base-1B", "adapter"), "peft"),
    (True, False, POLICY, ("owner/base-1B", "finetune"), "transformers"),
    (True, True, QUARANTINE, ("owner/base-1B", "adapter"), "peft"), (False, True, QUARANTINE, (None, None), "peft")])
def test_the_hub_is_told_the_base_model_that_the_folder_belongs_to(run, lora, adapter, what, base, library):
    configure(run, model=MODEL | (LORA if lora else {}))
    data = card(run, what, adapter=adapter).data.to_dict()
    assert (data.get("base_model"), data.get("base_model_relation")) == base and data["library_name"] == library
    assert what in data["tags"]


def test_datasets_of_the_hub_are_named_and_local_ones_by_their_last_part_alone(run):
    configure(run, env={"env0": {"dataset": "openai/gsm8k"}, "env1": {"dataset": "/home/me/rows.jsonl"},
                        "probe": {"dataset": "owner/held-out", "probe": True}})
    found = card(run)
    assert found.data.datasets == ["openai/gsm8k"] and "`rows.jsonl`" in found.text and "/home" not in found.content
    assert "`owner/held-out`, only evaluated" in found.text


def test_no_path_no_secret_and_no_markup_of_others_is_on_a_card(run):
    remember("opensesame")
    configure(run, name=f"{HOSTILE} opensesame", model={"path": "/home/me/secret-place/base"}, env={"e|0<b>": {"path": HOSTILE}})
    text = card(run, step=4).content
    assert "secret-place" not in text and "opensesame" not in text and str(run.parent) not in text
    assert "<script" not in re.sub(r"`[^`\n]*`", "", text) and "<b>" not in text and "\x1b" not in text


def test_nothing_of_a_run_but_its_settings_is_needed(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("seed: 0\n")
    text = card(tmp_path / "run").text
    assert "hash of its weights | not recorded" in text and "versions | not recorded" in text
