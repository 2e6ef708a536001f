"""What serves completions besides transformers: the interface of an engine, which `opening.py` opens, and both models on one."""

import time
from dataclasses import dataclass
from typing import Any, Protocol, cast

from torch import Tensor

from routed_rl.rollout.heads import HeadPadding
from routed_rl.rollout.weights import NamedTensors, PolicyWeights

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


class Served:
    """Keeps an engine at the trainer's weights, and asks it for either model. The deployed model is the policy with an adapter of
    minus the quarantine, so that changing between them replaces no weight. Where the engine has no adapters the writers' weights
    are replaced, there and back."""

    def __init__(self, engine: Engine, weights: PolicyWeights) -> None:
        self.engine, self.weights = engine, weights
        self.sync_seconds = 0.0
        """Of the last `sync`."""
        self._adapter_is_current, self._writers_are_deployed = False, False
        # vLLM serves some families (OLMo-2) by transformers' own classes and compiles these, the trainer's model too: not so.
        cast(Any, weights.model).base_model.do_not_compile = True

    def sync(self) -> None:
        """Push the policy as it stands now."""
        begin = time.perf_counter()
        self._load(self.weights.policy())
        self._adapter_is_current, self._writers_are_deployed = False, False
        self.sync_seconds = time.perf_counter() - begin

    def logprobs(self, sequences: list[list[int]], *, deployed: bool = False) -> list[list[float]]:
        return self.engine.logprobs(sequences, adapted=self.show(deployed=deployed))

    def complete(self, prompts: list[list[int]], sampling: Sampling, *, deployed: bool = False) -> list[list[int]]:
        return self.engine.complete(prompts, sampling, adapted=self.show(deployed=deployed))

    def _load(self, weights: NamedTensors) -> None:
        padding = self.engine.padding
        self.engine.load(weights if padding is None else padding.weights(weights))

    def show(self, *, deployed: bool) -> bool:
        """Make the engine ready for the model; whether it is to be asked with the adapter. Every process of a run must, also
        one that will not ask; and for the policy before the engine is used by others."""
        if not self.weights.targets:
            return False
        if self.engine.lora is None:
            if deployed != self._writers_are_deployed:
                self._load(self.weights.writers(deployed=deployed))
                self._writers_are_deployed = deployed
            return False
        if deployed and not self._adapter_is_current:
            tensors = self.weights.minus_quarantine(self.engine.lora.rank)
            padding = self.engine.padding
            self.engine.load_adapter(dict(padding.weights(tensors.items())) if padding is not None else tensors)
            self._adapter_is_current = True
        return deployed
