"""Law 5 with a LoRA: what is exported has in stock PEFT the logits of the model in memory, for all kinds of writer."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from routed_rl.artifacts import RunFolder, sealed_folder
from routed_rl.checkpoint import save_quarantine
from routed_rl.errors import ModelError
from routed_rl.export.adapter import export_quarantine
from routed_rl.export.merging import merged
from routed_rl.export.models import discard_but, merged_policy
from routed_rl.export.stock import discard
from routed_rl.model.adapter import merge, save_adapter
from routed_rl.model.metadata import family_metadata
from routed_rl.model.targets import decoder_layers
from routed_rl.report.card.facts import Facts, Leaving
from routed_rl.report.data import RunData
from tests.builders import Run, batch, random_bases, relative, tiny
from tests.causal_models import WIDTH, tiny_causal
from tests.chat import chat_tokenizer

KINDS = {"llama": {}, "gpt2": {}, "gemma2": {}, "qwen2": {"tie_word_embeddings": True}, "mixtral": {}}


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    rows = batch(77)
    found = model.eval()(input_ids=rows.ids, attention_mask=rows.mask).logits[rows.mask.bool()]
    assert found.isfinite().all()
    return found


def stored(run: Run, folder: RunFolder, base: str) -> RunFolder:
    """The run folder with the checkpoint of a run."""
    with sealed_folder(folder.checkpoint(run.steps)) as checkpoint:
        save_adapter(run.wrapped, checkpoint, run.quarantine.deployed_factors(), base)
        save_quarantine(checkpoint, run.router, run.steps, family_metadata(run.model))
    return folder


@pytest.fixture(params=KINDS)
def saved(request, tmp_path) -> tuple[Run, RunFolder, str]:
    """A LoRA that was trained with other ranks in each layer, one of them 0, and the run folder with its checkpoint."""
    bases = [basis[:, :rank] for basis, rank in zip(random_bases(3), (3, 0, 2), strict=True)]
    model = tiny(request.param, layers=3, **KINDS[request.param])
    run = Run(model, bases=bases, lora={"r": 4, "alpha": 6, "rslora": True}).train(4)
    return run, stored(run, RunFolder(tmp_path / "run"), "base"), request.param


def with_adapters(family: str, *adapters: Path) -> torch.Tensor:
    model = PeftModel.from_pretrained(tiny(family, layers=3, **KINDS[family]), str(adapters[0]), adapter_name="0")
    for place, adapter in enumerate(adapters[1:], 1):
        model.load_adapter(str(adapter), adapter_name=str(place))
    model.base_model.set_adapter([str(place) for place in range(len(adapters))])
    return logits(model)


def test_what_is_exported_has_the_logits_of_the_model_in_memory(saved, tmp_path):
    run, folder, family = saved
    policy = logits(run.model)
    with run.quarantine.ablated():
        deployed = logits(run.model)
    assert relative(policy, deployed) > 1e-3
    adapter = discard(folder, tmp_path / "deployed")
    assert relative(with_adapters(family, adapter), deployed) < 1e-5
    whole = merged_policy(folder, tmp_path / "policy")
    assert relative(with_adapters(family, whole), policy) < 1e-5
    base = tiny(family, layers=3, **KINDS[family])
    assert relative(logits(merge(base, whole)), policy) < 1e-5 and not hasattr(base, "peft_config")
    if family != "mixtral":  # PEFT has one adapter at a time on the experts of a mixture
        quarantine = export_quarantine(folder, tmp_path / "quarantine")
        assert relative(with_adapters(family, adapter, quarantine), policy) < 1e-5
    with run.quarantine.kept({"env1": 0.5}):
        expected = logits(run.model)
    kept = discard_but(folder, tmp_path / "kept", {"env1": {"share": 0.5}})
    assert relative(with_adapters(family, kept), expected) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["deepseek_v3", "cohere2_moe", "falcon_h1", "laguna", "zamba"])
def test_an_adapter_of_any_family_is_to_stock_peft_what_it_was_or_it_is_refused(kind, tmp_path):
    """Shared experts, whose names PEFT takes for those of experts; a mixture that reads what is not trained; writers on which
    PEFT puts no LoRA, or whose names are changed as it reads one; and weights that layers share."""
    model = tiny_causal(kind)
    model.config.save_pretrained(tmp_path / "base")
    run = Run(model, bases=random_bases(len(decoder_layers(model)), WIDTH), lora={"r": 2}).train(2)
    folder, policy = stored(run, RunFolder(tmp_path / "run"), str(tmp_path / "base")), logits(model)
    with run.quarantine.ablated():
        deployed = logits(model)
    adapter = discard(folder, tmp_path / "deployed")
    assert relative(logits(PeftModel.from_pretrained(tiny_causal(kind), str(adapter))), deployed) < 1e-5
    if kind in ("falcon_h1", "laguna"):
        for write in (merged_policy, export_quarantine):
            with pytest.raises(ModelError, match=f"PEFT reads no LoRA on .* in a model of type {kind}, so no adapter can hold"):
                write(folder, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return
    whole = merged_policy(folder, tmp_path / "policy")
    assert relative(logits(PeftModel.from_pretrained(tiny_causal(kind), str(whole))), policy) < 1e-5
    both = PeftModel.from_pretrained(tiny_causal(kind), str(adapter))
    both.load_adapter(str(export_quarantine(folder, tmp_path / "quarantine")), "quarantine")
    both.base_model.set_adapter(["default", "quarantine"])
    assert relative(logits(both), policy) < 1e-5 < 1e-4 < relative(deployed, policy)
    if kind == "zamba":
        with pytest.raises(ModelError, match="share one weight and have LoRAs of their own, so these cannot be merged into it"):
            merge(tiny_causal(kind), whole)
        return
    assert relative(logits(merge(tiny_causal(kind), whole)), policy) < 1e-5


def test_an_adapter_of_another_model_is_refused(saved, tmp_path):
    _, folder, family = saved
    adapter = discard(folder, tmp_path / "deployed")
    for other in ("llama", "gpt2"):
        if other != family:
            with pytest.raises(ModelError, match="deployed is no LoRA on") as refusal:
                merge(tiny(other, layers=2), adapter)
            assert "\n" not in str(refusal.value)
    if family == "llama":
        tensors = dict(list(load_file(adapter / "adapter_model.safetensors").items())[1:])
        shutil.copytree(adapter, tmp_path / "partial")
        save_file(tensors, tmp_path / "partial" / "adapter_model.safetensors")
        with pytest.raises(ModelError, match="partial is no LoRA on .*it lacks base_model"):
            merge(tiny(family, layers=3), tmp_path / "partial")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "adapter_config.json").write_text((adapter / "adapter_config.json").read_text())
    save_file({"x": torch.zeros(1)}, tmp_path / "broken" / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="broken is no LoRA on"):
        merge(tiny(family, layers=3), tmp_path / "broken")


@pytest.mark.slow
@pytest.mark.parametrize("saved", ["llama"], indirect=True)
def test_the_rest_of_a_merged_model_that_keeps_a_part_is_an_adapter_of_that_model(saved, tmp_path):
    run, folder, family = saved
    policy = logits(run.model)
    kept = merged(lambda out, finish: discard_but(folder, out, {"env1": {"share": 0.5}}, finish=finish), tmp_path / "kept",
                  tiny(family, layers=3), chat_tokenizer())
    rest = export_quarantine(folder, tmp_path / "rest", kept=kept)
    data = RunData(folder.path, {"model": {"adapter": {"kind": "lora"}}}, {}, [], [], [], None, [], None, {}, [])
    card = partial(Facts, data, folder=rest, results={})
    assert not card(leaving=Leaving("quarantine", 4, rest=True)).beside and card(leaving=Leaving("quarantine", 4)).beside
    assert json.loads((rest / "adapter_config.json").read_text())["base_model_name_or_path"] == str(kept)
    whole = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(kept), str(rest))
    assert relative(logits(whole), policy) < 1e-5
