"""The record of a forward pass in which a model's layers were traced (see `probe.trace`), and the tolerance within which two
tensors count as equal. Shape letters: B rows, T tokens, D stream width."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

ROUNDING = 64
"""The largest difference that counts as rounding, in machine epsilons times the largest number involved."""


@dataclass
class Cut:
    """A cut of the autograd graph behind the output of a module."""

    name: str
    module: nn.Module
    inputs: tuple[Any, ...]
    output: Tensor
    """The module's output, as a leaf of the graph."""
    passed_on: Tensor
    """A copy of `output`, which the next module gets as its input."""
    calls: int = 1
    gradient: Tensor | None = None
    """The gradient, by `output`, of the layer's output along `LayerTrace.towards_BTD`; None if the layer's output does not depend
    on `output`."""

    def is_read_by(self, inputs: tuple[Any, ...]) -> bool:
        """Whether the first of `inputs`, the inputs of a module, is the output that is recorded here, in any shape."""
        return (bool(inputs) and isinstance(inputs[0], Tensor) and inputs[0].numel() == self.output.numel()
                and inputs[0].data_ptr() == self.passed_on.data_ptr())


@dataclass
class LayerTrace:
    """The record of one layer in a traced forward pass. `into_BTD` and `out_BTD` are the stream before and behind the layer."""

    into_BTD: Tensor
    cuts: list[Cut] = field(default_factory=list[Cut])
    """The cuts in this layer, in the order in which their modules were called."""
    reads: list[tuple[str, Tensor]] = field(default_factory=list[tuple[str, Tensor]])
    """The names of the submodules whose input has the stream's shape, each with this input."""
    out_BTD: Tensor = field(default_factory=lambda: torch.empty(0))
    returns: int = 0
    """The length of the tuple that the layer returns; 0 if it returns the stream itself."""
    towards_BTD: Tensor = field(default_factory=lambda: torch.empty(0))
    """A random direction in the layer's output. All gradients in this record are gradients of the inner product of the layer's
    output and this direction."""
    gradient_BTD: Tensor | None = None
    """The gradient, by the layer's input, of the layer's output along `towards_BTD`, with the outputs at all cuts held fixed."""
    parameters: list[str] = field(default_factory=list[str])
    """The names of the parameters on which the layer's output depends, with the outputs at all cuts held fixed."""


@dataclass
class Trace:
    """The record of one traced forward pass: its layers, and the parameters that are used before and after them."""

    layers: list[LayerTrace] = field(default_factory=list[LayerTrace])
    before: list[str] = field(default_factory=list[str])
    """The names of the parameters outside the layers on which the first layer's input depends."""
    after: list[str] = field(default_factory=list[str])
    """The names of the parameters outside the layers on which the logits depend if the last layer's output is held fixed."""
    final_norm: str | None = None
    """The name of the first module that reads the last layer's output."""


def is_rounding(difference: Tensor, *terms: Tensor) -> bool:
    """Whether every entry of `difference` may be the rounding of numbers as large as the largest entry of `terms`, in the least
    precise of their types: a model in bfloat16 may have its stream in float32."""
    largest = max(float(term.detach().abs().max()) for term in terms)
    eps = max(torch.finfo(term.dtype).eps for term in terms)
    return bool(difference.detach().abs().max() <= ROUNDING * eps * largest)


def is_mixture(module: nn.Module) -> bool:
    """Whether a module looks like the experts of a mixture as transformers stores them, with all weights in two parameters."""
    return all(isinstance(part := getattr(module, name, None), nn.Parameter) and part.dim() == 3
               for name in ("gate_up_proj", "down_proj"))
