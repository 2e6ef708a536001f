"""What a probe saw of a model's layers, and when two tensors count as equal. Shape letters: B rows, T tokens, D stream width."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

ROUNDING = 64
"""Machine epsilons, of the largest number involved, that count as rounding."""


@dataclass
class Cut:
    """A module behind which the graph was cut."""

    name: str
    module: nn.Module
    inputs: tuple[Any, ...]
    output: Tensor
    """A leaf of the graph."""
    passed_on: Tensor
    """What the module after it got: a copy of `output`."""
    calls: int = 1
    gradient: Tensor | None = None
    """Of the layer's output along `towards_BTD`; None: the output does not depend on it."""

    def is_read_by(self, inputs: tuple[Any, ...]) -> bool:
        """Whether a module with these inputs is given this output, in whatever shape."""
        return (bool(inputs) and isinstance(inputs[0], Tensor) and inputs[0].numel() == self.output.numel()
                and inputs[0].data_ptr() == self.passed_on.data_ptr())


@dataclass
class LayerTrace:
    """One layer's forward."""

    into_BTD: Tensor
    cuts: list[Cut] = field(default_factory=list[Cut])
    """In the order in which they were called."""
    reads: list[tuple[str, Tensor]] = field(default_factory=list[tuple[str, Tensor]])
    """Submodules and what they were given, where it has the stream's shape."""
    out_BTD: Tensor = field(default_factory=lambda: torch.empty(0))
    returns: int = 0
    """How many values it returns; 0: the stream itself."""
    towards_BTD: Tensor = field(default_factory=lambda: torch.empty(0))
    """Random; gradients are along it."""
    gradient_BTD: Tensor | None = None
    """Of the output with respect to the input, all cuts held."""
    parameters: list[str] = field(default_factory=list[str])
    """Those which the output depends on, all cuts held."""


@dataclass
class Trace:
    """One forward: its layers, what made the first one's input, and what came after the last."""

    layers: list[LayerTrace] = field(default_factory=list[LayerTrace])
    before: list[str] = field(default_factory=list[str])
    """Parameters outside the layers that the first layer's input depends on."""
    after: list[str] = field(default_factory=list[str])
    """Parameters outside the layers that the logits depend on beside the last layer's output."""
    final_norm: str | None = None
    """The first module that reads the last layer's output."""


def is_rounding(difference: Tensor, *terms: Tensor) -> bool:
    """Whether `difference` is no more than rounding of numbers like `terms`."""
    largest = max(float(term.detach().abs().max()) for term in terms)
    return bool(difference.detach().abs().max() <= ROUNDING * torch.finfo(terms[0].dtype).eps * largest)


def is_mixture(module: nn.Module) -> bool:
    """Whether a module looks like a mixture's experts, all in two parameters."""
    return all(isinstance(part := getattr(module, name, None), nn.Parameter) and part.dim() == 3
               for name in ("gate_up_proj", "down_proj"))
