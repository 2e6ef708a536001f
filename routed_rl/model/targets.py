"""The modules of a model that write to the residual stream, the parameters that are frozen, and those that are trained without
routing."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from routed_rl.errors import ModelError
from routed_rl.model.families import FAMILIES, Family
from routed_rl.model.recognise import recognise

SMALLEST_GAIN = 1e-3
"""A model with a post-norm gain below this share of the largest is refused, because the writer's output is divided by the
gain."""
FOUND = "found_family"
"""The attribute of a model that holds the family found by a probe. A copy of the model keeps it."""


@dataclass(frozen=True)
class Writer:
    """One writer of a model: a module, or an expert, whose output is added to the stream."""

    name: str
    layer: int
    module: nn.Module
    gain_D: Tensor | None
    """Gain of a norm between the writer and the stream, or a constant scale; None if the writer adds to the stream directly."""
    norm_eps: float | None
    """The eps of the norm with this gain; None if there is no such norm."""
    transposed: bool
    expert: int | None = None
    """Number of the expert in `module`; None for a writer that is a module of its own."""
    active: int = 1
    """Number of experts of `module` that a token goes through."""

    def parameters(self) -> list[nn.Parameter]:
        """The parameters of `module` that are routed. The experts of a mixture share one parameter."""
        if self.expert is None:
            return list(self.module.parameters())
        assert isinstance(self.module.down_proj, nn.Parameter)
        return [self.module.down_proj]


def family(model: PreTrainedModel) -> Family:
    """The family of this model: the one that `name_writers` or an earlier probe found, or else its row of `FAMILIES`, or else the
    one that a probe finds now. ModelError for a model that is not recognised."""
    # An adapter made here is put into the model itself; PEFT's wrapper around the model is only for the trainer.
    if hasattr(model, "get_base_model") or getattr(model, "_hf_peft_config_loaded", False):
        raise ModelError(f"{type(model).__name__} is wrapped by PEFT; give the model that is in it, or merge the adapter "
                         "into the model first")
    if (known := vars(model).get(FOUND)) is not None:
        return known
    if model.config.model_type in FAMILIES:
        return FAMILIES[model.config.model_type]
    return name_writers(model, [])


def name_writers(model: PreTrainedModel, writers: Sequence[str]) -> Family:
    """From now on, use these as the writers of a model, whatever its type. If `writers` is empty, a probe finds them. They are
    verified."""
    found = recognise(model, writers)
    object.__setattr__(model, FOUND, found)
    return found


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The layers whose outputs are the residual stream, in order."""
    layers = model.get_submodule(family(model).layers)
    assert isinstance(layers, nn.ModuleList)
    return list(layers)


def find_writers(model: PreTrainedModel) -> list[Writer]:
    """All writers of a model, layer by layer. ModelError for dropout, or for gains near zero, between a writer and the stream."""
    row = family(model)
    text, writers = model.config.get_text_config(), list[Writer]()
    eps = row.norm_eps if row.norm_eps is not None else getattr(text, "rms_norm_eps", 0.0)
    for index, layer in enumerate(decoder_layers(model)):
        modules = dict(layer.named_modules())
        for dropout in row.dropouts:
            if (rate := layer.get_submodule(dropout).p) != 0:
                raise ModelError(f"{row.layers}.{index}.{dropout} drops out {rate} between a writer and the stream, so no "
                                 "basis holds; set trainer.disable_dropout=true or save the model with dropout 0")
        for place, short in enumerate(row.writers):
            if (module := modules.get(short)) is None:
                continue
            name, scale = f"{row.layers}.{index}.{short}", row.scales[place] if row.scales else 1.0
            gain = _gain(row, layer, place, name) if scale == 1 else torch.full((text.hidden_size,), scale)
            if short == row.experts:
                writers += [Writer(f"{name}.{expert}.down_proj", index, module, gain, None, False, expert,
                                   row.active or text.num_experts_per_tok) for expert in range(len(module.down_proj))]  # pyright: ignore
                continue
            writers.append(Writer(name, index, module, gain, eps if scale == 1 else None, isinstance(module, Conv1D)))
    return writers


def _gain(row: Family, layer: nn.Module, place: int, name: str) -> Tensor | None:
    if not row.post_norms or (norm := row.post_norms[place]) is None:
        return None
    weight = layer.get_submodule(norm).weight
    assert isinstance(weight, Tensor)
    gain = weight.detach().float() + row.gain_offset
    if not gain.is_meta and gain.abs().min() < SMALLEST_GAIN * gain.abs().max():
        raise ModelError(f"the gain of {norm} behind {name} is nearly zero at index "
                         f"{int(gain.abs().argmin())}, so the writer cannot reach the subspace; leave this model unrouted")
    return gain


def freeze(model: PreTrainedModel, what: list[str]) -> dict[str, str]:
    """Freeze the groups of parameters with these names. Returns {parameter: group} for all frozen parameters. Tied weights are
    one parameter."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    frozen = {}
    for group in what:
        for parameter in _group(model, group):
            parameter.requires_grad_(False)
            frozen[names[id(parameter)]] = group
    return frozen


def unrouted(model: PreTrainedModel, writers: list[Writer]) -> dict[str, str]:
    """Every trainable parameter that is no target, with the reason: {parameter: reason}."""
    norms = [module for module in model.modules() if "Norm" in type(module).__name__]
    # Later reasons take precedence, because a norm behind a writer is among the norms too.
    reasons = {id(parameter): reason for parameters, reason in (
        (_parameters(norms), "norm before a reader: contained cotangents only"),
        (_group(model, "post_norm"), "norm gain behind a writer: turns the quarantine's output; freeze it"),
        (_group(model, "embedding"), "embedding: writes to the stream and is not routed; freeze it")) for parameter in parameters}
    targets = {id(parameter) for writer in writers for parameter in writer.parameters()}
    return {name: reasons.get(id(parameter), "reader: contained cotangents only") for name, parameter in model.named_parameters()
            if parameter.requires_grad and id(parameter) not in targets}


def _group(model: PreTrainedModel, name: str) -> list[nn.Parameter]:
    """The parameters of the group that has this name in `model.freeze`."""
    row = family(model)
    if name == "embedding":
        return _parameters([model.get_input_embeddings(), *(model.get_submodule(each) for each in row.embeddings)])
    if name == "unembedding":
        return _parameters([model.get_output_embeddings()])
    if name == "final_norm":
        return _parameters([model.get_submodule(row.final_norm)] if row.final_norm else [])
    modules = [dict(layer.named_modules()) for layer in decoder_layers(model)]
    return _parameters([names.get(norm) for names in modules for norm in row.post_norms if norm])


def _parameters(modules: Sequence[nn.Module | None]) -> list[nn.Parameter]:
    return [parameter for module in modules if module is not None for parameter in module.parameters()]


def disable_dropout(model: PreTrainedModel) -> None:
    """Set every dropout of the model to 0, in place."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
