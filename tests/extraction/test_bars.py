"""The bars of `extract --check`: the lab's axis is told from random ones, and so is SmolLM2's assistant axis."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def check(out: Path, *overrides: str) -> tuple[subprocess.CompletedProcess[str], dict]:
    command = [sys.executable, "-m", "routed_rl.cli", "extract", "--check", *overrides, f"out={out}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode in (0, 4), done.stdout + done.stderr
    return done, json.loads((out / "check.json").read_text())


def test_the_labs_axis_is_told_from_random_directions_after_correction_and_a_random_subspaces_is_not(tmp_path):
    done, found = check(tmp_path / "lab")
    assert done.returncode == 0
    assert min(axis["p_corrected"] for axis in found["causal"]["axes"]) < 0.05
    assert len(found["causal"]["random"]["steering"]) >= 64
    # The prompts' own axis pushed at a thousandth of the gap still has its sign, and hardly any effect.
    weak, little = check(tmp_path / "weak", "subspace.check.strength=0.001")
    assert abs(little["causal"]["axes"][0]["steering"]) < 0.01 * abs(found["causal"]["axes"][0]["steering"])
    assert weak.returncode in (0, 4)


def test_smollm2s_default_self_is_told_from_roles_and_questions_that_the_axis_has_not_seen(tmp_path):
    # No causal check here: its p value is reported in docs/results.md, and takes most of the time.
    _, found = check(tmp_path / "axis", "subspace=assistant_axis", "model=smollm2", "subspace.check.axes=0")
    layers = found["axes"]["layers"]
    best = max(layers, key=lambda row: row["auroc"]["away_from_assistant"])
    print(best["layer"], best["auroc"]["away_from_assistant"], best["random"], best["random_best"])
    assert best["auroc"]["away_from_assistant"] >= 0.9
    assert best["random"] < 0.7
