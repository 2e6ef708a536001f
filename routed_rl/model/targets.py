"""Finds the writers of a model, freezes groups of parameters, and lists the parameters that are trained but not routed."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from routed_rl.errors import ModelError
from routed_rl.model.base import without_adapters
from routed_rl.model.families import FAMILIES, Family
from routed_rl.model.recognise import recognise

SMALLEST_GAIN = 1e-3
"""A model is refused if the norm behind a writer has a gain below this share of the norm's largest gain, because the quarantine's
output is divided by the gain."""
FOUND = "found_family"
"""The attribute of a model that holds the family that `recognise` has found. A copy of the model keeps the attribute."""


@dataclass(frozen=True)
class Writer:
    """One writer of a model: a module, or an expert of a mixture, whose output is added to the stream. `name`: its full name in
    the model. `transposed`: whether the module stores its weight as (N, D), as GPT-2's Conv1D does."""

    name: str
    layer: int
    module: nn.Module
    gain_D: Tensor | None
    """The gain of a norm between the writer and the stream, or a constant scale there, (D,); None if the writer adds to the
    stream directly."""
    norm_eps: float | None
    """The eps of the norm between the writer and the stream; None if there is no norm."""
    transposed: bool
    expert: int | None = None
    """The number of the expert in the mixture `module`; None if `module` itself is the writer."""
    active: int = 1
    """The number of experts of `module` that a token goes through; 1 if `module` is no mixture."""
    mixer: bool = False
    """Whether the writer belongs to the layer's attention, or to what stands in its place, and not to its MLP."""

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters of `module` whose changes are routed. For an expert it is the one parameter that all experts of
        the mixture share."""
        if self.expert is None:
            return list(self.module.parameters())
        assert isinstance(self.module.down_proj, nn.Parameter)
        return [self.module.down_proj]


def family(model: PreTrainedModel) -> Family:
    """Return the family of a model: the one that was found for it before (see `name_writers`), or else the entry of `FAMILIES`
    for its type if its layers are those of transformers, or else the one that is found now by running the model. ModelError for a
    model that is not recognised, or in PEFT's wrapper."""
    # An adapter made here is put into the model itself; PEFT's wrapper around the model is only for the trainer.
    if hasattr(model, "get_base_model") or getattr(model, "_hf_peft_config_loaded", False):
        raise ModelError(f"{type(model).__name__} is wrapped by PEFT; give the model that is in it, or merge the adapter "
                         "into the model first")
    if (known := vars(model).get(FOUND)) is not None:
        return known
    row = FAMILIES.get(model.config.model_type)
    return row if row is not None and _has_stock_layers(model, row) else name_writers(model, [])


def _has_stock_layers(model: PreTrainedModel, row: Family) -> bool:
    """Whether the layers of a model are where its family has them, and of classes of transformers. A class of the user's own may
    write to the stream in another way. Classes of torch are skipped, since FSDP2 puts one in front of each layer's class."""
    try:
        layers = model.get_submodule(row.layers)
    except AttributeError:
        return False
    own = [next(each for each in type(layer).__mro__ if not each.__module__.startswith("torch.")) for layer in layers.children()]
    return all(each.__module__.startswith("transformers.") for each in own)


def name_writers(model: PreTrainedModel, writers: Sequence[str]) -> Family:
    """Declare which modules are the writers of a model, whatever its type, and return the family with these writers. `writers`:
    their names relative to a layer; if empty, they are found. Either way they are verified by running the model, and
    `family(model)` returns the result from then on. ModelError if they are not the model's writers."""
    with without_adapters(model):  # otherwise the factors of a LoRA would be taken for writers
        found = recognise(model, writers)
    object.__setattr__(model, FOUND, found)
    return found


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """Return the model's layers, whose outputs are the residual stream, in order."""
    layers = model.get_submodule(family(model).layers)
    assert isinstance(layers, nn.ModuleList)
    return list(layers)


def find_writers(model: PreTrainedModel) -> list[Writer]:
    """Return all writers of a model, layer by layer. ModelError if dropout, or a norm with a gain near 0, stands between a writer
    and the stream."""
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
            mixer = short.partition(".")[0] in row.mixers
            gain = _gain(row, layer, place, name) if scale == 1 else torch.full((text.hidden_size,), scale)
            if short == row.experts:
                writers += [Writer(f"{name}.{expert}.down_proj", index, module, gain, None, False, expert,
                                   row.active or text.num_experts_per_tok, mixer) for expert in range(len(module.down_proj))]  # pyright: ignore
                continue
            writers.append(Writer(name, index, module, gain, eps if scale == 1 else None, isinstance(module, Conv1D),
                                  mixer=mixer))
    _require_own_weights(writers)
    return writers


def _require_own_weights(writers: list[Writer]) -> None:
    """ModelError if the weight of a writer is no parameter of its own: computed from others, or shared with another writer."""
    owners: dict[int, str] = {}
    for writer in writers:
        if writer.expert is not None:
            continue
        weight = writer.module.weight
        if not isinstance(weight, nn.Parameter):
            raise ModelError(f"the weight of {writer.name} is computed from other tensors, as torch.nn.utils.parametrize and "
                             "prune do it, so it cannot be split; make it a parameter (remove_parametrizations, prune.remove)")
        if (other := owners.setdefault(id(weight), writer.name)) != writer.name:
            raise ModelError(f"{other} and {writer.name} share one weight, and each layer has a basis of its own, so it cannot "
                             "be split; give each layer its own copy, or leave this model unrouted (routing.mode=none)")


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
    """Freeze the groups of parameters whose names, as in `model.freeze`, are in `what`. Returns {name of parameter: name of
    group} for all parameters in these groups. Tied weights count as one parameter."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    frozen = {}
    for group in what:
        for parameter in _group(model, group):
            parameter.requires_grad_(False)
            frozen[names[id(parameter)]] = group
    return frozen


def unrouted(model: PreTrainedModel, writers: list[Writer]) -> dict[str, str]:
    """Return all parameters that are trained but not routed, with a remark on each: {name of parameter: remark}."""
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
    """Return the parameters of the group that has this name in `model.freeze`."""
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
    """Set the rate of every dropout module of the model to 0, in place."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
