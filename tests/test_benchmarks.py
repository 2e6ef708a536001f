"""The benchmarks compare like with like, keep what they measured, and say how a cost grows."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from benchmark.growth import growth
from benchmark.repeated import Lines, Spread, ratios
from safetensors.torch import load_file

from routed_rl.errors import RunFolderError

ROOT = Path(__file__).parent.parent
STEPS = ["max_steps=3", "per_device_train_batch_size=32", "save_steps=3"]


def script(name: str, *arguments: str | Path) -> str:
    """What a script prints."""
    given = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, ROOT / "scripts" / name, *arguments], cwd=ROOT, check=True, capture_output=True,
                          text=True, env=given).stdout


def costs(**seconds: float) -> dict[str, dict[str, float]]:
    return {arm.strip("_"): {"clock": value} for arm, value in seconds.items()}


@pytest.mark.parametrize(("power", "start"), [(0.0, 1.0), (1.0, 0.0), (2.0, 0.0)])
def test_a_power_of_the_quantity_has_its_exponent(power, start):
    grows = growth([costs(**{f"_{value}": start + 0.5 * value**power for value in (1, 2, 4, 8)}) for _ in range(3)])
    assert grows.exponent == pytest.approx(power, abs=1e-9)
    assert (grows.straight < 1e-9) == (power < 2)


def test_a_line_that_does_not_begin_at_zero_is_straight_and_another_curve_is_not():
    values = (1, 8, 32, 128)
    line, root = ([costs(**{f"_{value}": start + factor * value**power for value in values})]
                  for start, factor, power in ((40, 1, 1), (40, 9, 0.5)))
    assert growth(line).straight < 1e-9 < 0.03 < growth(root).straight


def test_a_stopped_benchmark_goes_on_where_it_was_and_never_mixes_settings(tmp_path):
    file, about = tmp_path / "found.jsonl", {"code": "a", "settings": []}
    first = Lines(file, about)
    first.add("equal", costs(trl=2.0, none=1.0))
    again = Lines(file, about)
    again.add("equal", costs(none=3.0, trl=2.0))
    assert ratios(Lines(file, about).of("equal"), "none", "trl", "clock") == [0.5, 1.5] and not again.of("half")
    with pytest.raises(ValueError, match="code=a, and this is b; remove it"):
        Lines(file, about | {"code": "b"})


def test_a_spread_is_the_median_with_its_quartiles():
    assert dataclasses.astuple(Spread.of([5.0, 1.0, 2.0, 3.0, 4.0])) == (2.0, 3.0, 4.0, 5)
    assert dataclasses.astuple(Spread.of([7.0])) == (7.0, 7.0, 7.0, 1)


@pytest.mark.slow
def test_the_script_that_uses_trl_alone_trains_as_routing_none_does_to_the_bit(tmp_path):
    """So both sides of the benchmark have the same prompts, rewards, seeds and trained parameters."""
    timing = json.loads(script("plain_trl.py", "--out", tmp_path / "trl", *STEPS).splitlines()[-1])
    assert set(timing) == {"import", "load", "base", "train", "evaluate", "save"}
    ours = [sys.executable, "-m", "routed_rl.cli", "train", "routing=none", "trainer.lean=false", "evaluation.samples=0",
            f"out={tmp_path}/none", *(f"trainer.{field}" for field in STEPS)]
    subprocess.run(ours, cwd=ROOT, check=True, capture_output=True)
    plain, none = (load_file(tmp_path / folder / "model.safetensors") for folder in ("trl/deployed", "none/deployed"))
    base = load_file(ROOT / "environments" / "persona_lab" / "model" / "model.safetensors")
    assert set(plain) == set(none) and all(torch.equal(plain[name], none[name]) for name in plain)
    assert sum(not torch.equal(plain[name], base[name]) for name in plain) > 20


@pytest.mark.slow
def test_the_benchmark_measures_updates_runs_and_growth_and_goes_on(tmp_path):
    out = tmp_path / "found.json"
    arguments = ("bench_end_to_end.py", "--json", out, "--only", "group,vllm", "--pairs", "1")
    said = script(*arguments)
    assert "| grows with |" in said and "group, 1 of 1" in said
    found = json.loads(out.read_text())
    grows = found["growth"]["group"]["cpu"]
    assert set(grows["ratios"]) == {"4", "8", "16", "32"} and grows["exponent"] > 0.5
    assert "group, 1 of 1" not in script(*arguments)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "words", "said"), [
    ("bench_arms", "--json F --arms none,route routing.mode=erase", "routing.mode=erase does nothing here, because --arms none"),
    ("bench_arms", "--json F seed=3", "because --pairs 5 says it"),
    ("bench_axes", "--out D evaluation.samples=7", "because --samples 500 says it"),
    ("bench_evasion", "--out D --conditions rank=1 subspace.rank=3", "subspace.rank=3 does nothing here, because --conditions"),
    ("bench_evasion", "--out D routing=none", "routing=none does nothing here, because --arms route,"),
    ("bench_filter", "--out D trainer.max_steps=7", "because --steps 60 says it"),
    ("bench_labs", "--out D routing=none", "routing=none does nothing here, because --arms none,route,control says it"),
    ("bench_relearn", "--out D --models route routing=none", "because --models route says it"),
    ("bench_relearn", "--out D seed=7", "because --seeds 3 says it")])
def test_a_benchmark_refuses_a_setting_that_one_of_its_options_fixes(name, words, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, *words.split()])
    with pytest.raises(SystemExit, match="2"):
        importlib.import_module(name).main()
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_that_a_benchmark_needs_is_trained_once_and_never_mixed_with_other_settings(tmp_path):
    from benchmark.trained import trained

    settings = ["routing=none", "trainer.max_steps=1", "evaluation.samples=0", "discard=false", "tracking.report=false"]
    run = trained(tmp_path / "run", settings)
    written = run.summary.stat().st_mtime_ns
    assert trained(tmp_path / "run", settings).summary.stat().st_mtime_ns == written
    with pytest.raises(RunFolderError, match="was run with other settings .*; give another --out"):
        trained(tmp_path / "run", [*settings, "seed=1"])


def test_the_figures_of_evasion_are_of_the_runs_that_were_asked_for(tmp_path):
    from bench_evasion import measure

    for name in ("route-seed0", "route-seed1", "erase-seed0"):
        folder = tmp_path / name
        folder.mkdir()
        models = {"policy": {"leaky": {"hack": 0.5, "reward": 1.0}}, "deployed": {"leaky": {"hack": float(name[-1])}}}
        (folder / "summary.json").write_text(json.dumps({"models": models}))
        (folder / "visible.json").write_text(json.dumps({"3": {"shift": 0.1, "own": 0.9, "base": 0.8}}))
    found = measure(tmp_path, {"route-seed0"}, {})
    assert list(found) == ["route"] and found["route"]["hack"] == [0.0]
