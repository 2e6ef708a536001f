"""What every method of an extraction gets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from routed_rl.artifacts import sha256
from routed_rl.config import SubspaceConfig
from routed_rl.extraction.activations import Progress
from routed_rl.extraction.responses import Respond
from routed_rl.model.targets import decoder_layers
from routed_rl.subspace import Provenance, Size


@dataclass(frozen=True)
class Job:
    """The model, the settings, and whom to tell."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    config: SubspaceConfig
    model_path: str
    model_hash: str
    seed: int
    progress: Progress | None = None
    axes: bool = False
    """Also measure every axis by itself."""

    @property
    def width(self) -> int:
        return self.model.config.get_text_config().hidden_size

    @property
    def layers(self) -> int:
        return len(decoder_layers(self.model))

    @property
    def size(self) -> Size:
        return Size(self.config.rank, self.config.weakest, self.config.role_components)

    @property
    def respond(self) -> Respond:
        """How this model's responses are drawn and end."""
        known: Any = getattr(self.model.generation_config, "eos_token_id", None)
        ends: list[Any] = [self.tokenizer.eos_token_id, *([known] if isinstance(known, int) else known or [])]
        return Respond(self.config.response_tokens, self.config.temperature, tuple(dict.fromkeys(ends)), self.seed)

    def provenance(self, source: str, details: dict[str, Any]) -> Provenance:
        file = Path(source)
        return Provenance(self.config.method, self.model_path, self.model_hash, self.width, self.layers, self.config.rank,
                          source, sha256(file) if file.is_file() else "", {**details, "hook": self.config.hook})
