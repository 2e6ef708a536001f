"""Functions that read the residual stream at a named hook point of every layer, resume a forward from a layer's output, or switch
a model to eval mode."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from routed_rl.errors import ModelError
from routed_rl.model.targets import decoder_layers, family

Read = Callable[[Tensor], None]
"""Function that takes the stream (B, T, D) of one layer; it is called for each layer in turn."""


def _at_input(module: nn.Module, read: Read) -> RemovableHandle:
    return module.register_forward_pre_hook(
        lambda _module, args, kwargs: read(args[0] if args else kwargs["hidden_states"]), with_kwargs=True)


def _at_output(module: nn.Module, read: Read) -> RemovableHandle:
    def hook(_module: nn.Module, _inputs: object, output: Any) -> None:
        read(output[0] if isinstance(output, tuple) else output)

    return module.register_forward_hook(hook)


def changing_output(module: nn.Module, change: Callable[[Tensor], Tensor]) -> RemovableHandle:
    """Replace the stream (B, T, D) that a layer returns by `change` of it, until the returned handle is removed."""
    def hook(_module: nn.Module, _inputs: object, output: Any) -> Any:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    return module.register_forward_hook(hook)


def _before_mlp(model: PreTrainedModel) -> str:
    if (name := family(model).before_mlp) is None:
        raise ModelError(f"subspace.hook=resid_mid: no module of a layer of a {model.config.model_type} model reads the stream "
                         "between attention and MLP; set subspace.hook=resid_post")
    return name


HOOK_POINTS: dict[str, Callable[[PreTrainedModel, nn.Module, Read], RemovableHandle]] = {
    "resid_pre": lambda _model, layer, read: _at_input(layer, read),
    "resid_mid": lambda model, layer, read: _at_input(layer.get_submodule(_before_mlp(model)), read),
    "resid_post": lambda _model, layer, read: _at_output(layer, read),
}
"""The hook points: a layer's input, the stream between its attention and its MLP, and its output."""


@contextmanager
def reading(model: PreTrainedModel, read: Read, hook: str = "resid_post") -> Iterator[None]:
    """Inside the block, in each forward pass, call `read` with the stream at `hook` of every layer."""
    handles = [HOOK_POINTS[hook](model, layer, read) for layer in decoder_layers(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def capturing(model: PreTrainedModel, positions_BP: Tensor, hook: str = "resid_post") -> Iterator[list[Tensor]]:
    """Collect the stream at `positions_BP` (B, P) of the next forward pass: one (B, P, D) float32 tensor for each layer."""
    captured: list[Tensor] = []

    def keep(stream: Tensor) -> None:
        rows = torch.arange(stream.shape[0], device=stream.device).unsqueeze(1)
        captured.append(stream[rows, positions_BP.to(stream.device)].float())

    with reading(model, keep, hook):
        yield captured


@contextmanager
def resuming(model: PreTrainedModel, layer: int, stream_BTD: Tensor, until: int | None = None) -> Iterator[None]:
    """Inside the block, layers up to and including `layer` are not computed. `layer` returns `stream_BTD`, which must come from a
    forward pass of the same ids. Layers after `until` are not computed either, and return their input."""
    every, returns = decoder_layers(model), family(model).returns
    layers = [*every[: layer + 1], *(every[until + 1:] if until is not None else [])]

    def returned(stream: Tensor) -> Any:
        return (stream, *[None] * (returns - 1)) if returns else stream

    try:
        for place, module in enumerate(layers):
            module.forward = (lambda *_, **__: returned(stream_BTD)) if place == layer else (
                lambda hidden_states, *_, **__: returned(hidden_states))
        yield
    finally:
        for module in layers:
            del module.forward


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Inside the block, every module is in eval mode. After it each module is back in its former mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
