"""Routes the experts of a mixture as writers: one target for each expert, and one tap for all of them. Not covered: biases,
expert parallelism.

The outputs of a layer's experts are summed, so the cotangent of the sum is split once, for all experts and for the gate that
weights them. If the cotangent is contained, neither the experts nor the gate's choice of experts learn to write into the
subspace. The input of an expert's target is the expert's hidden state times the gate's weight, at the tokens that chose this
expert. Shape letters: T tokens of all rows, D stream width, N an expert's inner width, K rank.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from routed_rl.routing.context import Record
from routed_rl.routing.linear import reduce_routed
from routed_rl.routing.target import Target


class ExpertsTap(torch.autograd.Function):
    """The tap behind a mixture. Forward, it adds the experts' quarantines and returns `y + A Σ_e C_e x_e`. Backward, it adds to
    the ledger of every expert's target and passes the cotangent on, contained or open; see `Tap`.

    e counts the experts: `tokens[e]` are the indices of the tokens that expert e got, and `inputs[e]` are its inputs x_e there.
    """

    @staticmethod
    def forward(ctx: Any, y_TD: Tensor, targets: list[Target], tokens: list[Tensor], *inputs: Tensor) -> Tensor:
        ctx.targets, ctx.tokens, ctx.record = targets, tokens, targets[0].context.now
        ctx.save_for_backward(*inputs)
        ctx.mark_dirty(y_TD)
        if not ctx.record.ablated:
            add_quarantines_(y_TD, targets, tokens, inputs, ctx.record)
        return y_TD

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        inputs, targets, record, pair = ctx.saved_tensors, ctx.targets, ctx.record, ctx.targets[0].pair
        with torch.autocast(inputs[0].device.type, enabled=False):
            g = cotangents[0]
            p = g.to(pair.write.dtype) @ pair.write
            batch = len(record.environment_ids_B)
            rows = torch.arange(batch, device=g.device).repeat_interleave(len(g) // batch)
            routed = record.routed_tokens(p, rows)
            sampled = torch.zeros(len(g), dtype=torch.bool, device=g.device)
            sampled[record.sample_S] = True
            for target, tokens, x in zip(targets, ctx.tokens, inputs, strict=True):
                target.tape.record_tokens(routed[tokens], g[tokens], x, rows[tokens], sampled[tokens], record)
            if record.contained:
                passed = torch.addmm(g, routed.to(g.dtype), pair.read.mT.to(g.dtype), alpha=-1)
                return passed, None, None, *(None for _ in inputs)
            through = [None if record.ablated else (routed[tokens] @ target.coefficients).to(x.dtype)
                       for target, tokens, x in zip(targets, ctx.tokens, inputs, strict=True)]
            return g, None, None, *through


def add_quarantines_(y_TD: Tensor, targets: list[Target], tokens: list[Tensor], inputs: tuple[Tensor, ...], record: Record
                     ) -> Tensor:
    """Add the quarantine's output `A C_e x_e` of every expert e to `y_TD` in place, at the tokens that e got, except in rows that
    practise. Returns `y_TD`. `tokens`, `inputs`: as in `ExpertsTap`."""
    with torch.autocast(y_TD.device.type, enabled=False):
        coordinates_TK = y_TD.new_zeros(len(y_TD), targets[0].rank)
        for target, chosen, x in zip(targets, tokens, inputs, strict=True):
            coordinates_TK.index_add_(0, chosen, linear(x.to(y_TD.dtype), target.coefficients.to(y_TD)))
        return y_TD.addmm_(record.routed_tokens(coordinates_TK), targets[0].pair.write.mT.to(y_TD))


def mix(experts: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
        ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Run the experts of the module `experts`. Returns the sum of their outputs, (T, D), and for each expert the indices of the
    tokens that it got and its inputs there. The other arguments are those of `RoutedExperts.forward`."""
    y_TD, tokens, inputs = torch.zeros_like(hidden_states), [], []
    for expert in range(len(experts.down_proj)):
        # Ordered by place first, as in the stock loop, so that products are the same to the bit.
        place, chosen = (top_k_index.mT == expert).nonzero(as_tuple=True)
        weight = top_k_weights[chosen, place, None]
        gate, up = linear(hidden_states[chosen], experts.gate_up_proj[expert]).chunk(2, dim=-1)
        hidden = experts.act_fn(gate) * up
        output = linear(hidden, experts.down_proj[expert]) * weight
        y_TD.index_add_(0, chosen, output.to(y_TD.dtype))
        tokens.append(chosen)
        inputs.append(hidden * weight)
    return y_TD, tokens, inputs


class RoutedExperts(nn.Module):
    """Mixin for the class of a mixture's experts; it must come before that class. It runs the experts one after another, as the
    stock `eager` implementation does."""

    routed_target: list[Target]
    """One target for each expert."""

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Maps hidden states (T, D), the experts that each token chose (T, k) and their weights (T, k) to the experts' output (T,
        D), which is added to the stream."""
        targets, record = self.routed_target, self.routed_target[0].context.now
        y_TD, tokens, inputs = mix(self, hidden_states, top_k_index, top_k_weights)
        if targets[0].context.without_adapter:
            return y_TD
        if torch.is_grad_enabled() and record.environment_ids_B is not None:
            if not y_TD.requires_grad:  # nothing below is trained, so no cotangent would reach the tap
                y_TD = y_TD + y_TD.new_zeros((), requires_grad=True)
            return ExpertsTap.apply(y_TD, targets, tokens, *inputs)  # pyright: ignore[reportReturnType]
        return y_TD if record.ablated else add_quarantines_(y_TD, targets, tokens, tuple(inputs), record)

    __reduce__ = reduce_routed
