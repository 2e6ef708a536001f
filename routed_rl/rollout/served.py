"""Serves the policy and the deployed model on one engine."""

import time
from concurrent.futures import Future, wait
from typing import Any, cast

from torch import Tensor

from routed_rl.rollout.engine import Engine, Sampling
from routed_rl.rollout.weights import Models, NamedTensors, PolicyWeights


class Served:
    """Keeps an engine's weights equal to the trainer's, and makes the engine answer as the policy or as the deployed model.
    `models` makes the tensors that the engine gets. If the engine cannot hold adapters, the writers' weights are replaced at each
    change between the two models."""

    def __init__(self, engine: Engine, models: Models) -> None:
        self.engine, self.models = engine, models
        self.sync_seconds = 0.0
        """Seconds that the last `sync` took."""
        self.pending: Future[Any] | None = None
        """A request to the engine that another thread makes. Until it is answered, the engine gets no weights and no other
        request."""
        self.waited_s = 0.0
        """Seconds that this process has waited for pending requests since this attribute was last set to 0."""
        self._current: set[str] = set()
        """Adapters whose tensors in the engine are up to date."""
        self._writers_are_deployed = False
        # vLLM serves some families (OLMo-2) by transformers' own classes, and compiling these would compile the trainer's model
        # too.
        cast(Any, models.model).base_model.do_not_compile = True

    def settle(self) -> None:
        """Wait until the pending request is answered or has failed, and make the engine ready for the next one."""
        self.engine.wake()
        begin = time.perf_counter()
        if self.pending is not None:
            wait([self.pending])
        self.pending = None
        self.waited_s += time.perf_counter() - begin

    def rest(self) -> None:
        """Let the engine sleep until the step is over. Until that time it gets neither requests nor new weights."""
        self.engine.sleep()

    def sync(self) -> None:
        """Send the policy's present weights to the engine."""
        self.settle()
        begin = time.perf_counter()
        if (weights := self.models.policy()) is not None:
            self.engine.load(self._padded(weights))
        self._current, self._writers_are_deployed = set(), False
        self.show(deployed=False)
        self.sync_seconds = time.perf_counter() - begin

    def logprobs(self, sequences: list[list[int]], *, deployed: bool = False) -> list[list[float]]:
        return self.engine.logprobs(sequences, self.show(deployed=deployed))

    def complete(self, prompts: list[list[int]], sampling: Sampling, *, deployed: bool = False) -> list[list[int]]:
        return self.engine.complete(prompts, sampling, self.show(deployed=deployed))

    def show(self, *, deployed: bool) -> str | None:
        """Make the engine ready to answer as the policy or as the deployed model. Returns the name of the adapter for requests;
        None if requests need none. Every process of a run must call this, even one that makes no requests. Before other code uses
        the engine, call this with deployed=False."""
        self.settle()
        adapter = self.models.adapter(deployed=deployed)
        if self.engine.lora is None:
            self._replace_writers(deployed=deployed)
            return None
        if adapter is not None and adapter not in self._current:
            tensors: dict[str, Tensor] = self.models.tensors(adapter)
            self.engine.load_adapter(adapter, dict(self._padded(tensors.items())))
            self._current.add(adapter)
        return adapter

    def _replace_writers(self, *, deployed: bool) -> None:
        assert isinstance(self.models, PolicyWeights), "a LoRA is served by adapters alone"
        if self.models.parts and deployed != self._writers_are_deployed:
            self.engine.load(self._padded(self.models.writers(deployed=deployed)))
            self._writers_are_deployed = deployed

    def _padded(self, tensors: NamedTensors) -> NamedTensors:
        return tensors if self.engine.padding is None else self.engine.padding.weights(tensors)
