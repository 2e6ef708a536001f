"""The inputs of an extraction, which every method gets."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from routed_rl.artifacts import find_data
from routed_rl.artifacts.whole import sha256
from routed_rl.config import SubspaceConfig
from routed_rl.extraction.contrast import ContrastPair
from routed_rl.extraction.responses import Respond
from routed_rl.model.prompts import eos_ids
from routed_rl.model.targets import decoder_layers
from routed_rl.subspace import Provenance, Size

Progress = Callable[[int, int], None]
"""Function (done, in all) -> None, called after each batch of distinct prompts or after each direction."""
OWN = ("assistant_axis", "persona_vectors")
"""Methods that read responses which the model itself writes."""


@dataclass(frozen=True)
class Job:
    """The inputs of an extraction: the model, the settings, and the function that reports progress."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    config: SubspaceConfig
    model_path: str
    model_hash: str
    seed: int
    progress: Progress | None = None
    axes: bool = False
    """Whether figures of each single axis are measured too."""
    pairs: Sequence[ContrastPair] | None = None
    """Contrast pairs in memory, which are used instead of a file; None: a file is read."""
    behave: Callable[[], float] | None = None
    """Function that returns the share of the model's completions that its environments flag; None if there are no
    environments."""

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
    def tokens(self) -> str:
        """The tokens at which the stream is read: prompt_end or response_mean."""
        return self.config.tokens or ("response_mean" if self.config.method in OWN else "prompt_end")

    @property
    def respond(self) -> Respond:
        """The settings for sampling responses of this model."""
        return Respond(self.config.response_tokens, self.config.temperature, tuple(eos_ids(self.model, self.tokenizer)))

    def changed(self, **settings: Any) -> "Job":
        """A copy of the job with other settings."""
        return replace(self, config=replace(self.config, **settings))

    @staticmethod
    def hash_of(source: str) -> str:
        """The hash of a file, which may be one of the package's own; empty if there is none."""
        try:
            file = find_data(source) if source else None
        except FileNotFoundError:
            file = None
        return sha256(file) if file is not None and file.is_file() else ""

    def provenance(self, source: str, details: dict[str, Any]) -> Provenance:
        return Provenance(self.config.method, self.model_path, self.model_hash, self.width, self.layers, self.config.rank,
                          source, self.hash_of(source), {**details, "hook": self.config.hook})
