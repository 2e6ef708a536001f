"""Records of a probe of a model's layers, and the tolerance with which two tensors count as equal. Shape letters: B rows, T
tokens, D stream width."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

ROUNDING = 64
"""Largest difference that counts as rounding, in machine epsilons of the largest number involved."""


@dataclass
class Cut:
    """A module behind which the graph was cut."""

    name: str
    module: nn.Module
    inputs: tuple[Any, ...]
    output: Tensor
    """A leaf of the graph."""
    passed_on: Tensor
    """A copy of `output`, which is passed to the next module."""
    calls: int = 1
    gradient: Tensor | None = None
    """Gradient by `output` of the layer's output along `towards_BTD`; None: the layer's output does not depend on it."""

    def is_read_by(self, inputs: tuple[Any, ...]) -> bool:
        """Whether one of a module's inputs is this output, in any shape."""
        return (bool(inputs) and isinstance(inputs[0], Tensor) and inputs[0].numel() == self.output.numel()
                and inputs[0].data_ptr() == self.passed_on.data_ptr())


@dataclass
class LayerTrace:
    """The record of one layer's forward."""

    into_BTD: Tensor
    cuts: list[Cut] = field(default_factory=list[Cut])
    """The cuts, in the order in which their modules were called."""
    reads: list[tuple[str, Tensor]] = field(default_factory=list[tuple[str, Tensor]])
    """Submodules whose input has the stream's shape, each with that input."""
    out_BTD: Tensor = field(default_factory=lambda: torch.empty(0))
    returns: int = 0
    """Number of values that the layer returns as a tuple; 0: it returns the stream itself."""
    towards_BTD: Tensor = field(default_factory=lambda: torch.empty(0))
    """A random direction, along which the gradients of the output are taken."""
    gradient_BTD: Tensor | None = None
    """Gradient by the layer's input of its output along `towards_BTD`, with all cuts held fixed."""
    parameters: list[str] = field(default_factory=list[str])
    """Names of the parameters on which the output depends, with all cuts held fixed."""


@dataclass
class Trace:
    """The record of one forward: its layers, the parameters on which the first layer's input depends, and those after the last
    layer."""

    layers: list[LayerTrace] = field(default_factory=list[LayerTrace])
    before: list[str] = field(default_factory=list[str])
    """Parameters outside the layers on which the first layer's input depends."""
    after: list[str] = field(default_factory=list[str])
    """Parameters outside the layers, on which the logits depend in addition to the last layer's output."""
    final_norm: str | None = None
    """The first module that reads the last layer's output."""


def is_rounding(difference: Tensor, *terms: Tensor) -> bool:
    """Whether `difference` is no larger than the rounding of numbers as large as `terms`."""
    largest = max(float(term.detach().abs().max()) for term in terms)
    return bool(difference.detach().abs().max() <= ROUNDING * torch.finfo(terms[0].dtype).eps * largest)


def is_mixture(module: nn.Module) -> bool:
    """Whether a module looks like the experts of a mixture, whose weights are all in two parameters."""
    return all(isinstance(part := getattr(module, name, None), nn.Parameter) and part.dim() == 3
               for name in ("gate_up_proj", "down_proj"))
