"""Law 5: what is exported has, in stock loaders, the logits of the model in memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteMoeConfig,
    GraniteMoeForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from routed_rl.artifacts import RunFolder, broken_seal, sealed_folder
from routed_rl.errors import CheckpointError, ConfigError, ModelError, RunFolderError
from routed_rl.export.adapter import export_quarantine
from routed_rl.export.dtype import cast
from routed_rl.export.lora import write_lora
from routed_rl.export.models import discard_but, merged_policy
from routed_rl.export.stock import copy_stock_files, discard
from routed_rl.export.stored import StoredTarget
from routed_rl.linalg import random_basis
from routed_rl.model.metadata import family_metadata
from routed_rl.model.targets import find_writers
from routed_rl.routing import RoutingContext
from routed_rl.routing.quarantine import Quarantine
from routed_rl.routing.target import Target
from tests.chat import chat_tokenizer

TOLERANCE = 1e-5
"""float32 rounding: the policy adds A(Cx) in another order than the adapter or the merged weight."""
RANKS = (3, 0, 2)
NAMES = ["code", "sums"]
IDS = torch.arange(14).view(2, 7)


def llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=3,
                                        num_attention_heads=2, num_key_value_heads=2))


def tied() -> PreTrainedModel:
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=3,
                                        num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=True))


def gemma2() -> PreTrainedModel:
    return Gemma2ForCausalLM(Gemma2Config(vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=3, head_dim=8,
                                          num_attention_heads=2, num_key_value_heads=2, query_pre_attn_scalar=8))


def gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=16, n_layer=3, n_head=2, n_positions=16, resid_pdrop=0,
                                      embd_pdrop=0, attn_pdrop=0, bos_token_id=0, eos_token_id=0))


class Saved:
    """A routed model in memory, and the run folder that holds its checkpoint."""

    def __init__(self, model: PreTrainedModel, folder: Path) -> None:
        generator = torch.Generator().manual_seed(1)
        self.model, self.context = model.eval(), RoutingContext()
        bases = [random_basis(16, rank, generator) for rank in RANKS]
        targets = [Target(writer.name, writer.layer, writer.module, bases[writer.layer], 1.0,
                          self.context, len(NAMES), transposed=writer.transposed, gain_D=writer.gain_D, expert=writer.expert,
                          active=writer.active) for writer in find_writers(model)]
        self.quarantine = Quarantine(targets, NAMES, self.context)
        for target in targets:
            target.parts.copy_(torch.randn(target.parts.shape, generator=generator))
            target.coefficients.copy_(target.parts.sum(0))
        self.run = RunFolder(folder / "run")
        with sealed_folder(self.run.checkpoint(7)) as checkpoint:
            model.save_pretrained(checkpoint)
            (checkpoint / "optimizer.pt").write_text("the trainer's own")
            save_file(self.quarantine.state_dict(), checkpoint / "quarantine.safetensors",
                      metadata={"environments": json.dumps(NAMES), "mode": "route", "step": "7", **family_metadata(model)})

    def logits(self) -> torch.Tensor:
        return logits(self.model)

    def deployed(self, folder: Path) -> PreTrainedModel:
        return AutoModelForCausalLM.from_pretrained(discard(self.run, folder))


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    found = model(input_ids=IDS).logits
    assert found.isfinite().all()
    return found


def olmo2() -> PreTrainedModel:
    return Olmo2ForCausalLM(Olmo2Config(vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=3,
                                        num_attention_heads=2, num_key_value_heads=2, bos_token_id=0, eos_token_id=0,
                                        pad_token_id=0))


def mixtral() -> PreTrainedModel:
    return MixtralForCausalLM(MixtralConfig(vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=3,
                                            num_attention_heads=2, num_key_value_heads=2, num_local_experts=3,
                                            experts_implementation="eager"))


def qwen3_moe() -> PreTrainedModel:
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(
        vocab_size=20, hidden_size=16, intermediate_size=24, moe_intermediate_size=12, num_hidden_layers=3, head_dim=8,
        num_attention_heads=2, num_key_value_heads=2, num_experts=3, num_experts_per_tok=2, mlp_only_layers=[0],
        experts_implementation="eager"))


def granitemoe() -> PreTrainedModel:
    """Found by probing: scaled writers, and a mixture that checkpoints keep in one tensor."""
    return GraniteMoeForCausalLM(GraniteMoeConfig(
        vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=2,
        num_local_experts=3, residual_multiplier=0.5, experts_implementation="eager"))


@pytest.fixture(params=[llama, tied, gemma2, olmo2, gpt2, mixtral, qwen3_moe, granitemoe])
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Saved:
    torch.manual_seed(0)
    model = request.param()
    # GPT-2's biases start at zero, which would hide a bias that is added twice.
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return Saved(model, tmp_path)


def test_the_discarded_model_is_the_ablated_policy_exactly(saved: Saved, tmp_path: Path) -> None:
    with saved.quarantine.ablated():
        expected = saved.logits()
    assert torch.equal(logits(saved.deployed(tmp_path / "deployed")), expected)
    assert not torch.allclose(saved.logits(), expected, atol=0.1)


def test_the_deployed_folder_holds_nothing_of_the_quarantine(saved: Saved, tmp_path: Path) -> None:
    names = {file.name for file in discard(saved.run, tmp_path / "deployed").iterdir()}
    assert names == {"COMPLETE.json", "config.json", "generation_config.json", "model.safetensors"}


def test_every_chat_template_of_the_tokenizer_is_copied(tmp_path: Path) -> None:
    for place in ("model", "out"):
        (tmp_path / place).mkdir()
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = {"default": "a", "tool_use": "b"}
    tokenizer.save_pretrained(tmp_path / "model")
    copy_stock_files(tmp_path / "model", tmp_path / "out")
    assert PreTrainedTokenizerFast.from_pretrained(tmp_path / "out").chat_template == {"default": "a", "tool_use": "b"}


def test_a_checkpoint_without_a_weight_of_the_quarantine_is_not_merged_in_part(tmp_path: Path) -> None:
    saved = Saved(llama(), tmp_path)
    with sealed_folder(saved.run.checkpoint(8)) as checkpoint:
        shutil.copytree(saved.run.checkpoint(7), checkpoint, dirs_exist_ok=True, ignore=lambda *_: ["COMPLETE.json"])
        weights = load_file(checkpoint / "model.safetensors")
        del weights["model.layers.2.mlp.down_proj.weight"]
        save_file(weights, checkpoint / "model.safetensors")
    with pytest.raises(CheckpointError, match="has no weight model.layers.2.mlp.down_proj.weight, into which"):
        merged_policy(saved.run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_stock_adapter_on_the_deployed_model_is_the_policy(saved: Saved, tmp_path: Path) -> None:
    adapter = export_quarantine(saved.run, tmp_path / "adapter")
    stock = PeftModel.from_pretrained(saved.deployed(tmp_path / "deployed"), str(adapter)).eval()
    assert (logits(stock) - saved.logits()).abs().max() < TOLERANCE * saved.logits().abs().max()
    with stock.disable_adapter(), saved.quarantine.ablated():
        assert torch.equal(logits(stock), saved.logits())


def test_an_adapter_that_peft_cannot_read_is_not_written(tmp_path: Path) -> None:
    """Biases beside experts."""
    plain = StoredTarget("l.o_proj", "l.o_proj.weight", None, None, torch.ones(4, 2), torch.ones(2, 3), torch.ones(2))
    mixed = StoredTarget("l.experts.0.down_proj", "l.experts.0.down_proj.weight", 0, "l.experts.down_proj", torch.ones(4, 2),
                         torch.ones(2, 3), None)
    with pytest.raises(ModelError, match=r"no adapter with biases beside a LoRA on the parameter l\.experts\.down_proj"):
        write_lora(tmp_path, {}, [plain, mixed], "base", transposed=False, mixed=True)
    assert not list(tmp_path.iterdir())


def test_one_environments_part_is_exported_alone(saved: Saved, tmp_path: Path) -> None:
    adapter = export_quarantine(saved.run, tmp_path / "adapter", "sums")
    stock = PeftModel.from_pretrained(saved.deployed(tmp_path / "deployed"), str(adapter)).eval()
    for target in saved.quarantine.targets:
        target.coefficients.copy_(target.parts[1])
    assert (logits(stock) - saved.logits()).abs().max() < TOLERANCE * saved.logits().abs().max()


def test_the_merged_policy_is_the_policy(saved: Saved, tmp_path: Path) -> None:
    stock = AutoModelForCausalLM.from_pretrained(merged_policy(saved.run, tmp_path / "merged"))
    assert (logits(stock) - saved.logits()).abs().max() < TOLERANCE * saved.logits().abs().max()


@pytest.mark.parametrize("saved", [gpt2, mixtral], indirect=True)
def test_every_part_kept_whole_is_the_merged_policy_and_none_the_deployed_model_to_the_bit(saved: Saved, tmp_path: Path) -> None:
    def weights(folder: Path) -> bytes:
        return (folder / "model.safetensors").read_bytes()

    def keeping(name: str, **shares: float) -> bytes:
        return weights(discard_but(saved.run, tmp_path / name, {env: {"share": share} for env, share in shares.items()}))

    assert keeping("all", sums=1.0, code=1.0) == weights(merged_policy(saved.run, tmp_path / "policy"))
    assert keeping("none", sums=0.0) == weights(discard(saved.run, tmp_path / "deployed"))
    assert keeping("code", code=1.0) not in (weights(tmp_path / "all"), weights(tmp_path / "none"))


@pytest.mark.parametrize("saved", [gpt2, gemma2, olmo2, mixtral], indirect=True)
def test_a_share_of_one_part_is_kept_and_an_adapter_of_what_is_missing_makes_it_the_policy(saved: Saved, tmp_path: Path) -> None:
    kept = discard_but(saved.run, tmp_path / "kept", {"sums": {"share": 0.25, "why": "told"}})
    with saved.quarantine.kept({"sums": 0.25}):
        expected = saved.logits()
    found = AutoModelForCausalLM.from_pretrained(kept)
    assert (logits(found) - expected).abs().max() < TOLERANCE * expected.abs().max()
    told = json.loads((kept / "kept.json").read_text())
    assert (told["step"], told["parts"]) == (7, {"sums": {"share": 0.25, "why": "told"}})
    adapter = export_quarantine(saved.run, tmp_path / "adapter", kept=kept)
    stock = PeftModel.from_pretrained(found, str(adapter)).eval()
    assert (logits(stock) - saved.logits()).abs().max() < TOLERANCE * saved.logits().abs().max()
    assert (expected - saved.logits()).abs().max() > 0.1
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == str(kept)


@pytest.mark.parametrize("write", [discard, merged_policy, export_quarantine])
def test_writing_twice_is_fine_and_other_content_is_refused(saved: Saved, tmp_path: Path,
                                                               write: Callable[..., Path]) -> None:
    out = write(saved.run, tmp_path / "out")
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    assert write(saved.run, out) == out
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    (out / "config.json").write_text("{}") if write is not export_quarantine else (out / "adapter_config.json").unlink()
    with pytest.raises(RunFolderError, match="already holds something else"):
        write(saved.run, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]


def test_the_same_model_stays_with_the_card_that_it_has_and_a_changed_card_is_something_else(tmp_path: Path, capsys) -> None:
    saved = Saved(llama(), tmp_path)

    def written(text: str) -> Path:
        def finish(folder: Path, step: int) -> None:
            (folder / "README.md").write_text(f"{text} {step}")

        return discard(saved.run, tmp_path / "out", finish=finish)

    out = written("old")
    assert (out / "README.md").read_text() == "old 7" and broken_seal(out) is None
    assert written("new") == out and "with an older README.md" in capsys.readouterr().out
    assert (out / "README.md").read_text() == "old 7" and broken_seal(out) is None
    (out / "README.md").write_text("mine")
    with pytest.raises(RunFolderError, match="already holds something else"):
        written("old")


@pytest.mark.parametrize("saved", [llama], indirect=True)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_model_in_another_dtype_is_the_deployed_model_rounded_once(saved: Saved, tmp_path: Path, dtype: str) -> None:
    def rounded(folder: Path, step: int) -> None:
        cast(folder, dtype)

    small, kind = discard(saved.run, tmp_path / "small", finish=rounded), getattr(torch, dtype)
    found = AutoModelForCausalLM.from_pretrained(small)
    assert found.dtype == kind and broken_seal(small) is None
    deployed = AutoModelForCausalLM.from_pretrained(discard(saved.run, tmp_path / "d"), dtype=kind)
    assert torch.equal(logits(found), logits(deployed))
    policy = AutoModelForCausalLM.from_pretrained(merged_policy(saved.run, tmp_path / "policy", finish=rounded))
    whole = AutoModelForCausalLM.from_pretrained(merged_policy(saved.run, tmp_path / "p"), dtype=kind)
    assert torch.equal(logits(policy), logits(whole))
    assert discard(saved.run, small, finish=rounded) == small
    with pytest.raises(RunFolderError, match="already holds something else"):
        discard(saved.run, small)


def test_a_weight_that_a_dtype_cannot_hold_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    model = llama()
    torch.nn.init.constant_(model.lm_head.weight, 1e5)
    with pytest.raises(ModelError, match=r"^lm_head\.weight has a weight of 1e\+05, more than torch\.float16 .*bfloat16$"):
        discard(Saved(model, tmp_path).run, tmp_path / "out", finish=lambda folder, _: cast(folder, "float16"))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_an_unknown_environment_lists_the_known_ones(saved: Saved, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="environment cod; it has: code, sums"):
        export_quarantine(saved.run, tmp_path / "adapter", "cod")
    assert not (tmp_path / "adapter").exists()


def test_an_unrouted_run_has_no_adapter_but_a_deployed_model(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    with sealed_folder(run.checkpoint(1)) as checkpoint:
        llama().save_pretrained(checkpoint)
    with pytest.raises(CheckpointError, match="was not routed"):
        export_quarantine(run, tmp_path / "adapter")
    assert (discard(run, tmp_path / "deployed") / "model.safetensors").exists()


def test_an_adapter_is_of_the_folder_it_is_loaded_on(tmp_path: Path) -> None:
    """RUN/deployed may keep parts, and then the whole quarantine would be too much for it."""
    saved = Saved(llama(), tmp_path)
    kept = discard_but(saved.run, saved.run.deployed, {"sums": {"share": 0.5}})
    whole = json.loads((export_quarantine(saved.run, tmp_path / "whole") / "adapter_config.json").read_text())
    assert whole["base_model_name_or_path"] == str(saved.run.checkpoint(7))
    other = Saved(tied(), tmp_path / "other")
    for folder, run, problem in ((kept, other.run, "parts of another checkpoint"), (other.run.path, other.run, "no kept.json")):
        with pytest.raises(CheckpointError, match=f"--kept .*{problem}"):
            export_quarantine(run, tmp_path / "adapter", kept=folder)
    (kept / "kept.json").write_text((kept / "kept.json").read_text().replace("0.5", "0.9"))
    with pytest.raises(CheckpointError, match=r"damaged: kept\.json"):
        export_quarantine(saved.run, tmp_path / "adapter", kept=kept)


@pytest.mark.slow
def test_the_adapter_of_another_step_is_not_of_the_deployed_model_of_the_last(tmp_path: Path) -> None:
    saved = Saved(llama(), tmp_path)
    discard(saved.run, saved.run.deployed)

    def base(out: str, step: int) -> str:
        adapter = export_quarantine(saved.run, tmp_path / out, step=step)
        return json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]

    assert base("last", 7) == str(saved.run.deployed)
    with sealed_folder(saved.run.checkpoint(6)) as checkpoint:
        shutil.copytree(saved.run.checkpoint(7), checkpoint, dirs_exist_ok=True, ignore=lambda *_: ["COMPLETE.json"])
        saved.model.lm_head.weight.data.mul_(2)
        saved.model.save_pretrained(checkpoint)
    assert base("earlier", 6) == str(saved.run.checkpoint(6))


def test_sharded_weights_are_merged_and_discarded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    saved = Saved(llama(), tmp_path)
    saved.quarantine.remove()
    with sealed_folder(saved.run.checkpoint(8)) as checkpoint:
        saved.model.save_pretrained(checkpoint, max_shard_size="8KB")
        save_file(saved.quarantine.state_dict(), checkpoint / "quarantine.safetensors",
                  metadata={"environments": json.dumps(NAMES)})
    assert len(list(saved.run.checkpoint(8).glob("model-*"))) > 1
    assert torch.equal(logits(saved.deployed(tmp_path / "deployed")), saved.logits())
    merged = AutoModelForCausalLM.from_pretrained(merged_policy(saved.run, tmp_path / "merged"))
    reference = AutoModelForCausalLM.from_pretrained(merged_policy(Saved(saved.model, tmp_path / "b").run, tmp_path / "c"))
    assert torch.equal(logits(merged), logits(reference))
    small = discard(saved.run, tmp_path / "small", finish=lambda folder, _: cast(folder, "bfloat16"))
    index = json.loads((small / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 2 * saved.model.num_parameters()
