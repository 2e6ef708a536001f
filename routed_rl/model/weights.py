"""Checks that a model's weights are complete, dense, float32 and finite, and computes a hash that identifies them."""

import hashlib
import math

import torch

from routed_rl.errors import ConfigError, ModelError
from routed_rl.model.fourbit import scales


def check_default_dtype() -> None:
    """ConfigError if torch makes new tensors in another dtype than float32, in which routed_rl computes."""
    if (dtype := torch.get_default_dtype()) != torch.float32:
        raise ConfigError(f"torch's default dtype is {str(dtype).removeprefix('torch.')}, and subspaces and quarantines are "
                          "computed in float32; call torch.set_default_dtype(torch.float32)")


def model_hash(model: torch.nn.Module) -> str:
    """Return the sha256 over the name, shape, dtype and bytes of every parameter, sorted by name. Tied parameters count once, and
    those of a LoRA on the model are left out."""
    digest = hashlib.sha256()
    own = {name.replace(".base_layer.", "."): value for name, value in model.named_parameters() if ".lora_" not in name}
    for name, parameter in sorted(own.items()):
        if parameter.is_meta:
            raise ModelError(f"parameter {name} of the model has no values (device meta), as where device_map leaves weights on "
                             "a disk; load the whole model onto one device")
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}\n".encode())
        for tensor in (parameter, *scales(parameter)):
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def require_full_weights(model: torch.nn.Module, path: str = "model", dtype: torch.dtype = torch.float32, *,
                         packed: bool = False) -> None:
    """ModelError unless `model` is plain: it has no PEFT adapter and no quantised weight, and all weights are of `dtype` and
    finite. `path`: the model's name, for the message. `packed`: whether weights may be quantised to 4 bit."""
    if getattr(model, "_hf_peft_config_loaded", False) or hasattr(model, "peft_config"):
        raise ModelError(adapter_message(path))
    require_weights(model, path, (dtype,), packed=packed)


def require_weights(model: torch.nn.Module, path: str, dtypes: tuple[torch.dtype, ...], *, packed: bool = False) -> None:
    """ModelError if a weight is quantised, has a type that is not in `dtypes`, or is not finite. `path`: the model's name, for
    the message. `packed`: whether weights may be quantised to 4 bit."""
    if getattr(model, "is_quantized", False) and not packed:
        raise ModelError(f"{path!r} has quantised weights; full weights only: save a float32 copy first")
    for name, parameter in model.named_parameters():
        if parameter.dtype not in dtypes and not (packed and scales(parameter)):
            raise ModelError(f"{path!r}, parameter {name}: {dtype_message(str(parameter.dtype))}")
        if parameter.numel() and not math.isfinite(sum(abs(float(end)) for end in torch.aminmax(parameter.detach()))):
            raise ModelError(f"{path!r}, parameter {name}: a weight is nan or infinite; take another copy of the model")


def adapter_message(path: str) -> str:
    """Return the message of the error that refuses the adapter at `path`."""
    return (f"{path!r} is a PEFT adapter and no whole model; give its base model as model.path, with model.adapter=lora and the "
            "adapter as model.adapter.path, or merge it first (merge_and_unload, save_pretrained; of a run: "
            "`routed-rl discard RUN --out DIR --merge`)")


def dtype_message(dtype: str) -> str:
    """Return the message of the error that refuses weights in `dtype`."""
    return (f"weights in {dtype.removeprefix('torch.')} are refused, they must be float32: in 16 bits, routed updates lose "
            "40 % of the change and leak into the subspace; keep float32 weights and set trainer.bf16=true for autocast")
