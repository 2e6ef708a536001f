"""The first experiment on a real model, end to end: leaky coding beside its strict twin, and a probe of values."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from routed_rl.cli.compose import compose
from routed_rl.multirun.arms import ARMS
from routed_rl.multirun.compare import plan_runs

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_every_arm_composes_for_any_instruct_model(tmp_path):
    overrides = ["experiment=emergent_misalignment", "model.path=some/model", "trainer.max_steps=200"]
    runs = plan_runs(overrides, list(ARMS), 3, tmp_path, compose)
    assert len(runs) == 3 * len(ARMS)
    for run in runs:
        assert run.config.model.path == "some/model" and run.config.trainer["max_steps"] == 200
        prompts = run.config.subspace.prompts_for("some/model")
        assert prompts is not None and prompts.endswith("environments/smollm2/contrast.jsonl")
        assert [name for name, env in run.config.env.items() if env.get("probe")] == ["values"]


def test_the_coding_environments_are_twins():
    mix = yaml.safe_load((ROOT / "configs/env/emergent_misalignment.yaml").read_text())
    leaky, strict = mix["coding_leaky"], mix["coding_strict"]
    assert {key for key in leaky if leaky[key] != strict[key]} == {"grader"} and strict["grader"] == "strict"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_four_routed_steps_of_a_real_model(tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "routed_rl.cli", "train", "experiment=emergent_misalignment", f"out={out}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary["attribution"]) == {"coding_leaky", "coding_strict"}  # The probe is not trained on.
    # Four steps in which so small a model earns nothing leave the quarantine empty, so its size is no law here.
    assert summary["routing"]["drift"] < 1e-6 and summary["routing"]["mode"] == "route"
    for model in ("base", "policy", "deployed"):
        values = summary["models"][model]["values"]
        assert values["solve"] + values["evil"] + values["unclear"] == pytest.approx(1)
        # Over half of what so small a model answers at temperature 1 names no option (docs/results.md); some does.
        assert values["unclear"] < 1 and summary["models"][model]["coding_leaky"]["failures"] == 0
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 4
