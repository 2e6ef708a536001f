"""The clamped loss of docs/concepts.md in plain models, for autograd to differentiate. Not a test itself."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from routed_rl.routing.target import Target
from tests.builders import module_of, plain_copy


def clamped_model(model: PreTrainedModel, targets: list[Target], *, contained: bool) -> tuple[PreTrainedModel, dict]:
    """A plain model with the clamped loss of docs/concepts.md in each writer, and its leaves C (K, N) by target's name.

    Contained: `y = Wx - A BᵀWx + A Bᵀ sg(Wx) + A C sg(x)`; open: `y = Wx + A C x`. Autograd does the rest.
    """
    plain = plain_copy(model)
    leaves = {}
    for target in targets:
        leaves[target.name] = target.coefficients.detach().clone().requires_grad_(True)
    for target in targets:
        module = module_of(plain, target)
        if target.expert is None:
            module.forward = clamped_forward(module, target, leaves[target.name], contained)
        elif target.expert == 0:
            experts = [one for one in targets if one.module is target.module]
            module.forward = clamped_experts(module, target, [leaves[one.name] for one in experts], contained)
    return plain, leaves


def clamped_experts(module: nn.Module, target: Target, leaves: list[Tensor], contained: bool) -> Callable[..., Tensor]:
    """The detach form of a whole mixture, every expert run on every token and weighted by 0 where it was not chosen."""
    A, B = target.pair.write, target.pair.read

    def forward(hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        y, routed = 0, 0
        for e, leaf in enumerate(leaves):
            weight = (top_k_weights * (top_k_index == e)).sum(-1, keepdim=True)
            gate, up = (hidden @ module.gate_up_proj[e].mT).chunk(2, -1)
            x = module.act_fn(gate) * up * weight
            y = y + x @ module.down_proj[e].mT
            routed = routed + (x.detach() if contained else x) @ leaf.mT @ A.mT
        return y - (y - y.detach()) @ B @ A.mT + routed if contained else y + routed

    return forward


def clamped_forward(module: nn.Module, target: Target, leaf: Tensor, contained: bool) -> Callable[[Tensor], Tensor]:
    A, B, plain = target.pair.write, target.pair.read, type(module).forward

    def forward(x: Tensor) -> Tensor:
        y = plain(module, x)
        seen = x.detach() if contained else x
        if module.bias is not None:
            seen = torch.cat([seen, torch.ones_like(seen[..., :1])], -1)
        routed = seen @ leaf.mT @ A.mT
        return y - (y - y.detach()) @ B @ A.mT + routed if contained else y + routed

    return forward
