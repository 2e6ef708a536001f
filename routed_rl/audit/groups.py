"""Groups the changed parameters of a model, by the kind of module or by layer, and gives chosen parameters the base model's
values."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from routed_rl.model.targets import Writer, decoder_layers, family

OUTSIDE = "outside the layers"
Groups = dict[str, list[str]]
"""Maps the name of a group to its parameters. Every parameter that changed is in exactly one group."""
State = dict[str, Tensor]
"""Maps the name of a parameter to its value, for all parameters of a model or for those of its LoRA. A tied parameter is in it
once."""


def changed(base: State, deployed: State) -> list[str]:
    """Names of the parameters of which any entry differs between `base` and `deployed`, in the model's order."""
    return [name for name, value in deployed.items() if not torch.equal(value, base[name])]


def by_kind(model: PreTrainedModel, found: Sequence[Writer], parameters: list[str]) -> Groups:
    """Group `parameters` by the kind of module: writers of attention, readers of attention, writers of the MLP, readers of the
    MLP, norms, and parameters outside the layers. `found` are the model's writers. Empty groups are left out."""
    writers = {id(parameter) for writer in found for parameter in writer.parameters()}
    norms = {id(parameter) for module in model.modules() if "Norm" in type(module).__name__
             for parameter in module.parameters(recurse=False)}
    mixers = family(model).mixers
    groups: Groups = {f"{part} {role}": [] for part in ("attention", "MLP") for role in ("writers", "readers")}
    groups |= {"norms": [], OUTSIDE: []}
    for name, (layer, place) in _places(model, parameters).items():
        parameter = id(model.get_parameter(name))
        part = "attention" if place.partition(".")[0] in mixers else "MLP"
        if layer is None:
            groups[OUTSIDE].append(name)
        elif parameter in norms:
            groups["norms"].append(name)
        else:
            groups[f"{part} {'writers' if parameter in writers else 'readers'}"].append(name)
    return {group: names for group, names in groups.items() if names}


def by_layer(model: PreTrainedModel, parameters: list[str], blocks: int) -> Groups:
    """Group `parameters` by layer: at most `blocks` blocks of neighbouring layers, and the parameters outside the layers. Empty
    groups are left out."""
    layers = len(decoder_layers(model))
    edges = [layers * block // min(blocks, layers) for block in range(min(blocks, layers) + 1)]
    groups: Groups = {}
    block_of: dict[int | None, str] = {None: OUTSIDE}
    for start, end in zip(edges, edges[1:], strict=False):
        name = f"layer {start}" if end == start + 1 else f"layers {start} to {end - 1}"
        block_of |= dict.fromkeys(range(start, end), name)
    for name, (layer, _) in _places(model, parameters).items():
        groups.setdefault(block_of[layer], []).append(name)
    return {group: groups[group] for group in dict.fromkeys([*block_of.values()][1:] + [OUTSIDE]) if group in groups}


def _places(model: PreTrainedModel, parameters: list[str]) -> dict[str, tuple[int | None, str]]:
    """Maps each parameter to its layer and its name inside that layer. A parameter in no layer maps to None and its whole
    name."""
    prefix, found = f"{family(model).layers}.", {}
    for name in parameters:
        number, _, rest = name.removeprefix(prefix).partition(".")
        found[name] = (int(number), rest) if name.startswith(prefix) else (None, name)
    return found


@contextmanager
def putting_back(model: PreTrainedModel, parameters: frozenset[str], base: State, deployed: State) -> Iterator[None]:
    """Inside the block, `model` is the deployed model, except that `parameters` have the base model's values. After the block it
    is the deployed model again. `base` and `deployed` map each changed parameter to its value in the two models."""
    try:
        load(model, {name: (base if name in parameters else deployed)[name] for name in deployed})
        yield
    finally:
        load(model, deployed)


@torch.no_grad()
def load(model: PreTrainedModel, state: State) -> None:
    """Copy the values in `state` into the parameters of these names."""
    parameters = dict(model.named_parameters())
    for name, value in state.items():
        parameters[name].copy_(value)
