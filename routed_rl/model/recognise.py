"""Finds the family of a model by running it on random tokens. In each layer the writers are the linear modules and mixtures whose
outputs, behind an optional norm or times a constant, add up to what the layer adds to the stream. This is verified to rounding,
in evaluation and in training mode. A model whose writers do not add up in this way is refused, with an error of one line that
says what was found."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from routed_rl.errors import ModelError
from routed_rl.model.families import Family
from routed_rl.model.names import names_in_files
from routed_rl.model.probe import run, trace
from routed_rl.model.traces import Trace, is_mixture, is_rounding
from routed_rl.model.written import Found, require_no_dropout, writers_in

WAY_OUT = "if you know its writers, name them: model.writers=[self_attn.o_proj,mlp.down_proj]"


def recognise(model: PreTrainedModel, writers: Sequence[str] = ()) -> Family:
    """Find the family of a model of any type. `writers`: the names of the writers, relative to a layer, if they are known; a
    layer need not have all of them. If there are none, the writers are found. ModelError if the model is not recognised, or if
    the modules in `writers` are not its writers."""
    try:
        layers = find_layers(model)
        _require_known(model, layers, writers)
        seen = trace(model, layers, list(writers), training=False)
        names = [f"{layers}.{place}" for place in range(len(seen.layers))]
        found = [writers_in(layer, name, writers) for layer, name in zip(seen.layers, names, strict=True)]
        row = _family(model, layers, seen, found)
        trained = trace(model, layers, list(writers), training=True)
        for layer, those, name in zip(trained.layers, found, names, strict=True):
            require_no_dropout(layer, those, name)
        return row
    except ModelError as error:
        given = f" with model.writers=[{','.join(writers)}]" if writers else ""
        raise ModelError(f"no writers are recognised in a model of type {model.config.model_type!r}{given}: {error}; "
                         f"{'leave model.writers out to have them found' if writers else WAY_OUT}") from error


def find_layers(model: PreTrainedModel) -> str:
    """Return the name of the module list that holds the model's layers: the longest list whose modules each run once in a forward
    pass. ModelError if there is not exactly one such list."""
    if model.config.is_encoder_decoder:
        raise ModelError("it has an encoder")
    lists: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not any(name.startswith(f"{outer}.") for outer in lists):
            lists[name] = module
    calls = {id(layer): 0 for layers in lists.values() for layer in layers}

    def count(module: nn.Module, _args: object) -> None:
        calls[id(module)] += 1

    handles = [layer.register_forward_pre_hook(count) for layers in lists.values() for layer in layers]
    try:
        with torch.no_grad():
            run(model)
    finally:
        for handle in handles:
            handle.remove()
    times = {name: sorted({calls[id(layer)] for layer in layers}) for name, layers in lists.items()}
    once = {name: len(lists[name]) for name, counts in times.items() if counts == [1]}
    longest = [name for name, length in once.items() if length == max(once.values())]
    if len(longest) != 1:
        has = ", ".join(f"{name} ({len(lists[name])} modules that run {' or '.join(map(str, counts)) or 0} times)"
                        for name, counts in times.items())
        raise ModelError(f"it has no one list of layers that run once each in a forward; its lists: {has or 'none'}")
    return longest[0]


def _require_known(model: PreTrainedModel, layers: str, writers: Sequence[str]) -> None:
    """ModelError if no layer has a module with one of the names `writers`, or if such a module cannot be a writer. `layers`: the
    name of the list of layers."""
    inside = [(name, module) for layer in model.get_submodule(layers).children() for name, module in layer.named_modules()]
    for writer in writers:
        modules = [module for name, module in inside if name == writer]
        if not modules:
            has = dict.fromkeys(name for name, module in inside if isinstance(module, nn.Linear | Conv1D) or is_mixture(module))
            raise ModelError(f"no layer of {layers} has {writer!r}; linear modules there: {', '.join(has)}")
        for module in modules:
            weight = getattr(module, "weight", None)
            if not is_mixture(module) and (not isinstance(weight, Tensor) or weight.dim() != 2):
                raise ModelError(f"{writer!r} in {layers} is a {type(module).__name__}, which is no linear module")


def _family(model: PreTrainedModel, layers: str, seen: Trace, found: list[list[Found]]) -> Family:
    """Make the family from the writers that were found in each layer. `layers`: the name of the list of layers. `seen`: the trace
    of a forward pass in evaluation mode."""
    first, width = _in_all(model, layers, found), seen.layers[0].into_BTD.shape[-1]
    if getattr(model.config.get_text_config(), "hidden_size", None) != width:
        raise ModelError(f"its stream is {width} wide, and hidden_size of its config says something else")
    mixtures = [writer for writer in first if writer.active]
    transposed = {isinstance(writer.module, Conv1D) for writer in first if not writer.active}
    norms = {(writer.offset, writer.eps) for writer in first if writer.norm}
    if len(mixtures) > 1 or len(transposed) > 1 or len(norms) > 1:
        raise ModelError(f"its writers {', '.join(writer.name for writer in first)} are of kinds that cannot be routed together")
    offset, eps = norms.pop() if norms else (0.0, None)
    before_mlp, mixers = _middle(seen, found)
    return Family(layers, tuple(writer.name for writer in first), _final_norm(model, seen), embeddings=_embeddings(model, seen),
                  post_norms=_unless(None, [writer.norm for writer in first]), gain_offset=offset, norm_eps=eps,
                  scales=_unless(1.0, [writer.scale for writer in first]), transposed=True in transposed, before_mlp=before_mlp,
                  mixers=mixers, experts=mixtures[0].name if mixtures else None,
                  active=mixtures[0].active if mixtures else None, returns=seen.layers[0].returns)


def _in_all(model: PreTrainedModel, layers: str, found: list[list[Found]]) -> list[Found]:
    """Join the writers that were found in each layer, and return one for each name of a writer. `layers`: the name of the list of
    layers. ModelError if writers of the same name do not reach the stream in the same way in all layers that have them."""
    first: dict[str, Found] = {}
    modules = [id(writer.module) for writers in found for writer in writers]
    for place, writers in enumerate(found):
        for writer in writers:
            if modules.count(id(writer.module)) > 1:
                raise ModelError(f"{layers}.{place} shares its writer {writer.name} with another layer")
            known = first.setdefault(writer.name, writer)
            if (known.norm, known.offset, known.eps, known.active) != (writer.norm, writer.offset, writer.eps, writer.active) or (
                    abs(known.scale - writer.scale) > 1e-5 * abs(known.scale)):
                raise ModelError(f"{writer.name} reaches the stream in another way in {layers}.{place} than before")
            names_in_files(model, f"{layers}.{place}.{writer.name}", mixture=writer.active is not None)
    for place, writers in enumerate(found):
        has = {name for name, _ in model.get_submodule(f"{layers}.{place}").named_modules()}
        if idle := [name for name in first if name in has and name not in {writer.name for writer in writers}]:
            raise ModelError(f"{idle[0]} writes to the stream in some layers that have it, and in {layers}.{place} it does not")
    return list(first.values())


def _unless(nothing: Any, values: list[Any]) -> tuple[Any, ...]:
    return () if all(value == nothing for value in values) else tuple(values)


def _embeddings(model: PreTrainedModel, seen: Trace) -> tuple[str, ...]:
    """Return the modules, other than the token embedding, on whose parameters the first layer's input depends."""
    tokens = {id(parameter) for parameter in model.get_input_embeddings().parameters()}
    return tuple(dict.fromkeys(name.rpartition(".")[0] for name in seen.before if id(model.get_parameter(name)) not in tokens))


def _final_norm(model: PreTrainedModel, seen: Trace) -> str | None:
    """Return the norm behind the last layer if it has parameters, otherwise None. ModelError if another module between the layers
    and the unembedding has parameters."""
    head = model.get_output_embeddings()
    unembedding = {id(parameter) for parameter in head.parameters()} if head is not None else set[int]()
    norm = [name for name in seen.after if seen.final_norm and name.startswith(f"{seen.final_norm}.")]
    if strange := [name for name in seen.after if name not in norm and id(model.get_parameter(name)) not in unembedding]:
        raise ModelError(f"{strange[0]} stands between the last layer and the unembedding, beside the final norm")
    return seen.final_norm if norm else None


def _middle(seen: Trace, found: list[list[Found]]) -> tuple[str | None, tuple[str, ...]]:
    """Return the submodule that reads the stream between attention and MLP in every layer (None if there is none), and the
    submodules of a layer that write before this place."""
    reads, mixers = list[set[str]](), dict[str, None]()
    for layer, writers in zip(seen.layers, found, strict=True):
        stream, before, at = layer.into_BTD.detach(), 1, set[str]()
        for place, writer in enumerate(writers[:-1]):
            stream = stream + writer.adds_BTD
            if at := {name for name, value in layer.reads if is_rounding(value - stream, stream)}:
                before = place + 1
                break
        reads.append(at)
        mixers |= dict.fromkeys(writer.name.partition(".")[0] for writer in writers[:before])
    shared = set.intersection(*reads)
    return next((name for name, _ in seen.layers[0].reads if name in shared), None), tuple(mixers)
