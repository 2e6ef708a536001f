"""Nothing that is not finite is saved, or gone on from: a run ends with one line, and its last finite checkpoint stays."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from routed_rl.artifacts import RunFolder, first_nonfinite, sealed_folder
from routed_rl.checkpoint import writing
from routed_rl.errors import CheckFailed, CheckpointError
from routed_rl.export.stock import discard
from routed_rl.pipeline.halting import checkpoint_before
from routed_rl.training.callback import RoutingCallback
from routed_rl.training.mixin import RoutedTrainerMixin
from tests import pipeline
from tests.parts import own_config
from tests.tiers import tiered


def config(parts, out, **trainer):
    wanted = own_config(parts, out, trainer={"max_steps": 4, "save_steps": 2, "save_total_limit": 1} | trainer)
    wanted.evaluation.samples, wanted.discard = 0, False
    return wanted


def test_a_rate_that_nothing_survives_ends_the_run_before_the_next_checkpoint(parts, tmp_path):
    with pytest.raises(CheckFailed, match="step 2: a logit of the policy is not finite.*checkpoint is step-1;.*learning_rate"):
        pipeline.train(config(parts, tmp_path / "run", learning_rate=1e9, save_steps=1), [])
    assert RunFolder(tmp_path / "run").steps() == [1]


@pytest.mark.parametrize("where", tiered(["weight", "quarantine"], slow=["quarantine"]))
def test_a_nan_in_the_trainer_never_reaches_a_checkpoint_and_the_last_finite_one_stays(parts, tmp_path, monkeypatch, where):
    """Also where transformers logs seldom, and puts the average in the place of a loss that is nan."""
    end = RoutingCallback.on_step_end

    def broken(callback, args, state, control, **kwargs):
        trainer = callback.trainer
        if state.global_step == 4 and where == "weight":
            next(each for each in trainer.model.parameters() if each.requires_grad).data[0] = torch.nan
        if state.global_step == 4 and where == "quarantine":
            trainer.router.quarantine.targets[0].coefficients[0, 0] = torch.inf
        end(callback, args, state, control, **kwargs)

    monkeypatch.setattr(RoutingCallback, "on_step_end", broken)
    with pytest.raises(CheckFailed, match=r"step 4: \S+ in \S+ is not finite; nothing.*last finite checkpoint is step-2"):
        pipeline.train(config(parts, tmp_path / "run", logging_steps=10), [])
    run = RunFolder(tmp_path / "run")
    assert run.steps() == [2] and first_nonfinite(run.checkpoint(2)) is None


@pytest.mark.parametrize("mode", tiered(["route", "none"], slow=["none"]))
def test_the_environment_whose_rows_gave_it_is_named(parts, tmp_path, monkeypatch, mode):
    generate = RoutedTrainerMixin._generate_and_score_completions

    def poisoned(trainer, inputs):
        output = generate(trainer, inputs)
        output["advantages"][output["environment_ids"] == 1] *= torch.nan if trainer.state.global_step == 2 else 1
        return output

    monkeypatch.setattr(RoutedTrainerMixin, "_generate_and_score_completions", poisoned)
    wanted = config(parts, tmp_path / "run", logging_steps=10)
    wanted.routing.mode = mode
    who = "b" if mode == "route" else "a, b"  # unrouted no ledger tells them apart
    with pytest.raises(CheckFailed, match=f"step 3: the loss is not finite in the rows of {who}; .*step-2"):
        pipeline.train(wanted, [])


@pytest.fixture
def older(parts, tmp_path) -> RunFolder:
    """A run whose last checkpoint is whole and holds a nan, as an older version wrote it."""
    run = RunFolder(tmp_path / "run")
    for step in (2, 4):
        with sealed_folder(run.checkpoint(step)) as folder:
            for path in (parts / "model").iterdir():
                shutil.copy(path, folder / path.name)
            tensors = load_file(folder / "model.safetensors")
            if step == 4:
                tensors[min(tensors)].view(-1)[-1] = torch.nan
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return run


def test_one_that_an_older_version_wrote_is_never_a_place_to_go_on_from(older, tmp_path, capsys):
    newest, skipped = older.last_checkpoint()
    assert newest == older.checkpoint(2) and len(skipped) == 1
    assert skipped[0].startswith("skipped checkpoint step-4: ") and skipped[0].endswith(" in model.safetensors is not finite")
    assert checkpoint_before(older, 9) == 2
    discard(older, tmp_path / "deployed")
    assert "skipped checkpoint step-4" in (said := capsys.readouterr().out) and "this is of step-2" in said
    assert first_nonfinite(tmp_path / "deployed") is None
    with pytest.raises(CheckpointError, match=r"--step 4: .* no whole checkpoint there \(.* is not finite\); it has 2"):
        discard(older, tmp_path / "other", 4)


def test_a_damaged_later_checkpoint_never_costs_the_one_that_is_written(older):
    """Gone on with from step 2, with `save_total_limit=1`: step 4 is still there when step 3 is written."""
    with writing(older, 3, 1) as folder:
        save_file({"weight": torch.zeros(1)}, folder / "model.safetensors")
    assert older.last_checkpoint()[0] == older.checkpoint(3)


def test_every_kind_of_number_is_looked_at(tmp_path):
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        save_file({"fine": torch.arange(3), "odd": torch.tensor([0.0, -torch.inf], dtype=dtype)}, tmp_path / "model.safetensors")
        assert first_nonfinite(tmp_path) == "odd in model.safetensors"
    Path(tmp_path, "model.safetensors").unlink()
    torch.save({"state": {0: {"exp_avg": torch.tensor([torch.nan])}}, "groups": [{"lr": 0.1}]}, tmp_path / "optimizer.pt")
    assert first_nonfinite(tmp_path) == "state.0.exp_avg in optimizer.pt"
    Path(tmp_path, "optimizer.pt").write_bytes(b"no tensors")
    assert first_nonfinite(tmp_path) is None
