"""A checkpoint that is sealed and yet not what a run writes is refused in one line that names the file and the way out."""

from __future__ import annotations

import copy
import gc
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import MixtralConfig, MixtralForCausalLM

from routed_rl.artifacts import RunFolder, sealed_folder
from routed_rl.errors import CheckpointError
from routed_rl.pipeline.build import load_parts, make_router, run_subspace
from routed_rl.pipeline.halting import halted_steps
from routed_rl.pipeline.rollback import copy_checkpoint
from routed_rl.training.build import build_trainer
from routed_rl.training.completions import forget_after
from routed_rl.training.plan import make_plan
from tests import pipeline
from tests.parts import WORDS, own_config
from tests.training.test_resume import assert_same


def config(parts: Path, out: Path, **trainer: Any):
    trainer = {"algorithm": "ppo", "max_steps": 3, "save_steps": 2, "use_adaptive_entropy": True} | trainer
    return own_config(parts, out, trainer=trainer, evaluation={"samples": 0})


@pytest.fixture(scope="module")
def run(parts, tmp_path_factory) -> Path:
    return pipeline.train(config(parts, tmp_path_factory.mktemp("run") / "run"), [])


def put(*keys: Any) -> Callable[[Any], Any]:
    """Change what is read from a file: at the keys before the last, the last."""
    def change(content: Any) -> Any:
        inner = content = copy.deepcopy(content)
        for key in keys[:-2]:
            inner = inner[key]
        inner[keys[-2]] = keys[-1]
        return content
    return change


def without(*keys: Any) -> Callable[[Any], Any]:
    def change(content: Any) -> Any:
        inner = content = copy.deepcopy(content)
        for key in keys[:-1]:
            inner = inner[key]
        del inner[keys[-1]]
        return content
    return change


def other(content: Any) -> list[int]:
    return [1]


FOREIGN = [
    ("loop.pt", other), ("loop.pt", without("micro_step")), ("loop.pt", put("micro_step", "x")), ("loop.pt", put("scored", [1])),
    ("loop.pt", put("buffered", [{"prompt_ids": 1}])), ("loop.pt", put("completions", "open", 0, {"file": "a"})),
    ("loop.pt", put("completions", "open", 0, "values_R2", torch.zeros(1))),
    ("value_head.pt", other), ("value_head.pt", put("head", "weight", torch.zeros(1, 3))),
    ("value_head.pt", put("optimizer", "state", 0, "exp_avg", torch.zeros(3, 3))),
    ("trainer_state.json", other), ("trainer_state.json", put("global_step", 1)), ("trainer_state.json", put("log_history", 3)),
    ("trainer_state.json", put("unknown", 3)),
    ("optimizer.pt", other), ("optimizer.pt", put("state", {})), ("optimizer.pt", without("param_groups", 0)),
    ("optimizer.pt", put("state", 0, "exp_avg", torch.zeros(3, 3))), ("optimizer.pt", put("state", 0, "exp_avg", "x")),
    ("optimizer.pt", without("state", 0, "exp_avg_sq")), ("optimizer.pt", put("param_groups", 0, "lr", "x")),
    ("optimizer.pt", without("param_groups", 0, "betas")),
    ("scheduler.pt", other), ("scheduler.pt", put("last_epoch", "x")), ("rng_state.pth", other),
    ("entropy_ctrl_state.json", other), ("entropy_ctrl_state.json", put("entropy_coef", "x")),
    ("quarantine.safetensors", other), ("model.safetensors", other),
]


def test_a_sealed_file_of_another_shape_is_refused_in_one_line(parts, run, tmp_path, monkeypatch):
    monkeypatch.setattr(gc, "collect", lambda *_: 0)  # what nearly all of the time would go to
    plan = make_plan(config(parts, run), RunFolder(run))
    loaded = load_parts(plan.config)
    router = make_router(loaded, run_subspace(loaded, plan.run))
    trainer = build_trainer(plan, loaded.model, loaded.tokenizer, loaded.trained, router)
    checkpoint = tmp_path / "step-2"
    for file, change in FOREIGN:
        shutil.rmtree(checkpoint, ignore_errors=True)
        shutil.copytree(plan.run.checkpoint(2), checkpoint)
        path = checkpoint / file
        if path.suffix == ".json":
            path.write_text(json.dumps(change(json.loads(path.read_text()))))
        elif path.suffix == ".safetensors":
            save_file({"foreign": torch.zeros(2)}, path)
        else:
            torch.save(change(torch.load(path, weights_only=False)), path)
        with pytest.raises(CheckpointError) as caught:
            trainer.train(resume_from_checkpoint=str(checkpoint))
        assert re.fullmatch(rf".*step-2/{file} is not what this run writes .*--step N.*move step-2 out.*", str(caught.value))


def test_a_name_without_a_step_is_said_with_the_way_out(tmp_path):
    run = RunFolder(tmp_path)
    for name, read in (("halts/step-abc.json", lambda: halted_steps(run)), ("halts/step-1abc.json", lambda: halted_steps(run)),
                       ("completions/step-abc.parquet", lambda: forget_after(run.completions, 0))):
        (path := tmp_path / name).parent.mkdir(exist_ok=True)
        path.touch()
        with pytest.raises(CheckpointError, match=rf"{name} has no step in its name.*move it out"):
            read()
        path.unlink()


def test_a_rollback_from_a_foreign_quarantine_is_refused_in_one_line(tmp_path):
    old, new = RunFolder(tmp_path / "old"), RunFolder(tmp_path / "new")
    with sealed_folder(old.checkpoint(2)) as folder:
        save_file({"a.parts": torch.zeros(1, 2, 2)}, folder / "quarantine.safetensors", metadata={"environments": '["a"]'})
    with pytest.raises(CheckpointError, match="old/checkpoints/step-2/quarantine.safetensors is not what this run writes"):
        copy_checkpoint(old, new, 2, False, (["b"], ["a"]))
    assert not new.checkpoint(2).exists()


@pytest.mark.slow
def test_a_mixture_goes_on_with_the_experts_and_the_gate_that_it_learned(parts, tmp_path):
    shutil.copytree(parts, tmp_path / "parts")
    torch.manual_seed(0)
    MixtralForCausalLM(MixtralConfig(
        vocab_size=len(WORDS), hidden_size=32, intermediate_size=16, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=3, pad_token_id=0, eos_token_id=1, bos_token_id=None,
        )).save_pretrained(tmp_path / "parts" / "model")
    own = {"algorithm": "grpo", "router_aux_loss_coef": 0.0}
    whole = pipeline.train(config(tmp_path / "parts", tmp_path / "whole", **own), [])
    half = pipeline.train(config(tmp_path / "parts", tmp_path / "half", **own, save_steps=1, max_steps=2), [])
    pipeline.resume(str(half), ["again"], lambda _: config(tmp_path / "parts", half, **own))
    assert_same(half, whole)
