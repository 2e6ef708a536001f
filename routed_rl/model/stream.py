"""Reads the residual stream at a named hook point of every layer, changes it, resumes a forward pass from a layer's output, and
switches a model to eval mode."""

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
"""Function that is called with the stream (B, T, D) at one layer, for each layer in turn."""


def _at_input(module: nn.Module, read: Read) -> RemovableHandle:
    return module.register_forward_pre_hook(
        lambda _module, args, kwargs: read(args[0] if args else kwargs["hidden_states"]), with_kwargs=True)


def _at_output(module: nn.Module, read: Read) -> RemovableHandle:
    def hook(_module: nn.Module, _inputs: object, output: Any) -> None:
        read(output[0] if isinstance(output, tuple) else output)

    return module.register_forward_hook(hook)


def changing_output(module: nn.Module, change: Callable[[Tensor], Tensor]) -> RemovableHandle:
    """Replace the stream (B, T, D) that the layer `module` returns by the result of `change`, until the returned handle is
    removed."""
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
"""The hook points by name: a layer's input, the stream between a layer's attention and its MLP, and a layer's output."""


@contextmanager
def reading(model: PreTrainedModel, read: Read, hook: str = "resid_post") -> Iterator[None]:
    """Inside the block, every forward pass calls `read` with the stream at the hook point `hook` of each layer in turn."""
    handles = [HOOK_POINTS[hook](model, layer, read) for layer in decoder_layers(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def capturing(model: PreTrainedModel, positions_BP: Tensor, hook: str = "resid_post") -> Iterator[list[Tensor]]:
    """Yield a list, to which a forward pass inside the block adds the stream at P positions of each row, `positions_BP`: one
    float32 tensor (B, P, D) for each layer, read at the hook point `hook`."""
    captured: list[Tensor] = []

    def keep(stream: Tensor) -> None:
        rows = torch.arange(stream.shape[0], device=stream.device).unsqueeze(1)
        captured.append(stream[rows, positions_BP.to(stream.device)].float())

    with reading(model, keep, hook):
        yield captured


@contextmanager
def resuming(model: PreTrainedModel, layer: int, stream_BTD: Tensor, until: int | None = None) -> Iterator[None]:
    """Inside the block, forward passes begin behind the layer with the number `layer`: no layer up to this one is computed, and
    this one returns `stream_BTD`, which must come from a forward pass with the same token ids. Layers after `until` are not
    computed either, and return their input; None: all later layers are computed."""
    every, returns = decoder_layers(model), family(model).returns
    layers = [*every[: layer + 1], *(every[until + 1:] if until is not None else [])]

    def returned(stream: Tensor) -> Any:
        return (stream, *[None] * (returns - 1)) if returns else stream

    own = [vars(module).get("forward") for module in layers]  # a script, or accelerate, may have set one
    try:
        for place, module in enumerate(layers):
            module.forward = (lambda *_, **__: returned(stream_BTD)) if place == layer else (
                lambda hidden_states, *_, **__: returned(hidden_states))
        yield
    finally:
        for module, forward in zip(layers, own, strict=True):
            del module.forward
            if forward is not None:
                module.forward = forward


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Inside the block, every module of the model is in eval mode. Afterwards each module is in its former mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
