"""An engine that is a second copy of the model, for what does not need vLLM: it takes weights and adapters, and answers. Not a
test."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from routed_rl.model.base import base_weights
from routed_rl.rollout import Lora, Sampling
from routed_rl.rollout.parity import trainer_logprobs


class CopyEngine:
    """Stock transformers, with an adapter merged for as long as it is asked for. `loads` lists the names that each `load` was
    given, `adapters` the names of those that were loaded."""

    def __init__(self, model, lora: Lora | None = None) -> None:
        self.model = type(model)(copy.deepcopy(model.config)).to(next(model.parameters()).dtype).eval()
        self.model.load_state_dict({name: value.clone() for name, value in base_weights(model).items()})
        self.dtype, self.lora, self.padding = "float32", lora, None
        self.loads: list[list[str]] = []
        self.adapters: list[str] = []
        self._held: dict[str, dict[str, Tensor]] = {}

    def load(self, weights) -> None:
        state = dict(weights)
        self.loads.append(list(state))
        assert not self.model.load_state_dict(state, strict=False).unexpected_keys

    def load_adapter(self, adapter: str, tensors: dict[str, Tensor]) -> None:
        assert self.lora is not None, "it has no adapters"
        assert all(min(value.shape) <= self.lora.rank for value in tensors.values())
        self.adapters.append(adapter)
        self._held[adapter] = {name: value.clone() for name, value in tensors.items()}

    def _asked(self, adapter: str | None):
        """The model with the adapter."""
        merged = copy.deepcopy(self.model)
        with torch.no_grad():
            for name, up in self._held[adapter].items() if adapter else ():
                if ".lora_B." in name:
                    module = merged.get_submodule(name.removeprefix("base_model.model.").removesuffix(".lora_B.weight"))
                    module.weight.add_(up @ self._held[adapter][name.replace(".lora_B.", ".lora_A.")])
        return merged

    def logprobs(self, sequences: list[list[int]], adapter: str | None) -> list[list[float]]:
        return trainer_logprobs(self._asked(adapter), sequences)

    def complete(self, prompts: list[list[int]], sampling: Sampling, adapter: str | None) -> list[list[int]]:
        model = self._asked(adapter)
        with torch.no_grad():
            return [[int(model(torch.tensor([ids])).logits[0, -1].argmax())] for ids in prompts]

    def sleep(self) -> None:
        pass

    def wake(self) -> None:
        pass

    def close(self) -> None:
        pass
