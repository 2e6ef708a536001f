"""An engine that is a second copy of the model, for what does not need vLLM: it takes weights and answers. Not a test."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from routed_rl.rollout import Sampling
from routed_rl.rollout.parity import trainer_logprobs
from tests.builders import plain_copy


class CopyEngine:
    """Stock transformers; `loads` lists the names that each `load` was given."""

    def __init__(self, model) -> None:
        self.model, self.dtype, self.lora, self.padding = plain_copy(copy.deepcopy(model)), "float32", None, None
        self.loads: list[list[str]] = []

    def load(self, weights) -> None:
        state = dict(weights)
        self.loads.append(list(state))
        assert not self.model.load_state_dict(state, strict=False).unexpected_keys

    def load_adapter(self, tensors: dict[str, Tensor]) -> None:
        raise AssertionError("it has no adapters")

    def logprobs(self, sequences: list[list[int]], *, adapted: bool) -> list[list[float]]:
        assert not adapted
        return trainer_logprobs(self.model, sequences)

    def complete(self, prompts: list[list[int]], sampling: Sampling, *, adapted: bool) -> list[list[int]]:
        with torch.no_grad():
            return [[int(self.model(torch.tensor([ids])).logits[0, -1].argmax())] for ids in prompts]

    def close(self) -> None:
        pass
