"""What serves completions besides transformers: the interface of an engine. `opening.py` opens one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from routed_rl.rollout.heads import HeadPadding
from routed_rl.rollout.weights import NamedTensors

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Those that vLLM can be started with."""


@dataclass(frozen=True)
class Sampling:
    """How to complete a prompt; temperature 0 is greedy."""

    temperature: float
    max_tokens: int
    stop: list[int]
    """Ids that end a completion; the id itself stays in it."""
    seed: int = 0


@dataclass(frozen=True)
class Lora:
    """How the engine holds the deployed model beside the policy."""

    rank: int
    modules: list[str]
    """Last part of the names of the modules that the adapter may change."""


class Engine(Protocol):
    """A model that can be sampled and whose weights can be replaced."""

    dtype: str
    lora: Lora | None
    padding: HeadPadding | None
    """How the weights must be changed before they are loaded."""

    def load(self, weights: NamedTensors) -> None:
        """Replace these weights; adapters and cached prefixes are dropped."""

    def load_adapter(self, tensors: dict[str, Tensor]) -> None:
        """Replace the adapter that `adapted` asks for."""

    def logprobs(self, sequences: list[list[int]], *, adapted: bool) -> list[list[float]]:
        """Log-probability of each token but the first, given those before it; temperature 1."""
        ...

    def complete(self, prompts: list[list[int]], sampling: Sampling, *, adapted: bool) -> list[list[int]]:
        """Ids of one completion for each prompt."""
        ...

    def hand_over(self) -> list[str]:
        """The addresses at which the processes of a launch find it, which push the weights until this process does again;
        none where it is in this process."""
        ...

    def close(self) -> None:
        """Idempotent."""


def lora_for(rank: int, modules: list[str]) -> Lora | None:
    """The adapter's shape; None where vLLM has none of that rank."""
    fitting = [known for known in LORA_RANKS if known >= rank]
    return Lora(fitting[0], sorted(set(modules))) if fitting and rank else None
