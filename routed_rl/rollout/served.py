"""The policy and the deployed model, both on one engine."""

from __future__ import annotations

import time
from typing import Any, cast

from routed_rl.rollout.engine import Engine, Sampling
from routed_rl.rollout.weights import NamedTensors, PolicyWeights


class Served:
    """Keeps an engine at the trainer's weights, and asks it for either model.

    The deployed model is the policy with an adapter of minus the quarantine, so that changing between them replaces no
    weight. Where the engine has no adapters the writers' weights are replaced, there and back.
    """

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
