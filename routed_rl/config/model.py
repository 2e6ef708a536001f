"""The model, and what of it is trained."""

from dataclasses import dataclass, field
from datetime import datetime

from routed_rl.config.adapter import AdapterConfig
from routed_rl.config.checks import check_known
from routed_rl.errors import ConfigError


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    path: str = ""
    """A folder in Hugging Face format, a hub name, or `gguf:` and a file or an installed distribution that holds one."""
    dtype: str = "float32"
    """Of the weights: float32, or bfloat16 where they are frozen (model.adapter=lora). `trainer.bf16=true` computes in bf16."""
    date: str | None = None
    """What a chat template that asks for the date is told, ISO; null for the time at which the run begins, which it keeps."""
    writers: list[str] = field(default_factory=list[str])
    """What writes to the stream, as named in a layer (self_attn.o_proj), of those that a layer has; empty: what is known of the
    model's type, or found by probing. Either way it must add up to what the layers add to the stream."""
    freeze: list[str] = field(default_factory=lambda: ["embedding", "unembedding", "final_norm", "post_norm"])
    """What is not trained: any of embedding (learned positions included), unembedding, final_norm, post_norm."""
    adapter: AdapterConfig = field(default_factory=AdapterConfig)

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
