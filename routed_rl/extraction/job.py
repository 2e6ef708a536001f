"""The job: the inputs of an extraction, which every method gets."""

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
from routed_rl.subspace import Provenance, Size, Subspace

Progress = Callable[[int, int], None]
"""Function that is called after each part of the work (a batch of distinct prompts, a direction, a step), with the number of
parts done and the number in all."""
OWN = ("assistant_axis", "persona_vectors")
"""The methods that read the stream over responses which the model itself writes."""


@dataclass(frozen=True)
class Job:
    """The inputs of an extraction: the model with its path and the hash of its weights, the settings, and a function that reports
    progress."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    config: SubspaceConfig
    model_path: str
    model_hash: str
    seed: int
    progress: Progress | None = None
    axes: bool = False
    """Whether the figures of `measure_axes`, for each single axis, are measured too."""
    pairs: Sequence[ContrastPair] | None = None
    """Contrast pairs that are used instead of those in a file; None: the pairs are read from the file that the settings name."""
    behave: Callable[[], float] | None = None
    """Function that lets the model complete tasks of the environments and returns the share of completions that they flag; None
    if there are no environments."""

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
        """Where the stream is read: `prompt_end` (the last positions of a prompt) or `response_mean` (over a response)."""
        return self.config.tokens or ("response_mean" if self.config.method in OWN else "prompt_end")

    @property
    def respond(self) -> Respond:
        """The settings for sampling responses of the model."""
        return Respond(self.config.response_tokens, self.config.temperature, tuple(eos_ids(self.model, self.tokenizer)))

    def changed(self, **settings: Any) -> "Job":
        """Return a copy of the job with other values of some settings, given by name."""
        return replace(self, config=replace(self.config, **settings))

    @staticmethod
    def hash_of(source: str) -> str:
        """Return the sha256 of the file `source`, which may be one of the package's data; "" if there is no such file."""
        try:
            file = find_data(source) if source else None
        except FileNotFoundError:
            file = None
        return sha256(file) if file is not None and file.is_file() else ""

    def provenance(self, source: str, details: dict[str, Any]) -> Provenance:
        """Return the provenance of a subspace that this job makes. `source`: the file of its prompts or vectors ("" for none).
        `details`: further facts; if "hook" is among them, it replaces the hook point of the settings."""
        return Provenance(self.config.method, self.model_path, self.model_hash, self.width, self.layers, self.config.rank,
                          source, self.hash_of(source), {"hook": self.config.hook, **details})

    @staticmethod
    def read_at(subspace: Subspace) -> dict[str, Any]:
        """Return those details of the provenance of `subspace` that say where the stream was read to find it. A subspace that is
        made from `subspace` records them too."""
        return {key: value for key, value in subspace.provenance.details.items() if key in ("hook", "tokens")}
