"""The layers and writers of each known family of models. A row of the table saves the probing by `recognise`, which would find
the same."""

import json
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

FAMILY, PLACES = "family", "places"
"""The keys under which a checkpoint describes a model whose family was found by probing: the row of the family, and the place of
each writer's weight in the checkpoint's files."""

@dataclass(frozen=True)
class Family:
    """Where a family of models keeps its layers, the writers of a layer, and the modules between writers and stream."""

    layers: str
    writers: tuple[str, ...]
    """Names of the writers within a layer, in the order in which they are called. A layer has only those of its kind: attention
    or a recurrence, an MLP or a mixture."""
    final_norm: str | None
    embeddings: tuple[str, ...] = ()
    """Modules that make the first layer's input beside the token embedding: learned positions, a norm."""
    post_norms: tuple[str | None, ...] = ()
    """Norms between writer and stream, in the order of `writers`; () if there are none."""
    gain_offset: float = 0.0
    """Number that the norm adds to its weight before multiplying (Gemma: 1)."""
    norm_eps: float | None = None
    """The eps of these norms; None for `rms_norm_eps` of the model's config."""
    scales: tuple[float, ...] = ()
    """Constants between writer and stream, in the order of `writers` (Granite); () if all are 1."""
    dropouts: tuple[str, ...] = ()
    transposed: bool = False
    before_mlp: str | None = "post_attention_layernorm"
    """The module whose input is the stream between attention and MLP; None if there is no such place."""
    mixers: tuple[str, ...] = ("self_attn",)
    """Submodules of a layer that are its attention, or that replace it; the others are its MLP."""
    experts: str | None = None
    """The writer that is a mixture, if any: every expert's slice of its `down_proj` is a writer."""
    active: int | None = None
    """Number of experts that a token goes through; None for `num_experts_per_tok` of the model's config."""
    stored: tuple[str, str] | None = None
    """How an expert is named in a checkpoint's files: the parts of the name before and after its number. None for
    `mlp.experts.E.down_proj`."""
    returns: int = 0
    """Number of values that a layer returns as a tuple, the stream first; 0: it returns the stream itself."""

    def stored_names(self, writer: str) -> tuple[str, str | None]:
        """The name of a writer's weight in a checkpoint's files, without `.weight`, and, for an expert, the name of the parameter
        that holds the weights of its whole mixture (None for other writers)."""
        layer, _, place = writer.partition(f".{self.experts}.")
        if not place:
            return writer, None
        expert, _, short = place.partition(".")
        stored = writer if self.stored is None else f"{layer}.{self.stored[0]}{expert}{self.stored[1]}"
        return stored, f"{layer}.{self.experts}.{short}"

    def to_json(self) -> str:
        """The row as JSON text, which a checkpoint stores; `from_json` is the inverse."""
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
