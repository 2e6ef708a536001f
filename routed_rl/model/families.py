"""The table of families: where models of each known type keep their layers and writers. For a model of a type that is not in the
table, `recognise` finds the same facts by running the model."""

import json
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

FAMILY, PLACES = "family", "places"
"""The keys of the metadata by which a checkpoint describes a model whose type is not in the table: its family, as JSON, and the
place of each writer's weight in the checkpoint's files."""

@dataclass(frozen=True)
class Family:
    """The names of the modules of a family of models that routing must know: the list of layers, the writers in a layer, and the
    modules between writers and stream. Names of a layer's submodules are relative to the layer."""

    layers: str
    writers: tuple[str, ...]
    """The writers of all layers, in the order in which they are called. A layer may lack some of them: it has, for instance,
    either an MLP or a mixture."""
    final_norm: str | None
    embeddings: tuple[str, ...] = ()
    """The modules that make the first layer's input together with the token embedding, such as learned positions or a norm."""
    post_norms: tuple[str | None, ...] = ()
    """For each of `writers`, the norm between the writer and the stream, or None; () if there are no such norms."""
    gain_offset: float = 0.0
    """The number that the norms in `post_norms` add to their weight to get the gain (Gemma: 1)."""
    norm_eps: float | None = None
    """The eps of the norms in `post_norms`; None for `rms_norm_eps` of the model's config."""
    scales: tuple[float, ...] = ()
    """For each of `writers`, the constant by which its output is multiplied before it is added to the stream (Granite); () if all
    are 1."""
    dropouts: tuple[str, ...] = ()
    transposed: bool = False
    before_mlp: str | None = "post_attention_layernorm"
    """The submodule of a layer whose input is the stream between attention and MLP; None if there is none."""
    mixers: tuple[str, ...] = ("self_attn",)
    """The submodules of a layer that are its attention, or stand in its place; all others belong to its MLP."""
    experts: str | None = None
    """The one of `writers` that is a mixture of experts, in which each expert's slice of `down_proj` is a writer of its own; None
    if there is no mixture."""
    active: int | None = None
    """The number of experts that a token goes through; None for `num_experts_per_tok` of the model's config."""
    stored: tuple[str, str] | None = None
    """The name of an expert's weight in a checkpoint's files, as the parts before and after the expert's number E. None for
    `mlp.experts.E.down_proj`."""
    returns: int = 0
    """The length of the tuple that a layer returns, whose first value is the stream; 0 if it returns the stream itself."""

    def stored_names(self, writer: str) -> tuple[str, str | None]:
        """Return two names for a writer, which is given by its name in the model: the name of its weight in a checkpoint's files,
        without `.weight`, and the name of the parameter that holds the weights of its whole mixture (None if the writer is no
        expert)."""
        layer, _, place = writer.partition(f".{self.experts}.")
        if not place:
            return writer, None
        expert, _, short = place.partition(".")
        stored = writer if self.stored is None else f"{layer}.{self.stored[0]}{expert}{self.stored[1]}"
        return stored, f"{layer}.{self.experts}.{short}"

    def to_json(self) -> str:
        """Return the family as JSON text, which a checkpoint stores; `from_json` is the inverse."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Family":
        stored: Any = {name: tuple(cast(list[Any], value)) if isinstance(value, list) else value
                       for name, value in json.loads(text).items()}
        return cls(**stored)


_LLAMA = Family("model.layers", ("self_attn.o_proj", "mlp.down_proj"), "model.norm")
_GEMMA = Family("model.layers", ("self_attn.o_proj", "mlp.down_proj"), "model.norm",
                post_norms=("post_attention_layernorm", "post_feedforward_layernorm"), gain_offset=1.0,
                before_mlp="pre_feedforward_layernorm")
_OLMO2 = replace(_GEMMA, gain_offset=0.0, before_mlp="mlp")  # OLMo-2 has no norm before its MLP
_PHI3 = replace(_LLAMA, dropouts=("resid_attn_dropout", "resid_mlp_dropout"))
_MOE = replace(_LLAMA, writers=("self_attn.o_proj", "mlp.down_proj", "mlp.experts"), experts="mlp.experts")
_MIXTRAL = replace(_MOE, writers=("self_attn.o_proj", "mlp.experts"), stored=("block_sparse_moe.experts.", ".w2"))
_GPT2 = Family("transformer.h", ("attn.c_proj", "mlp.c_proj"), "transformer.ln_f", embeddings=("transformer.wpe",),
               dropouts=("attn.resid_dropout", "mlp.dropout"), transposed=True, before_mlp="ln_2", mixers=("attn",))

FAMILIES = {"llama": _LLAMA, "mistral": _LLAMA, "qwen2": _LLAMA, "qwen3": _LLAMA, "phi3": _PHI3,
            "gemma2": _GEMMA, "gemma3_text": _GEMMA, "olmo2": _OLMO2, "gpt2": _GPT2,
            "mixtral": _MIXTRAL, "qwen3_moe": _MOE}
