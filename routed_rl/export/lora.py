"""Writes a stock PEFT LoRA that joins the LoRA of a checkpoint, which is the retained change, with the quarantine. Every alpha
equals its rank, so any scaling is inside the matrices of the LoRA. Shape letters: D stream width, K rank of a target, N input
width."""

from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig
from safetensors.torch import load_file
from torch import Tensor

from routed_rl.artifacts import ADAPTER
from routed_rl.export.stored import StoredTarget
from routed_rl.model.adapter import write_adapter
from routed_rl.model.base import WRAPPED

Factors = dict[str, tuple[Tensor, Tensor]]
"""For each module, the matrices `lora_B` (D, rank) and `lora_A` (rank, N) of a LoRA."""


def retained(checkpoint: Path) -> tuple[Factors, str]:
    """The LoRA of a checkpoint, by module, with its scaling multiplied into `lora_B`, and the path of its base model."""
    config, tensors = PeftConfig.from_pretrained(str(checkpoint)), load_file(checkpoint / ADAPTER)
    assert isinstance(config, LoraConfig), f"{checkpoint} has an adapter that this program did not write"
    scaling = config.lora_alpha / (config.r**0.5 if config.use_rslora else config.r)
    names = [key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")]
    found = {name.removeprefix(WRAPPED): (scaling * tensors[f"{name}.lora_B.weight"], tensors[f"{name}.lora_A.weight"])
             for name in names}
    return found, config.base_model_name_or_path or ""


def write_lora(folder: Path, own: Factors, targets: list[StoredTarget], base: str, *, transposed: bool) -> None:
    """Write the LoRA `own` and the coefficients of `targets` to `folder` as one adapter on the model at `base`. If a module has
    both, its rank is the sum of both ranks. `transposed` says whether the model stores its weights as (input, output), as GPT-2
    does."""
    has_bias = any(target.bias_K is not None for target in targets)
    pieces: dict[str, list[tuple[Tensor, Tensor]]] = {name: [factors] for name, factors in own.items()}
    mixtures: dict[str, list[StoredTarget]] = {}
    for target in targets:
        if target.mixture:
            mixtures.setdefault(target.mixture, []).append(target)
        else:
            pieces.setdefault(target.name, []).append((target.write_DK, target.coefficients_KN))
    tensors, ranks = dict[str, Tensor](), dict[str, int]()
    for name, factors in pieces.items():
        tensors[f"{WRAPPED}{name}.lora_A.weight"] = torch.cat([down for _, down in factors]).contiguous()
        tensors[f"{WRAPPED}{name}.lora_B.weight"] = torch.cat([up for up, _ in factors], 1).contiguous()
        ranks[name] = tensors[f"{WRAPPED}{name}.lora_A.weight"].shape[0]
    modules = sorted(ranks)
    for target in targets if has_bias else []:  # every plain writer gets a bias, of zeros where it has none
        bias_K = target.bias_K if target.bias_K is not None else target.write_DK.new_zeros(target.write_DK.shape[1])
        tensors |= {} if target.mixture else {f"{WRAPPED}{target.name}.lora_B.bias": target.write_DK @ bias_K}
    for mixture, those in mixtures.items():
        key = f"{WRAPPED}{mixture.rpartition('.')[0]}"
        tensors[f"{key}.lora_A.weight"] = torch.cat([target.coefficients_KN for target in those])
        # PEFT interleaves the columns of the experts: one expert's columns are as far apart as there are experts.
        tensors[f"{key}.lora_B.weight"] = torch.stack([target.write_DK for target in those], 2).flatten(1).contiguous()
        ranks[mixture] = those[0].write_DK.shape[1]
    config = LoraConfig(task_type="CAUSAL_LM", bias="none", target_modules=modules, target_parameters=sorted(mixtures) or None,
                        r=max(ranks.values()), lora_alpha=max(ranks.values()), rank_pattern=dict(ranks),
                        alpha_pattern=dict(ranks), lora_dropout=0.0, lora_bias=has_bias, fan_in_fan_out=transposed)
    write_adapter(folder, config, base, tensors)
