"""Runs on weights in 4 bit: what they need is said at once, and where bitsandbytes is they are runs of a LoRA like any other."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from routed_rl.audit import audit
from routed_rl.config import AuditConfig
from routed_rl.errors import ConfigError, ModelError
from routed_rl.model.load import load_model
from routed_rl.tracking import MetricsFile
from tests import pipeline
from tests.builders import relative
from tests.parts import write_parts
from tests.test_adapter_runs import in_memory, logits, lora_config, same

QLORA = {"kind": "qlora"}


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    return write_parts(tmp_path_factory.mktemp("parts"), hidden=64)


def found(monkeypatch, *, installed: bool) -> None:
    """bitsandbytes is there or not, whatever this machine has."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *args: (object() if installed else None)
                        if name == "bitsandbytes" else find(name, *args))


def test_without_bitsandbytes_it_is_said_before_anything_is_read(parts, tmp_path, monkeypatch):
    found(monkeypatch, installed=False)
    for refused in (lambda: pipeline.train(lora_config(parts, tmp_path / "run", lora=QLORA), []),
                    lambda: load_model(str(parts / "model"), frozen=True, packed=True)):
        with pytest.raises(ConfigError, match=r"model.adapter=qlora needs bitsandbytes: pip install 'routed-rl\[qlora\]'"):
            refused()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("changes", "said"), [
    ({"launch": {"strategy": "fsdp2", "processes": 2}}, "qlora is not supported with launch.strategy=fsdp2.* set launch=ddp"),
    ({"rollout": {"engine": "vllm_colocate"}}, "rollout=vllm_colocate would generate with the full.*set rollout=transformers"),
])
def test_what_weights_in_4_bit_cannot_do_is_said_before_anything_is_written(parts, tmp_path, monkeypatch, changes, said):
    found(monkeypatch, installed=True)
    with pytest.raises(ConfigError, match=said) as refusal:
        pipeline.train(lora_config(parts, tmp_path / "run", lora=QLORA, **changes), [])
    assert "\n" not in str(refusal.value) and not (tmp_path / "run").exists()


def test_an_adapter_to_begin_from_and_weights_that_are_quantised_already_are_refused(parts, tmp_path):
    with pytest.raises(ConfigError, match=r"model.adapter.path=DIR cannot be merged into weights in 4 bit; .* model.path"):
        lora_config(parts, tmp_path / "run", lora=QLORA | {"path": "DIR"})
    shutil.copytree(parts / "model", tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes"}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"quantised weights \(bitsandbytes\).*give the model that it was made from"):
        load_model(str(tmp_path / "model"), frozen=True)


@pytest.mark.slow
def test_a_run_on_weights_in_4_bit_is_a_run_of_a_lora(parts, tmp_path):
    pytest.importorskip("bitsandbytes", reason="pip install 'routed-rl[qlora]'")
    targets = ["q_proj", "o_proj", "up_proj"]  # down_proj is a writer without a LoRA
    config = lora_config(parts, tmp_path / "run", lora=QLORA | {"target_modules": targets})
    run = pipeline.train(config, [])
    adapter = load_file(run / "deployed" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in adapter.values()} == {torch.float32}
    assert any(tensor.bfloat16().float().ne(tensor).any() for tensor in adapter.values()), "TRL has not rounded it"
    rows = [row for row in MetricsFile(run / "metrics.jsonl").rows() if "quarantine/norm" in row]
    assert all(row["routing/drift"] < 1e-6 and row["quarantine/norm"] > 0 for row in rows)
    models = in_memory(run)
    base = load_model(str(parts / "model"), frozen=True, packed=True)
    assert relative(models["base"], logits(base)) < 1e-5 < relative(models["deployed"], models["policy"])
    assert relative(logits(PeftModel.from_pretrained(base, str(run / "deployed"))), models["deployed"]) < 1e-5
    with pytest.raises(ConfigError, match="trained on weights in 4 bit .* leave --merge out"):
        pipeline.discard(str(run), str(tmp_path / "merged"), merge=True)
    again = pipeline.train(lora_config(parts, tmp_path / "again", lora=QLORA | {"target_modules": targets},
                                       trainer={"max_steps": 2}), [])
    pipeline.resume(str(again), ["trainer.max_steps=4"], lambda _: lora_config(
        parts, again, lora=QLORA | {"target_modules": targets}))
    same(again, run)
    found = audit(str(run), AuditConfig(samples=8, prompts=8, blocks=2), None, None)
    moved = found["models"]["deployed"]["shift"]
    assert found["models"]["base"]["shift"] == 0 != moved
    for groups in found["groups"].values():
        assert sum(group["energy"] for group in groups.values()) == pytest.approx(1)
        assert sum(group["measures"]["shift"]["carried"] for group in groups.values()) == pytest.approx(moved, abs=1e-9)
