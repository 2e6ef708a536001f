"""Finds the model's own weights below a LoRA that PEFT has put on it, and the names that the LoRA has in PEFT's files. PEFT
itself is not imported."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from routed_rl.routing.adapted import NAME, has_adapter

WRAPPED = "base_model.model."
"""The prefix that a module's name has in PEFT's wrapper and in PEFT's files."""
INNER = ".base_layer."
"""The text that PEFT puts in place of the last dot in the name of a weight whose module has a LoRA."""


def adapted_modules(model: nn.Module) -> dict[str, Any]:
    """Return PEFT's modules that carry a trained LoRA, by the names of the modules that they replace."""
    return {name: module for name, module in model.named_modules() if has_adapter(module)}


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """Inside the block, the modules that carry a trained LoRA are replaced by the model's own modules below them."""
    adapted = adapted_modules(model)
    try:
        for name, module in adapted.items():
            model.set_submodule(name, module.base_layer)
        yield
    finally:
        for name, module in adapted.items():
            model.set_submodule(name, module)


def base_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's own weights, under the names that they have without a LoRA."""
    return {name.replace(INNER, "."): value for name, value in model.state_dict().items() if ".lora_" not in name}


def stored_names(model: nn.Module) -> dict[str, str]:
    """Return the names of the LoRA's parameters in PEFT's files, by their names in the model. Empty without a LoRA."""
    return {name: WRAPPED + name.removeprefix(WRAPPED).replace(f".{NAME}.", ".")
            for name, _ in model.named_parameters() if ".lora_" in name and f".{NAME}." in name}
