"""Settings of the model, and of which groups of its parameters are trained."""

from dataclasses import dataclass, field
from datetime import datetime

from routed_rl.config.adapter import AdapterConfig
from routed_rl.config.checks import check_known
from routed_rl.errors import ConfigError


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    path: str = ""
    """The base model: a folder in Hugging Face format, a name on the hub, or `gguf:` followed by a GGUF file or by the name of an
    installed distribution that holds one."""
    dtype: str = "float32"
    """Type of the weights: float32, or bfloat16 where the weights are frozen (model.adapter=lora). To compute in bfloat16 on
    float32 weights, set trainer.bf16=true."""
    date: str | None = None
    """Date that is given to the model's chat template if the template asks for one, in ISO format such as 2026-01-31; null for
    the time at which the run begins, which a resumed run keeps."""
    writers: list[str] = field(default_factory=list[str])
    """Modules whose outputs are added to the residual stream, by their names within a layer, such as self_attn.o_proj; a layer
    need not have all of them. Empty: the modules that are known for the model's type, or, if the type is unknown, modules that
    are found by running the model. In every case the outputs of the writers must add up to everything that the layers add to the
    stream."""
    freeze: list[str] = field(default_factory=lambda: ["embedding", "unembedding", "final_norm", "post_norm"])
    """Groups of parameters that are not trained: any of embedding (with learned positions), unembedding, final_norm and post_norm
    (the gains of norms between a writer and the stream)."""
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    """The LoRA that is trained in place of the model's weights, if `model.adapter.kind` asks for one."""

    def __post_init__(self) -> None:
        if self.dtype != "float32" and not (self.adapter.trains and self.dtype == "bfloat16"):
            way = "keep model.dtype=float32 and set trainer.bf16=true" + (
                ", or train a LoRA on frozen weights: model.adapter=lora" if self.dtype == "bfloat16" else "")
            raise ConfigError(f"model.dtype={self.dtype} is not supported: small updates are lost in it and leak into the "
                              f"subspace; {way}")
        try:
            datetime.fromisoformat(self.date or "2026-01-31")
        except (ValueError, TypeError):
            raise ConfigError(f"model.date={self.date} is no date; write model.date=2026-01-31") from None
        check_known("model.freeze", self.freeze, ("embedding", "unembedding", "final_norm", "post_norm"))
