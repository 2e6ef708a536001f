"""`RoutedLinear`: a writer that adds its quarantine and taps the cotangent. Not covered: dropout behind the writer.

A module is routed by swapping its class in place, so that parameter names, checkpoints and `from_pretrained` stay
what they were; nothing the quarantine needs is a parameter or a persistent buffer of the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

if TYPE_CHECKING:
    from routed_rl.routing.target import Target

GOLDEN = (5**0.5 - 1) / 2
"""Multiples of it modulo 1 spread evenly and meet no period."""


@dataclass
class RoutingContext:
    """What every tap of one model shares: whose rows are in the batch, and which tokens are real.

    Set it before the forward of a loss and leave it until the next one: gradient checkpointing runs the forward again
    inside the backward.
    """

    environment_ids_B: Tensor | None = None
    """Environment of each row, (B,) int64; None turns the taps off."""
    completions_B: Tensor | None = None
    """Which completion each row is, (B,) int64; None: rows are not told apart."""
    sample_S: Tensor | None = None
    """Flat indices of a sample of real tokens, (S,) int64."""
    ablated: bool = False
    """True: forwards leave the quarantine out."""
    contained: bool = True
    """The cotangent that goes on: contained (without its part in the subspace) or open."""
    control_draws: int = 0
    """Random bases to measure in this step's backward; 0 for none."""

    def set_batch(self, environment_ids_B: Tensor, mask_BT: Tensor, sample_tokens: int,
                  completions_B: Tensor | None = None) -> None:
        """Name the rows of the next loss: `environment_ids_B` (B,), `mask_BT` (B, T) is 1 at real tokens."""
        real = mask_BT.reshape(-1).nonzero().squeeze(1)
        stride = max(1, -(-real.shape[0] // sample_tokens))
        starts = torch.arange(0, real.shape[0], stride, device=real.device)
        # A plain stride meets the same positions in every row, and the first token's outliers far too often.
        jitter = (0.5 + GOLDEN * torch.arange(starts.shape[0], device=real.device, dtype=torch.float64)) % 1 * stride
        self.sample_S = real[(starts + jitter.long()).clamp(max=max(real.shape[0] - 1, 0))]
        self.environment_ids_B, self.completions_B = environment_ids_B, completions_B


class Tap(torch.autograd.Function):
    """Identity on `y + A C x` whose backward writes the ledger and decides what cotangent goes on.

    With `p = g A` the ledger gains `pᵀ x` per environment. Contained: the cotangent of `y` is `g - p Bᵀ` and `x`
    gets nothing through `C`, which is the gradient of `y = Wx - A BᵀWx + A Bᵀsg(Wx) + A C sg(x)`. Open: `y` keeps
    `g` and `x` gets `p C`.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, target: Target) -> Tensor:
        context = target.context
        ctx.target, ctx.contained, ctx.draws = target, context.contained, context.control_draws
        ctx.environment_ids_B, ctx.completions_B = context.environment_ids_B, context.completions_B
        ctx.sample_S, ctx.ablated = context.sample_S, context.ablated
        ctx.save_for_backward(x)
        ctx.mark_dirty(y)
        if not context.ablated:
            add_quarantine_(y, x, target)
        ctx.scale_S = None if target.gain_D is None else post_norm_scale(y, context.sample_S, target.norm_eps)
        return y

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (x,) = ctx.saved_tensors
        target: Target = ctx.target
        with torch.autocast(x.device.type, enabled=False):
            g = cotangents[0]
            p = g.to(target.write.dtype) @ target.write
            target.tape.record(p, g, x, ctx)
            if ctx.contained:
                flat = torch.addmm(g.flatten(0, -2), p.flatten(0, -2).to(g.dtype),
                                   target.read.mT.to(g.dtype), alpha=-1)
                return flat.view_as(g), None, None
            return g, (None if ctx.ablated else (p @ target.weight_part()).to(x.dtype)), None


def add_quarantine_(y: Tensor, x: Tensor, target: Target) -> Tensor:
    """Add `A (C x)` to `y` in place and return it."""
    with torch.autocast(x.device.type, enabled=False):
        coordinates = linear(x.to(y.dtype), target.weight_part().to(y.dtype), target.bias_part(y.dtype))
        y.view(-1, y.shape[-1]).addmm_(coordinates.flatten(0, -2), target.write.mT.to(y.dtype))
    return y


def post_norm_scale(y: Tensor, sample_S: Tensor | None, eps: float) -> Tensor | None:
    """What the norm behind a writer multiplies the sampled tokens by before its gain, (S,)."""
    if sample_S is None:
        return None
    return y.reshape(-1, y.shape[-1])[sample_S].float().square().mean(-1).add(eps).rsqrt()


class RoutedModule(nn.Module):
    """Mixed in before the module's own class; `routed_target` is set by `route_module`."""

    routed_target: Target

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        target, context = self.routed_target, self.routed_target.context
        if torch.is_grad_enabled() and context.environment_ids_B is not None:
            return Tap.apply(y, x, target)  # pyright: ignore[reportReturnType]
        if context.ablated:
            return y
        return add_quarantine_(y, x, target)

    def __reduce__(self) -> tuple[Any, ...]:
        return reduce_routed(self)


def reduce_routed(module: nn.Module) -> tuple[Any, ...]:
    """The class is made at run time, so pickle and deepcopy must be told how to make it again."""
    mixin, plain = type(module).__mro__[1:3]
    return _blank_routed, (plain, mixin), module.__dict__


def _blank_routed(plain: type[nn.Module], mixin: type[nn.Module]) -> nn.Module:
    cls = routed_class(plain, mixin)
    return cls.__new__(cls)


@cache
def routed_class(plain: type[nn.Module], mixin: type[nn.Module]) -> type[nn.Module]:
    """`RoutedLinear` for `nn.Linear`, and so on: the plain class with the mixin before it."""
    return type(f"Routed{plain.__name__}", (mixin, plain), {"__module__": __name__})


RoutedLinear = routed_class(nn.Linear, RoutedModule)


def route_module(module: nn.Module, target: Target | list[Target], mixin: type[nn.Module] = RoutedModule) -> None:
    """Swap the module's class in place; `unroute_module` is the inverse. `mixin` knows what kind of module it is."""
    assert "routed_target" not in vars(module), f"{type(module).__name__} is routed already"
    module.__class__ = routed_class(type(module), mixin)
    object.__setattr__(module, "routed_target", target)


def unroute_module(module: nn.Module) -> None:
    """Give the module its own class back."""
    module.__class__ = type(module).__mro__[2]
    object.__delattr__(module, "routed_target")
