"""The quarantine as a stock PEFT adapter. Shape letters: D stream width, K rank, N input width."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor

from routed_rl.artifacts import RunFolder, read_json, read_object, require_seal, write_json
from routed_rl.checkpoint import quarantined
from routed_rl.errors import CheckpointError
from routed_rl.export.models import KEPT, publish
from routed_rl.export.stored import StoredTarget, hash_of, is_transposed, read_quarantine


def export_quarantine(run: RunFolder, out: Path, environment: str | None = None, step: int | None = None,
                      kept: Path | None = None) -> Path:
    """Write the quarantine, or one environment's part of it, to `out` as a stock PEFT LoRA; or what is missing of it in the
    folder `kept`, that `discard_but` wrote.

    `PeftModel.from_pretrained(deployed, out)`, or of `kept`, has the policy's logits: `lora_A` is C (K, N), `lora_B` is A
    (D, K), every alpha equals its rank. Targets of rank 0 are left out. In modes other than `route` the parts do not sum to
    the whole.
    """
    checkpoint = run.require_checkpoint(step)
    shares = {environment: 1.0} if environment else _missing_in(kept, checkpoint) if kept else None
    targets = [target for target in read_quarantine(checkpoint, shares) if target.write_DK.shape[1]]
    if not targets:
        raise CheckpointError(f"the quarantine of {run.path} has rank 0 everywhere, so there is no adapter to write; "
                              "the policy is the deployed model: use `routed-rl discard`")
    ranks = {target.mixture or target.name: target.write_DK.shape[1] for target in targets}
    mixtures = sorted({target.mixture for target in targets if target.mixture})
    modules = sorted(set(ranks) - set(mixtures))
    deployed = kept.absolute() if kept else run.deployed
    base = deployed if deployed.is_dir() and (kept or not (deployed / KEPT).exists()) else checkpoint
    config = LoraConfig(task_type="CAUSAL_LM", inference_mode=True, base_model_name_or_path=str(base), bias="none",
                        target_modules=modules, target_parameters=mixtures or None,
                        r=max(ranks.values()), lora_alpha=max(ranks.values()),
                        rank_pattern=dict(ranks), alpha_pattern=dict(ranks), lora_dropout=0.0,
                        lora_bias=any(target.bias_K is not None for target in targets),
                        fan_in_fan_out=is_transposed(checkpoint))

    def fill(folder: Path) -> None:
        config.save_pretrained(str(folder))
        # PEFT keeps target_modules as a set: sorted, so that the same adapter is the same file.
        written = read_json(folder / "adapter_config.json")
        write_json(folder / "adapter_config.json", {**written, "target_modules": modules})
        save_file(_adapter_tensors(targets, has_bias=bool(config.lora_bias)), folder / "adapter_model.safetensors",
                  metadata={"format": "pt"})

    return publish(out, fill)


def _missing_in(kept: Path, checkpoint: Path) -> dict[str, float]:
    """Of each part of a checkpoint's quarantine, the share that is not in a folder which `discard_but` wrote."""
    require_seal(kept)
    told = read_object(kept / KEPT, {"parts": dict[str, dict[str, Any]], "quarantine": str})
    if not told or told.get("quarantine") != hash_of(checkpoint):
        raise CheckpointError(f"--kept {kept}: {'it keeps parts of another checkpoint' if told else f'it has no {KEPT}'}; give "
                              f"a folder that `routed-rl discard --keep` wrote, and its step, of {checkpoint}")
    return {name: 1 - told["parts"].get(name, {"share": 0.0})["share"] for name in quarantined(checkpoint)}


def _adapter_tensors(targets: list[StoredTarget], *, has_bias: bool) -> dict[str, Tensor]:
    """The tensors under PEFT's own key names; with `has_bias` every plain writer gets a bias, zero where it has none."""
    tensors: dict[str, Tensor] = {}
    experts: dict[str, list[StoredTarget]] = {}
    for target in targets:
        if target.mixture:
            experts.setdefault(target.mixture, []).append(target)
            continue
        key = f"base_model.model.{target.name}"
        tensors[f"{key}.lora_A.weight"] = target.coefficients_KN.contiguous()
        tensors[f"{key}.lora_B.weight"] = target.write_DK.contiguous()
        if has_bias:
            bias = target.bias_K if target.bias_K is not None else target.write_DK.new_zeros(target.write_DK.shape[1])
            tensors[f"{key}.lora_B.bias"] = target.write_DK @ bias
    for mixture, those in experts.items():
        key = f"base_model.model.{mixture.rpartition('.')[0]}"
        tensors[f"{key}.lora_A.weight"] = torch.cat([target.coefficients_KN for target in those])
        # PEFT keeps an expert's columns apart by the number of experts.
        tensors[f"{key}.lora_B.weight"] = torch.stack([target.write_DK for target in those], 2).flatten(1).contiguous()
    return tensors
