"""Makes a writer a routed module: its forward pass adds the quarantine's output, and its backward pass goes through a tap. Not
covered: dropout behind the writer.

A module is routed by replacing its class in place, so parameter names, checkpoints and `from_pretrained` stay as they were. The
quarantine needs no parameter and no persistent buffer of the model.
"""

from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from routed_rl.routing.context import Record
from routed_rl.routing.target import Target


class Tap(torch.autograd.Function):
    """The tap behind a writer with output `y = W x`. Forward, it returns `y + A C x`. Backward, it gets the cotangent g of that
    sum, adds to the target's ledger, and passes a cotangent on to y and x.

    With `p = g A`, the products `pᵀ x` of an environment's rows are added to this environment's ledger. If the cotangent is
    contained, y gets `g - p Bᵀ`, and x gets nothing through C. That is the gradient of `Wx - A BᵀWx + A Bᵀsg(Wx) + A C sg(x)`,
    where sg stops gradients. If the cotangent is open, y gets g, and x gets `p C`. Rows that practise run without the quarantine,
    so their y gets g in both cases.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, target: Target) -> Tensor:
        ctx.target, ctx.record = target, target.context.now
        ctx.save_for_backward(x)
        ctx.mark_dirty(y)
        if target.adds(ctx.record):
            add_quarantine_(y, x, target, ctx.record)
        ctx.scale_S = target.pair.norm_scale(y, ctx.record.sample_S)
        return y

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (x,) = ctx.saved_tensors
        target, record, pair = ctx.target, ctx.record, ctx.target.pair
        with torch.autocast(x.device.type, enabled=False):
            g, rows = cotangents[0], record.environment_ids_B
            p = g.to(pair.write.dtype) @ pair.write
            routed = record.routed(p)
            if x.dim() == 2:  # some modules get the tokens of all rows, one row after another
                target.tape.record(*(each.unflatten(0, (len(rows), -1)) for each in (routed, g, x)), record, ctx.scale_S)
            else:
                target.tape.record(routed, g, x, record, ctx.scale_S)
            if record.contained:
                flat = torch.addmm(g.flatten(0, -2), routed.flatten(0, -2).to(g.dtype), pair.read.mT.to(g.dtype), alpha=-1)
                return flat.view_as(g), None, None
            return g, ((routed @ target.weight_part()).to(x.dtype) if target.adds(record) else None), None


def add_quarantine_(y: Tensor, x: Tensor, target: Target, record: Record) -> Tensor:
    """Add the quarantine's output `A (C x)` to the writer's output `y` in place, except in rows that practise; returns `y`. `x`
    is the writer's input."""
    with torch.autocast(x.device.type, enabled=False):
        coordinates = record.routed(linear(x.to(y.dtype), target.weight_part().to(y), target.bias_part(y)))
        y.view(-1, y.shape[-1]).addmm_(coordinates.flatten(0, -2), target.pair.write.mT.to(y))
    return y


def reduce_routed(self: Any) -> tuple[Any, ...]:
    """The `__reduce__` of a routed module: tells pickle and deepcopy how to make the module's class, which exists only at run
    time."""
    mixin, plain = type(self).__mro__[1:3]
    return _blank_routed, (plain, mixin), self.__dict__


class RoutedModule(nn.Module):
    """Mixin for the class of a routed module; it must come before that class. `route_module` sets `routed_target`."""

    routed_target: Target

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y = super().forward(x, *args, **kwargs)
        target, record = self.routed_target, self.routed_target.context.now
        if target.context.without_adapter:
            return y
        if torch.is_grad_enabled() and record.environment_ids_B is not None:
            if not y.requires_grad:  # nothing below is trained, so no cotangent would reach the tap
                y = y + y.new_zeros((), requires_grad=True)
            return Tap.apply(y, x, target)  # pyright: ignore[reportReturnType]
        return add_quarantine_(y, x, target, record) if target.adds(record) else y

    __reduce__ = reduce_routed


class RoutedUp(nn.Module):
    """Mixin for the class of the module that holds a LoRA's factor B; it must come before that class. The module then writes
    nothing inside the subspace, whatever B is, unless the record says that the LoRA runs unchanged (`Record.whole`)."""

    routed_target: Target

    def forward(self, x: Tensor) -> Tensor:
        target = self.routed_target
        if target.is_whole(target.context.now):
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            weight = cast(Tensor, self.weight)
            up_DR = target.pair.outside(weight)
        return linear(x, up_DR.to(weight.dtype))

    __reduce__ = reduce_routed


def _blank_routed(plain: type[nn.Module], mixin: type[nn.Module]) -> nn.Module:
    cls = routed_class(plain, mixin)
    return cls.__new__(cls)


@cache
def routed_class(plain: type[nn.Module], mixin: type[nn.Module]) -> type[nn.Module]:
    """Make the class of a routed module from the mixin and the plain class, for instance `RoutedLinear` for `nn.Linear`. The same
    arguments give the same class."""
    return type(f"Routed{plain.__name__}", (mixin, plain), {"__module__": __name__})


def route_module(module: nn.Module, target: Target | list[Target], mixin: type[nn.Module] = RoutedModule) -> None:
    """Route a module in place: its class is replaced by one that has `mixin` before the old class, and it gets the attribute
    `routed_target`. A mixture of experts has a list of targets and the mixin `RoutedExperts`. `unroute_module` is the inverse."""
    assert "routed_target" not in vars(module), f"{type(module).__name__} is routed already"
    module.__class__ = routed_class(type(module), mixin)
    object.__setattr__(module, "routed_target", target)


def unroute_module(module: nn.Module) -> None:
    """Give a routed module the class back that it had before `route_module`, and take its target away."""
    module.__class__ = type(module).__mro__[2]
    object.__delattr__(module, "routed_target")


def unroute(model: nn.Module) -> None:
    """Unroute every module of a model that is routed."""
    for module in model.modules():
        if "routed_target" in vars(module):
            unroute_module(module)
