"""Loads frozen weights in 4 bit, on which a LoRA is trained: NF4 by bitsandbytes, with scales that are in 8 bit. Products are
computed in the dtype of the weights that are not quantised: embedding, unembedding, norms and the experts of a mixture."""

import importlib.util
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig

from routed_rl.errors import ConfigError


def require_four_bit() -> None:
    """ConfigError if bitsandbytes is missing."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError("model.adapter=qlora needs bitsandbytes: pip install 'routed-rl[qlora]', or set model.adapter=lora "
                          "model.dtype=bfloat16, whose weights take four times the memory")


def four_bit(dtype: torch.dtype) -> BitsAndBytesConfig:
    """Return the settings with which `from_pretrained` quantises the weights that it reads. `dtype`: the type in which products
    are computed."""
    require_four_bit()
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                              bnb_4bit_compute_dtype=dtype)


def compute_alike(model: nn.Module) -> None:
    """Change a model with weights in 4 bit so that a forward without gradients computes the same numbers as one with gradients.
    Otherwise, on some CPUs, bitsandbytes repacks weights of some shapes in place for a forward without gradients, and computes
    this forward in bfloat16."""
    module: Any
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def scales(weight: Tensor) -> list[Tensor]:
    """Return the tensors with the scales by which the blocks of a weight in 4 bit are multiplied; empty for any other weight."""
    state = getattr(weight, "quant_state", None)
    inner = getattr(state, "state2", None)
    found = [getattr(state, "absmax", None), getattr(state, "offset", None), getattr(inner, "absmax", None)]
    return [tensor for tensor in found if isinstance(tensor, Tensor)]
