"""What `--dry-run` says of memory: line by line, from a config alone, and as much as a run takes."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen3Config

from routed_rl.artifacts import RunFolder
from routed_rl.errors import ModelError
from routed_rl.pipeline.build import describe_parts, load_parts, make_router, make_subspace
from routed_rl.pipeline.memory import Need, needs
from routed_rl.pipeline.moments import activations, device_bytes, peak, rollouts
from routed_rl.training.activations import Alive
from routed_rl.training.build import build_trainer
from routed_rl.training.plan import make_plan
from tests import pipeline
from tests.parts import write_parts
from tests.ranks import on_ranks
from tests.test_adapter_runs import lora_config

COMPLETION = 48


def test_what_is_alive_is_counted_once_and_as_long_as_it_lives():
    before = torch.zeros(10)
    with Alive() as alive:
        alive.see(before)
        first = torch.zeros(100)
        view = first.view(10, 10)[3]
        assert alive.now == 440
        second = first + 1
        del first
        assert alive.now == 840, "the view keeps it"
        del view
    assert (alive.now, alive.peak) == (440, 840)
    del second
    assert alive.now == 40


def without_weights(parts: Path) -> None:
    (parts / "model" / "model.safetensors").unlink()


def test_a_folder_with_a_config_and_a_tokenizer_is_enough_to_say_what_a_run_takes(tmp_path, capsys):
    parts = write_parts(tmp_path / "parts")
    without_weights(parts)
    config = lora_config(parts, tmp_path / "run", dtype="bfloat16", rollout={"engine": "vllm_colocate"})
    pipeline.train(config, [], dry_run=True)
    said = capsys.readouterr().out
    for line in ("memory        about", "weights ", "adapter ", "gradients ", "optimizer ", "quarantine ", "activations ",
                 "rollout.gpu_memory=0.3 of 80.0 GB", "of 80.0 GB: ", "there are none in",
                 f"completions, learning rate {config.trainer['learning_rate']:g}"):
        assert line in said
    assert not (tmp_path / "run").exists()
    with pytest.raises(ModelError, match="no model could be loaded"):
        pipeline.train(lora_config(parts, tmp_path / "run"), [])


def test_an_engine_whose_weights_do_not_fit_its_share_is_said_with_the_way_out(tmp_path):
    parts = write_parts(tmp_path / "parts")
    without_weights(parts)
    settings = json.loads((parts / "model" / "config.json").read_text())
    (parts / "model" / "config.json").write_text(json.dumps(settings | {"vocab_size": 10_000_000}))
    config = lora_config(parts, tmp_path / "run", rollout={"engine": "vllm_colocate", "gpu_memory": 0.01})
    described = describe_parts(config)
    need = rollouts(described, make_plan(config, RunFolder(tmp_path / "run"), here=False).arguments, 4)
    assert "WHICH DO NOT FIT: set rollout.dtype=bfloat16 or a larger rollout.gpu_memory" in need.how


def test_an_engine_that_sleeps_during_updates_shares_its_memory_with_them(tmp_path):
    parts = write_parts(tmp_path / "parts")
    without_weights(parts)

    def counted(**rollout: Any) -> float:
        config = lora_config(parts, tmp_path / "run", dtype="bfloat16", rollout={"engine": "vllm_colocate", **rollout})
        arguments = make_plan(config, RunFolder(tmp_path / "run"), here=False).arguments
        described = describe_parts(config)
        return peak([*needs(described), rollouts(described, arguments, 4), Need("activations", 1e9, "")])

    assert counted() == pytest.approx(counted(sleep=True) + 1e9, rel=1e-3)


def memory_config(parts: Path, out: Path, *, checkpointing: bool, accumulated: int, lean: bool):
    trainer = {"lean": lean, "max_steps": 2, "save_steps": 9, "max_completion_length": COMPLETION,
               "gradient_checkpointing": checkpointing, "per_device_train_batch_size": 32 // accumulated,
               "gradient_accumulation_steps": accumulated}
    return lora_config(parts, out, trainer=trainer)


def measured(config: Any) -> tuple[int, float]:
    """The most that a run's tensors take while it trains on completions that are there, and what is said of it."""
    loaded, run = load_parts(config), RunFolder(config.out)
    router = make_router(loaded, make_subspace(loaded))
    plan = make_plan(config, run)
    run.path.mkdir(parents=True)
    said = peak([*needs(loaded), *filter(None, [activations(loaded, plan.arguments, 4)])])
    trainer: Any = build_trainer(plan, loaded.learner, loaded.tokenizer, loaded.trained, router)
    trainer._generate_single_turn = lambda ids, *_, **__: ([[5 + place % 9] * COMPLETION for place in range(len(ids))], None)
    trainer._every_row_teaches = lambda: True
    with Alive() as alive:
        for each in gc.get_objects():
            alive.see(each)
        trainer.train()
    return alive.peak, said


@pytest.mark.slow
@pytest.mark.parametrize(("checkpointing", "accumulated", "lean"), [(False, 1, True), (True, 1, True), (False, 4, True),
                                                                    (False, 1, False)])
def test_what_is_said_is_what_a_small_model_takes_within_a_tenth(tmp_path, checkpointing, accumulated, lean):
    parts = write_parts(tmp_path / "parts", hidden=256)
    config = memory_config(parts, tmp_path / "run", checkpointing=checkpointing, accumulated=accumulated, lean=lean)
    found, said = on_ranks(measured, config, world=1, timeout=900)[0]
    assert said == pytest.approx(found, rel=0.1)


@pytest.mark.slow
def test_a_lean_update_has_no_logits_of_prompts(tmp_path):
    parts, prompt = write_parts(tmp_path / "parts"), 100
    without_weights(parts)
    settings = json.loads((parts / "model" / "config.json").read_text())
    (parts / "model" / "config.json").write_text(json.dumps(settings | {"vocab_size": 20_000}))
    said = {}
    for lean in (True, False):
        config = memory_config(parts, tmp_path / "run", checkpointing=False, accumulated=1, lean=lean)
        arguments = make_plan(config, RunFolder(tmp_path / "run"), here=False).arguments
        held = activations(describe_parts(config), arguments, prompt)
        assert held is not None
        said[lean] = held.bytes
    logits = 4 * 20_000 * arguments.per_device_train_batch_size * prompt
    assert said[True] < 0.7 * said[False] and (torch.cuda.is_available() or said[False] - said[True] > 0.9 * logits)


@pytest.mark.slow
def test_qwen3_8b_with_a_lora_and_vllm_fits_a_gpu_of_80_gb(tmp_path):
    parts = write_parts(tmp_path / "parts")
    without_weights(parts)
    Qwen3Config(vocab_size=151936, hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32,
                num_key_value_heads=8, head_dim=128, tie_word_embeddings=False).save_pretrained(parts / "model")
    config = lora_config(parts, tmp_path / "run", dtype="bfloat16", lora={"r": 32}, trainer={
        "bf16": True, "use_cpu": True, "gradient_checkpointing": True, "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 4, "max_completion_length": 512},
        rollout={"engine": "vllm_colocate", "dtype": "bfloat16"})
    described, arguments = describe_parts(config), make_plan(config, RunFolder(tmp_path / "run"), here=False).arguments
    found = {need.name: need for need in [*needs(described), rollouts(described, arguments, 256)]}
    held = activations(described, arguments, 256)
    assert held is not None and 2e9 < held.bytes < 20e9
    assert found["weights"].bytes == pytest.approx(2 * 8.19e9, rel=0.01)
    assert found["adapter"].bytes == pytest.approx(4 * 87.3e6, rel=0.01)
    assert peak([*found.values(), held]) < (device_bytes(described) or 0) == 80e9
