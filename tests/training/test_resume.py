"""Law 7 on one CPU process: resume equals not stopping, bit for bit, whatever stopped the run."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from routed_rl.artifacts import RunFolder, broken_seal
from routed_rl.config import from_mapping
from routed_rl.errors import CheckpointError, ConfigError, RunFolderError
from routed_rl.training import saving
from tests import pipeline
from tests.parts import own_config
from tests.tiers import tiered


def no_compose(overrides):
    raise AssertionError("nothing was overridden")


@pytest.fixture(scope="module")
def undisturbed(parts, tmp_path_factory):
    return pipeline.train(own_config(parts, tmp_path_factory.mktemp("runs") / "undisturbed"), [])


def final_state(run: Path) -> dict[str, torch.Tensor]:
    folder = RunFolder(run).require_checkpoint()
    return load_file(folder / "model.safetensors") | load_file(folder / "quarantine.safetensors")


def assert_same(run: Path, other: Path) -> None:
    ours, theirs = final_state(run), final_state(other)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name
    assert metrics(run) == metrics(other)


def metrics(run: Path) -> list[dict]:
    """Without what depends on the clock, or on how long the whole run is."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if "time" not in key and "epoch" not in key} for row in rows]


def killed(config, when) -> Path:
    """Start a run in a process of its own and kill -9 it as soon as `when(run folder)` holds."""
    out = Path(config.out)
    code = ("import sys; from tests import pipeline; from tests.parts import own_config; from pathlib import Path;"
            "pipeline.train(own_config(Path(sys.argv[1]), sys.argv[2]), [])")
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    process = subprocess.Popen([sys.executable, "-c", code, str(Path(config.model.path).parent), str(out)], env=environment,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not when(out):
        assert process.poll() is None and time.monotonic() < deadline, "the run ended before it could be killed"
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return out


def lines(run: Path) -> int:
    return len((run / "metrics.jsonl").read_text().splitlines()) if (run / "metrics.jsonl").exists() else 0


MOMENTS = {
    "before the first checkpoint": lambda run: lines(run) >= 1,
    "between two checkpoints": lambda run: (run / "checkpoints" / "step-2").exists() and lines(run) >= 3,
    "while a checkpoint is written": lambda run: (run / "checkpoints" / ".step-4.partial").exists(),
    "while evaluating": lambda run: (run / "evaluation-policy.json").exists(),
}


@pytest.mark.parametrize("moment", tiered(MOMENTS, quick=["between two checkpoints"]))
def test_a_killed_run_ends_where_an_undisturbed_one_ends(parts, undisturbed, tmp_path, moment):
    run = killed(own_config(parts, tmp_path / "run"), MOMENTS[moment])
    pipeline.resume(str(run), [], no_compose)
    assert_same(run, undisturbed)
    assert (run / "summary.json").exists()


@pytest.mark.slow
def test_a_finished_run_resumed_changes_nothing(parts, tmp_path):
    run = pipeline.train(own_config(parts, tmp_path / "run", trainer={"max_steps": 2}), [])
    before = final_state(run)
    pipeline.resume(str(run), [], no_compose)
    assert all(torch.equal(before[name], value) for name, value in final_state(run).items())


@pytest.mark.slow
def test_resume_in_the_middle_of_a_generation_is_exact(parts, tmp_path):
    """Two optimizer steps per generation, two micro-batches a step: the buffered completions must survive."""
    settings = {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 2, "steps_per_generation": 4,
                "save_steps": 1, "use_adaptive_entropy": True, "entropy_coef_delta": 0.1, "entropy_coef": 0.5}
    whole = pipeline.train(own_config(parts, tmp_path / "whole", trainer={**settings, "max_steps": 4}), [])
    run = pipeline.train(own_config(parts, tmp_path / "run", trainer={**settings, "max_steps": 3}), [])
    pipeline.resume(str(run), ["trainer.max_steps=4"],
                    lambda _: own_config(parts, run, trainer={**settings, "max_steps": 4}))
    assert_same(run, whole)


@pytest.mark.slow
def test_a_full_disk_keeps_the_earlier_checkpoint_and_says_so(parts, undisturbed, tmp_path, monkeypatch):
    saved = saving.save_loop
    calls = []

    def full(folder, state, rank):
        calls.append(folder)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        saved(folder, state, rank)

    monkeypatch.setattr(saving, "save_loop", full)
    out = tmp_path / "run"
    with pytest.raises(CheckpointError, match=r"step-4 could not be written.*No space left.*step-2.*resume"):
        pipeline.train(own_config(parts, out), [])
    assert RunFolder(out).steps() == [2] and not list((out / "checkpoints").glob(".*"))
    pipeline.resume(str(out), [], no_compose)
    assert_same(out, undisturbed)


@pytest.mark.parametrize("damage", tiered(["truncate", "flip", "remove", "unseal"], quick=["flip"]))
def test_a_torn_checkpoint_is_recognised_and_skipped(parts, undisturbed, tmp_path, capsys, damage):
    out = pipeline.train(own_config(parts, tmp_path / "run", trainer={"max_steps": 4}), [])
    torn = out / "checkpoints" / "step-4" / "model.safetensors"
    content = torn.read_bytes()
    {"truncate": lambda: torn.write_bytes(content[:-8]), "flip": lambda: torn.write_bytes(content[:-1] + b"\x01"),
     "remove": torn.unlink, "unseal": (torn.parent / "COMPLETE.json").unlink}[damage]()
    assert broken_seal(torn.parent) is not None
    config = own_config(parts, out)
    pipeline.resume(str(out), ["trainer.max_steps=6"], lambda _: config)
    assert "skipped checkpoint step-4" in capsys.readouterr().out
    assert_same(out, undisturbed)


def test_a_folder_that_holds_a_run_is_refused_and_untouched(parts, undisturbed):
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*")}
    with pytest.raises(RunFolderError, match="already holds a run.*resume.*out="):
        pipeline.train(own_config(parts, undisturbed), [])
    assert before == {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*")}


def test_resume_refuses_another_experiment(parts, undisturbed):
    changed = own_config(parts, undisturbed, seed=1)
    with pytest.raises(ConfigError, match="cannot change seed: 0 -> 1"):
        pipeline.resume(str(undisturbed), ["seed=1"], lambda _: changed)
    with pytest.raises(ConfigError, match="so out=D does nothing; .*rollback .* --step N out=D"):
        pipeline.resume(str(undisturbed), ["out=D"], no_compose)
    fewer = own_config(parts, undisturbed, trainer={"max_steps": 1})
    with pytest.raises(ConfigError, match="trainer.max_steps=1 is less than the 6 steps that .* has trained"):
        pipeline.resume(str(undisturbed), ["trainer.max_steps=1"], lambda _: fewer)
    with pytest.raises(RunFolderError, match="not a run folder"):
        pipeline.resume(str(undisturbed / "checkpoints"), [], no_compose)


def test_the_config_on_disk_is_the_config_that_ran(parts, undisturbed):
    from routed_rl.pipeline.record import dated, read_config

    found = read_config(RunFolder(undisturbed))
    assert found.model.date and found == dated(own_config(parts, undisturbed), found.model.date)
    assert from_mapping({}) != own_config(parts, undisturbed)


def test_a_checkpoint_folder_is_the_deployed_model_for_plain_transformers(undisturbed, recwarn):
    from transformers import AutoModelForCausalLM

    folder = RunFolder(undisturbed).require_checkpoint()
    model, found = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(found.values())
    stored = load_file(undisturbed / "deployed" / "model.safetensors")
    assert all(torch.equal(model.state_dict()[name], value) for name, value in stored.items())
