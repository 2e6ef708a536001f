"""A run of a model whose family is found by probing: training, checkpoints, a resume's record, and what leaves the run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, GenerationConfig, GraniteMoeConfig, GraniteMoeForCausalLM

from routed_rl.artifacts import RunFolder
from routed_rl.errors import ModelError
from routed_rl.export.adapter import export_quarantine
from routed_rl.export.models import merged_policy
from routed_rl.export.stock import discard
from tests import pipeline
from tests.causal_models import tiny_causal
from tests.parts import WORDS, own_config, write_parts

IDS = torch.arange(2, 9).unsqueeze(0)


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    """A mixture with a constant scale behind every writer, in the place of the usual model."""
    folder = write_parts(tmp_path_factory.mktemp("parts"))
    torch.manual_seed(0)
    GraniteMoeForCausalLM(GraniteMoeConfig(
        vocab_size=len(WORDS), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=3, num_experts_per_tok=2, residual_multiplier=0.5, pad_token_id=0,
        eos_token_id=1, bos_token_id=None)).save_pretrained(folder / "model")
    return folder


def configured(parts: Path, out: Path, **changes):
    return own_config(parts, out, trainer={"max_steps": 2, "save_steps": 1, "router_aux_loss_coef": 0}, **changes)


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model.eval()(input_ids=IDS).logits


def test_a_family_found_by_probing_is_trained_saved_and_exported(parts, tmp_path):
    writers = ["self_attn.o_proj", "block_sparse_moe.experts"]
    folder = pipeline.train(configured(parts, tmp_path / "run", model={"path": f"{parts}/model", "writers": writers}), [])
    run = RunFolder(folder)
    deployed = AutoModelForCausalLM.from_pretrained(discard(run, tmp_path / "deployed"))
    policy = AutoModelForCausalLM.from_pretrained(merged_policy(run, tmp_path / "policy"))
    adapted = PeftModel.from_pretrained(deployed, str(export_quarantine(run, tmp_path / "adapter")))
    expected = logits(policy)
    assert (logits(adapted) - expected).abs().max() < 1e-5 * expected.abs().max()
    with adapted.disable_adapter():
        assert (logits(adapted) - expected).abs().max() > 1e-4 * expected.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "adapter"), [
    ("mamba", {}), ("mamba", {"kind": "lora", "r": 2}), ("falcon_h1", {"kind": "lora", "r": 2})])
def test_a_model_without_attention_or_with_other_layers_beside_it_is_trained_by_the_command(tmp_path, kind, adapter):
    parts = write_parts(tmp_path)
    model = tiny_causal(kind, pad_token_id=0, eos_token_id=1, bos_token_id=None)
    model.generation_config = GenerationConfig(pad_token_id=0, eos_token_id=1)
    model.save_pretrained(parts / "model")
    dtype = "bfloat16" if kind == "mamba" and adapter else "float32"
    config = configured(parts, tmp_path / "run", model={"path": f"{parts}/model", "adapter": adapter, "dtype": dtype})
    assert RunFolder(pipeline.train(config, [])).summary.exists()


@pytest.mark.slow
def test_a_model_with_which_transformers_cannot_generate_is_refused_before_the_run(tmp_path):
    """Its cache has no layer of attention, by which transformers counts tokens."""
    parts = write_parts(tmp_path)
    model = tiny_causal("bamba", pad_token_id=0, eos_token_id=1, bos_token_id=None)
    model.generation_config = GenerationConfig(pad_token_id=0, eos_token_id=1)
    model.save_pretrained(parts / "model")
    with pytest.raises(ModelError, match="transformers cannot generate a token with .*, so there would be no rollouts: ValueErr"):
        pipeline.train(configured(parts, tmp_path / "run"), [])
    assert not (tmp_path / "run").exists()


def test_wrong_names_end_a_run_before_it_begins(parts, tmp_path):
    config = configured(parts, tmp_path / "run", model={"path": f"{parts}/model", "writers": ["mlp.down_proj"]})
    with pytest.raises(ModelError, match=r"model\.writers=\[mlp\.down_proj\]: no layer of model\.layers has 'mlp\.down_proj'"):
        pipeline.train(config, [])
    assert not (tmp_path / "run").exists()
