"""Writes a stock PEFT LoRA that joins the LoRA of a checkpoint, which is the retained change, with the quarantine. Every alpha
equals its rank, so any scaling is inside the matrices of the LoRA. Shape letters: D stream width, K rank of a target, N input
width."""

from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig
from safetensors.torch import load_file
from torch import Tensor
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key

from routed_rl.artifacts import ADAPTER, read_object
from routed_rl.errors import ModelError
from routed_rl.export.stored import StoredTarget
from routed_rl.model.adapter import write_adapter
from routed_rl.model.base import WRAPPED
from routed_rl.model.lora import UNCALLED

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


RENAMED = ("gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")
"""In a model with mixtures of experts PEFT takes modules of these names for parts of the experts (`_convert_peft_config_moe` in
`peft.utils.transformers_weight_conversion`, PEFT 0.21), so a LoRA on a plain module of such a name is written as one on its
parameter."""


def write_lora(folder: Path, own: Factors, targets: list[StoredTarget], base: str, *, transposed: bool, mixed: bool) -> None:
    """Write the LoRA `own` and the coefficients of `targets` to `folder` as one adapter on the model at `base`. If a module has
    both, its rank is the sum of both ranks. `transposed` says whether the model stores its weights as (input, output), as GPT-2
    does, and `mixed` whether it has mixtures of experts. ModelError if PEFT would refuse to read this adapter."""
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
    _check_readable(base, [*ranks])
    parameters = [name for name in ranks if mixed and name.rpartition(".")[2] in RENAMED]
    modules = sorted(ranks.keys() - set(parameters))
    ranks = {f"{name}.weight" if name in parameters else name: rank for name, rank in ranks.items()}
    for target in targets if has_bias else []:  # every plain writer gets a bias, of zeros where it has none
        bias_K = target.bias_K if target.bias_K is not None else target.write_DK.new_zeros(target.write_DK.shape[1])
        tensors |= {} if target.mixture else {f"{WRAPPED}{target.name}.lora_B.bias": target.write_DK @ bias_K}
    for mixture, those in mixtures.items():
        key = f"{WRAPPED}{mixture.rpartition('.')[0]}"
        tensors[f"{key}.lora_A.weight"] = torch.cat([target.coefficients_KN for target in those])
        # PEFT interleaves the columns of the experts: one expert's columns are as far apart as there are experts.
        tensors[f"{key}.lora_B.weight"] = torch.stack([target.write_DK for target in those], 2).flatten(1).contiguous()
        ranks[mixture] = those[0].write_DK.shape[1]
    wrapped = sorted([*mixtures, *(f"{name}.weight" for name in parameters)])
    if wrapped and has_bias:
        raise ModelError(f"PEFT has no adapter with biases beside a LoRA on the parameter {wrapped[0]}, so none can hold the "
                         "quarantine of this model; `routed-rl export RUN --policy DIR` writes the policy as a whole")
    config = LoraConfig(task_type="CAUSAL_LM", bias="none", target_modules=modules, target_parameters=wrapped or None,
                        r=max(ranks.values()), lora_alpha=max(ranks.values()), rank_pattern=dict(ranks),
                        alpha_pattern=dict(ranks), lora_dropout=0.0, lora_bias=has_bias, fan_in_fan_out=transposed)
    write_adapter(folder, config, base, tensors)


def _check_readable(base: str, modules: list[str]) -> None:
    """ModelError if PEFT would not read a LoRA on one of these modules of the model in the folder `base`. A model on the hub is
    not checked."""
    kind = (read_object(Path(base).expanduser() / "config.json", {"model_type": str}) or {}).get("model_type", "")
    renamings = [each for each in get_checkpoint_conversion_mapping(kind) or [] if isinstance(each, WeightRenaming)]
    for name in modules:
        key = f"{WRAPPED}{name}.lora_A.weight"
        if name.rpartition(".")[2] in UNCALLED.get(kind, ()) or not key.endswith(rename_source_key(key, renamings, [])[0]):
            raise ModelError(f"PEFT reads no LoRA on {name} in a model of type {kind}, so no adapter can hold the quarantine; "
                             "for a run that trained weights, `routed-rl export RUN --policy DIR` writes the policy as a whole")
