"""Which modules write to the residual stream, per family. Not covered: mixtures with shared experts, encoders, images.

A new family is one row in `FAMILIES`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn
from transformers import PreTrainedModel

from routed_rl.errors import ModelError

SMALLEST_GAIN = 1e-3
"""A post-norm gain under this share of the largest cannot be divided by."""


@dataclass(frozen=True)
class Family:
    """Where a family keeps its layers, the writers of one layer, and what stands between writer and stream."""

    layers: str
    writers: tuple[str, str]
    final_norm: str
    positions: str | None = None
    post_norms: tuple[str, str] | None = None
    """Norms between writer and stream, in the order of `writers`."""
    gain_offset: float = 0.0
    """What the norm adds to its weight before multiplying (Gemma: 1)."""
    dropouts: tuple[str, ...] = ()
    transposed: bool = False
    before_mlp: str = "post_attention_layernorm"
    """The module whose input is the stream between attention and MLP."""
    experts: str | None = None
    """In a layer that has it, a mixture takes the second writer's place: every expert's slice of its `down_proj` is a writer."""
    stored: tuple[str, str] | None = None
    """What a checkpoint's files call an expert where that is not `mlp.experts.E.down_proj`: before and after its number."""

    def stored_names(self, writer: str) -> tuple[str, str | None]:
        """A writer's weight in a checkpoint's files, without `.weight`, and an expert's parameter for all of its mixture."""
        layer, _, place = writer.partition(f".{self.experts}.")
        if not place:
            return writer, None
        expert, _, short = place.partition(".")
        stored = writer if self.stored is None else f"{layer}.{self.stored[0]}{expert}{self.stored[1]}"
        return stored, f"{layer}.{self.experts}.{short}"


_LLAMA = Family("model.layers", ("self_attn.o_proj", "mlp.down_proj"), "model.norm")
_GEMMA = Family("model.layers", ("self_attn.o_proj", "mlp.down_proj"), "model.norm",
                post_norms=("post_attention_layernorm", "post_feedforward_layernorm"), gain_offset=1.0,
                before_mlp="pre_feedforward_layernorm")
_OLMO2 = replace(_GEMMA, gain_offset=0.0, before_mlp="mlp")  # It has no norm before its MLP.
_PHI3 = replace(_LLAMA, dropouts=("resid_attn_dropout", "resid_mlp_dropout"))
_MOE = replace(_LLAMA, experts="mlp.experts")
_MIXTRAL = replace(_MOE, stored=("block_sparse_moe.experts.", ".w2"))
_GPT2 = Family("transformer.h", ("attn.c_proj", "mlp.c_proj"), "transformer.ln_f", positions="transformer.wpe",
               dropouts=("attn.resid_dropout", "mlp.dropout"), transposed=True, before_mlp="ln_2")

FAMILIES = {"llama": _LLAMA, "mistral": _LLAMA, "qwen2": _LLAMA, "qwen3": _LLAMA, "phi3": _PHI3,
            "gemma2": _GEMMA, "gemma3_text": _GEMMA, "olmo2": _OLMO2, "gpt2": _GPT2,
            "mixtral": _MIXTRAL, "qwen3_moe": _MOE}


@dataclass(frozen=True)
class Writer:
    """One writer as it stands in a model."""

    name: str
    layer: int
    module: nn.Module
    gain_D: Tensor | None
    norm_eps: float
    """Of the norm that has the gain."""
    transposed: bool
    expert: int | None = None
    """Which expert of `module`; None for a writer that is a module of its own."""
    active: int = 1
    """Experts of `module` that a token goes through."""

    def parameters(self) -> list[nn.Parameter]:
        """What is routed of `module`; experts of one module share their one parameter."""
        if self.expert is None:
            return list(self.module.parameters())
        assert isinstance(self.module.down_proj, nn.Parameter)
        return [self.module.down_proj]


def family(model: PreTrainedModel) -> Family:
    """The row of `FAMILIES` for this model; another model is refused with what was found in it."""
    if hasattr(model, "peft_config"):
        raise ModelError(f"{type(model).__name__} is wrapped by PEFT; routed_rl trains full weights only: merge the adapter "
                         "into the model first (an adapter is what `routed-rl export` writes)")
    kind = model.config.model_type
    if kind in FAMILIES:
        return FAMILIES[kind]
    width = getattr(model.config.get_text_config(), "hidden_size", None)
    found = {name.rsplit(".", 1)[-1] for name, module in model.named_modules()
             if isinstance(getattr(module, "weight", None), Tensor) and width in module.weight.shape}  # pyright: ignore
    raise ModelError(f"no writer is recognised in a model of type {kind!r}; modules as wide as its stream ({width}): "
                     f"{', '.join(sorted(found)) or 'none'}; known types: {', '.join(FAMILIES)}; "
                     "add a row to FAMILIES in routed_rl/model/targets.py")


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The layers whose outputs are the residual stream, in order."""
    layers = model.get_submodule(family(model).layers)
    assert isinstance(layers, nn.ModuleList)
    return list(layers)


def find_writers(model: PreTrainedModel) -> list[Writer]:
    """All writers, layer by layer; dropout and near-zero gains between writer and stream are refused."""
    row = family(model)
    text = model.config.get_text_config()
    eps = getattr(text, "rms_norm_eps", 0.0)
    writers = []
    for index, layer in enumerate(decoder_layers(model)):
        for dropout in row.dropouts:
            if (rate := layer.get_submodule(dropout).p) != 0:
                raise ModelError(f"{row.layers}.{index}.{dropout} drops out {rate} between a writer and the stream, so no "
                                 "basis holds; set trainer.disable_dropout=true or save the model with dropout 0")
        for place, short in enumerate(row.writers):
            if place == 1 and (experts := _experts(row, layer)) is not None:
                writers += [Writer(f"{row.layers}.{index}.{row.experts}.{expert}.down_proj", index, experts, None, eps, False,
                                   expert, text.num_experts_per_tok) for expert in range(len(experts.down_proj))]  # pyright: ignore
                continue
            name = f"{row.layers}.{index}.{short}"
            gain = _gain(row, layer, place, name)
            writers.append(Writer(name, index, layer.get_submodule(short), gain, eps, row.transposed))
    return writers


def _experts(row: Family, layer: nn.Module) -> nn.Module | None:
    """The mixture of a layer, if it has one: some families mix in some of their layers only."""
    mlp, _, short = (row.experts or "").partition(".")
    return getattr(layer.get_submodule(mlp), short, None) if mlp else None


def _gain(row: Family, layer: nn.Module, place: int, name: str) -> Tensor | None:
    if row.post_norms is None:
        return None
    weight = layer.get_submodule(row.post_norms[place]).weight
    assert isinstance(weight, Tensor)
    gain = weight.detach().float() + row.gain_offset
    if gain.abs().min() < SMALLEST_GAIN * gain.abs().max():
        raise ModelError(f"the gain of {row.post_norms[place]} behind {name} is nearly zero at index "
                         f"{int(gain.abs().argmin())}, so the writer cannot reach the subspace; leave this model unrouted")
    return gain


def freeze(model: PreTrainedModel, what: list[str]) -> dict[str, str]:
    """Stop training the named groups; returns {parameter: group} for what is frozen. Tied weights are one parameter."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    frozen = {}
    for group in what:
        for parameter in _group(model, group):
            parameter.requires_grad_(False)
            frozen[names[id(parameter)]] = group
    return frozen


def unrouted(model: PreTrainedModel, writers: list[Writer]) -> dict[str, str]:
    """{parameter: reason} for every trainable parameter that is no target."""
    norms = [module for module in model.modules() if "Norm" in type(module).__name__]
    # Later ones take precedence: a norm behind a writer is a norm, too.
    reasons = {id(parameter): reason for parameters, reason in (
        (_parameters(norms), "norm before a reader: contained cotangents only"),
        (_group(model, "post_norm"), "norm gain behind a writer: turns the quarantine's output; freeze it"),
        (_group(model, "embedding"), "embedding: writes to the stream and is not routed; freeze it")) for parameter in parameters}
    targets = {id(parameter) for writer in writers for parameter in writer.parameters()}
    return {name: reasons.get(id(parameter), "reader: contained cotangents only") for name, parameter in model.named_parameters()
            if parameter.requires_grad and id(parameter) not in targets}


def _group(model: PreTrainedModel, name: str) -> list[nn.Parameter]:
    """The parameters that `model.freeze` calls so."""
    row = family(model)
    if name == "embedding":
        return _parameters([model.get_input_embeddings(), *([model.get_submodule(row.positions)] if row.positions else [])])
    if name == "unembedding":
        return _parameters([model.get_output_embeddings()])
    if name == "final_norm":
        return _parameters([model.get_submodule(row.final_norm)])
    return _parameters([layer.get_submodule(norm) for layer in decoder_layers(model) for norm in row.post_norms or ()])


def _parameters(modules: Sequence[nn.Module | None]) -> list[nn.Parameter]:
    return [parameter for module in modules if module is not None for parameter in module.parameters()]


def disable_dropout(model: PreTrainedModel) -> None:
    """Set every dropout of the model to 0, in place."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
