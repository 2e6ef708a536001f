"""The adapters that an engine gets when a LoRA is trained: one for the policy and one for the deployed model, both on the base
model, whose weights the engine keeps. If processes hold shards of the factors, all processes must call the methods of
`PolicyAdapters` together. Letters of shapes: D stream width, K rank of a basis, N input width, R rank of the LoRA. Not covered:
mixtures of experts."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from routed_rl.rollout.parts import Part, named
from routed_rl.rollout.weights import DEPLOYED, POLICY, keys
from routed_rl.routing import Target
from routed_rl.routing.adapted import NAME, has_adapter
from routed_rl.routing.shards import whole


class PolicyAdapters:
    """The LoRA of a model and its quarantine. `parts` has the quarantine at each module; it is empty in mode `none`, which has no
    quarantine."""

    def __init__(self, model: nn.Module, parts: Sequence[Part | Target]) -> None:
        self.model, self.parts = model, named(parts)

    def policy(self) -> None:
        """Returns None, because the engine keeps the base model's weights."""

    def adapter(self, *, deployed: bool) -> str:
        return DEPLOYED if deployed and self.parts else POLICY

    @torch.no_grad()
    def tensors(self, adapter: str) -> dict[str, Tensor]:
        """The tensors of an adapter, "policy" or "deployed": `lora_A` (R + K, N) and `lora_B` (D, R + K) of each module. Each
        tensor joins a factor of the LoRA's retained change (in `lora_B` times the LoRA's scaling) and, for the policy only, a
        factor of the quarantine. Ranks differ between modules; vLLM pads them with zeros."""
        tensors: dict[str, Tensor] = {}
        for name, pieces in self._pieces(deployed=adapter == DEPLOYED):
            down, up = keys(name)
            tensors[down] = torch.cat([down_RN for _, down_RN in pieces])
            tensors[up] = torch.cat([up_DR for up_DR, _ in pieces], 1)
        return tensors

    def _pieces(self, *, deployed: bool) -> Iterator[tuple[str, list[tuple[Tensor, Tensor]]]]:
        """For each module, the pairs of factors (D, R) and (R, N) whose products add up to the module's change in the policy, or
        in the deployed model if `deployed` is true. This also holds in `observe`, where C is the change that the LoRA has learned
        inside the subspace."""
        for name, module in self.model.named_modules():
            pieces, part = [], self.parts.get(name)
            if has_adapter(module):
                up_DR, down_RN = factors(module)
                pieces.append((up_DR if part is None else part.retained(up_DR), down_RN))
            if part is not None and not deployed and (quarantine := part.factors())[1].numel():
                pieces.append(quarantine)
            if pieces:
                yield name, pieces


def factors(module: Any) -> tuple[Tensor, Tensor]:
    """The factors of the LoRA on a module: the up factor (D, R), with the scaling, and the down factor (R, N)."""
    return module.scaling[NAME] * whole(module.lora_B[NAME].weight), whole(module.lora_A[NAME].weight)
