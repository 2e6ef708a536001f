"""Gathers the weights and the optimizer state of a sharded model for a checkpoint, and loads them from one. Every checkpoint thus
has the form that a single process writes. Not covered: optimizers whose state for a parameter is anything other than tensors of
the parameter's size and single numbers."""

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
"""For each parameter group of the optimizer, the names of its parameters in the group's order."""


@torch.no_grad()
def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of the whole model with full tensors on the CPU. A tensor under two names stays one tensor. Every
    process must call this."""
    found: dict[int, Tensor] = {}
    state: dict[str, Tensor] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if id(value) not in found:
            found[id(value)] = whole(value).cpu()
        state[name] = found[id(value)]
    return state


@torch.no_grad()
def take_weights(model: nn.Module, checkpoint: Path) -> None:
    """Load the weights of a checkpoint into a model, which may be sharded. Parameters that the checkpoint lacks stay as they are;
    these are the frozen weights of a model with a LoRA."""
    stored = read_weights(model, checkpoint)
    for name, parameter in model.named_parameters():
        if name in stored:  # other parameters are frozen below a LoRA
            put(parameter, stored[name])


def whole_optimizer(optimizer: Any, model: nn.Module, names: Names) -> dict[str, Any]:
    """Return the state dict that torch's own optimizer would have for the whole model. Every process must call this. `optimizer`
    may be in the wrappers of DeepSpeed and accelerate."""
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
    """Load the state `stored`, which `whole_optimizer` returned, into the optimizer of a sharded model. ValueError if it does not
    fit this optimizer."""
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
    """Return the optimizer inside accelerate's wrapper: DeepSpeed's optimizer if DeepSpeed is in use, otherwise torch's."""
    return getattr(optimizer, "optimizer", optimizer)


def torch_optimizer(optimizer: Any) -> Any:
    """Return the torch optimizer inside the wrappers of DeepSpeed and accelerate."""
    zero = _zero(optimizer)
    return getattr(zero, "optimizer", zero)


def _held(optimizer: Any, inner: Any) -> Iterator[Any]:
    """Yield the tensors for which the torch optimizer `inner` keeps state: parameters, or the flat partitions that ZeRO makes of
    them."""
    zero = _zero(optimizer)
    flat = getattr(zero, "fp32_partitioned_groups_flat", None) or getattr(zero, "single_partition_of_fp32_groups", None)
    yield from flat or (parameter for group in inner.param_groups for parameter in group["params"])


def _state(optimizer: Any, inner: Any, parameter: Any) -> Any:
    """Return the optimizer state of a parameter in the form that `shards.state_piece` takes."""
    stretches = getattr(_zero(optimizer), "single_partition_of_fp32_groups", None)
    return inner.state.get(parameter) if stretches is None else [inner.state[stretch] for stretch in stretches]


def _keys(optimizer: Any, inner: Any) -> tuple[list[str], dict[str, Tensor]]:
    """Return what the optimizer keeps for each parameter: the names of the tensors that have the parameter's size, and by name
    the single numbers, such as the step count."""
    state = next((inner.state[held] for held in _held(optimizer, inner) if held in inner.state), {})
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    large = [key for key, value in tensors.items() if value.dim()]
    return large, {key: value for key, value in tensors.items() if key not in large}
