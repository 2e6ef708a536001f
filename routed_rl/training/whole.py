"""Gathers the weights and the optimizer state of a sharded model, because checkpoints have the form of a single process, whatever
wrote them. Not covered: optimizers that keep anything but tensors of the weight's size and numbers for each parameter."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from routed_rl.checkpoint import read_weights
from routed_rl.routing.shards import put, state_piece, whole
from routed_rl.training.resuming import check_optimizer

Names = list[list[str]]
"""The names of the parameters in each of the optimizer's groups, in its order."""


@torch.no_grad()
def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """The model's full state on the CPU; a tensor under two names stays one tensor. Every process must call it."""
    found: dict[int, Tensor] = {}
    state: dict[str, Tensor] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if id(value) not in found:
            found[id(value)] = whole(value).cpu()
        state[name] = found[id(value)]
    return state


@torch.no_grad()
def take_weights(model: nn.Module, checkpoint: Path) -> None:
    """Load the weights of a checkpoint, the inverse of `whole_weights`. The model may be sharded or not."""
    stored = read_weights(model, checkpoint)
    for name, parameter in model.named_parameters():
        if name in stored:  # other parameters are frozen below a LoRA
            put(parameter, stored[name])


def whole_optimizer(optimizer: Any, model: nn.Module, names: Names) -> dict[str, Any]:
    """The state of `torch`'s own optimizer for the unsharded model. Every process must call it."""
    inner, parameters = torch_optimizer(optimizer), dict(model.named_parameters())
    keys, numbers = _keys(optimizer, inner)
    flat = [name for group in names for name in group]
    states: dict[int, dict[str, Any]] = {}
    for place, name in enumerate(flat):
        parameter = parameters[name]
        shape = getattr(parameter, "ds_shape", parameter.shape)
        held = _state(optimizer, inner, parameter)
        found = {key: state_piece(parameter, held, key).whole().view(shape).cpu() for key in keys}
        if found or numbers:
            states[place] = {**found, **{key: value.clone() for key, value in numbers.items()}}
    place = count()
    groups = [{key: value for key, value in group.items() if key != "params"} | {"params": [next(place) for _ in members]}
              for group, members in zip(inner.param_groups, names, strict=True)]
    return {"state": states, "param_groups": groups}


def take_optimizer(optimizer: Any, model: nn.Module, names: Names, stored: dict[str, Any]) -> None:
    """The inverse of `whole_optimizer`. ValueError if `stored` is no state of this optimizer."""
    inner, parameters, states = torch_optimizer(optimizer), dict(model.named_parameters()), stored["state"]
    shapes = [parameters[name] for group in names for name in group]
    check_optimizer(inner, [getattr(parameter, "ds_shape", parameter.shape) for parameter in shapes], stored)
    for group, kept in zip(inner.param_groups, stored["param_groups"], strict=True):
        group.update({key: value for key, value in kept.items() if key != "params"})
    if not states:
        return
    example = next(iter(states.values()))
    keys = [key for key, value in example.items() if isinstance(value, Tensor) and value.dim()]
    numbers = {key: value for key, value in example.items() if key not in keys}
    for held in _held(optimizer, inner):
        inner.state[held] = {key: torch.zeros_like(held) for key in keys} | {key: value.clone() for key, value in numbers.items()}
    for place, name in enumerate(name for group in names for name in group):
        parameter = parameters[name]
        for key in keys:
            state_piece(parameter, _state(optimizer, inner, parameter), key).take(states[place][key])


def _zero(optimizer: Any) -> Any:
    """DeepSpeed's optimizer inside accelerate's wrapper, or torch's optimizer."""
    return getattr(optimizer, "optimizer", optimizer)


def torch_optimizer(optimizer: Any) -> Any:
    """The torch optimizer inside the wrappers of DeepSpeed and accelerate."""
    zero = _zero(optimizer)
    return getattr(zero, "optimizer", zero)


def _held(optimizer: Any, inner: Any) -> Iterator[Any]:
    """The tensors for which torch's optimizer keeps state: parameters, or the flat partitions that ZeRO makes of them."""
    zero = _zero(optimizer)
    flat = getattr(zero, "fp32_partitioned_groups_flat", None) or getattr(zero, "single_partition_of_fp32_groups", None)
    yield from flat or (parameter for group in inner.param_groups for parameter in group["params"])


def _state(optimizer: Any, inner: Any, parameter: Any) -> Any:
    """The object in which `state_piece` finds the optimizer state of a parameter."""
    stretches = getattr(_zero(optimizer), "single_partition_of_fp32_groups", None)
    return inner.state.get(parameter) if stretches is None else [inner.state[stretch] for stretch in stretches]


def _keys(optimizer: Any, inner: Any) -> tuple[list[str], dict[str, Tensor]]:
    """The names of the state tensors that have a weight's size, and the state that is single numbers, such as the step."""
    state = next((inner.state[held] for held in _held(optimizer, inner) if held in inner.state), {})
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    large = [key for key, value in tensors.items() if value.dim()]
    return large, {key: value for key, value in tensors.items() if key not in large}
