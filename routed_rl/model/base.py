"""The weights of a model below a LoRA that PEFT has put on it, and the names of that LoRA in files. PEFT itself is not
imported."""

from typing import Any

from torch import Tensor, nn

from routed_rl.routing.adapted import NAME, has_adapter

WRAPPED = "base_model.model."
"""Prefix of a module's name in PEFT's wrapper and in its files."""
INNER = ".base_layer."
"""The part of a weight's name that PEFT inserts in place of a dot when there is a LoRA on its module."""


def adapted_modules(model: nn.Module) -> dict[str, Any]:
    """PEFT's modules that have a trained LoRA, by the names of the modules that they replace."""
    return {name: module for name, module in model.named_modules() if has_adapter(module)}


def base_weights(model: nn.Module) -> dict[str, Tensor]:
    """The model's own weights under the names that they have without a LoRA."""
    return {name.replace(INNER, "."): value for name, value in model.state_dict().items() if ".lora_" not in name}


def stored_names(model: nn.Module) -> dict[str, str]:
    """Maps the names of a LoRA's parameters in the model to their names in PEFT's files. Empty without a LoRA."""
    return {name: WRAPPED + name.removeprefix(WRAPPED).replace(f".{NAME}.", ".")
            for name, _ in model.named_parameters() if ".lora_" in name and f".{NAME}." in name}
