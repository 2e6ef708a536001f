"""Makes the parameters of a module learn less from flagged positions, and the quarantine's adapter on the module learn more from
them.

The method `parameters` masks the gradient of parameters (selective gradient masking, SGTM 2025; GRAFT 2026). A module still
passes its whole cotangent backward, so the layers below get a cotangent from every row. The method `activations` also stops the
cotangent of flagged positions from passing backward through the linear modules of the layers; it still passes through the
quarantine's adapters (Cloud et al., 2024, arXiv:2410.04332). Outputs are the same numbers in all cases, to the bit. Not covered:
dropout inside a module with parameters of its own. Shape letters: B rows, T positions.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from routed_rl.errors import ModelError
from routed_rl.routing.context import RoutingContext
from routed_rl.routing.labels.adapter import LabelAdapter
from routed_rl.routing.linear import reduce_routed, routed_class


class Gates:
    """The factors by which the gradients of the model and of the quarantine are multiplied at each position. All modules of a
    model share one object."""

    def __init__(self, context: RoutingContext, *, strength: float = 1.0, forget: float = 2.0, method: str = "parameters"
                 ) -> None:
        """`strength`: the share of the gradient of flagged positions that the model does not get. `forget`: the factor by which
        the quarantine's gradient of flagged positions is multiplied if `strength` is 1. `method`: `parameters` or `activations`,
        see the module."""
        self.context, self.strength, self.forget, self.method = context, strength, forget, method
        self.scale = 1.0
        """The factor by which the quarantine's output is multiplied; 1 in the policy."""
        self.inside = False
        """Whether a surrounding module is repeating its forward pass only for the gradient of its own parameters. The modules
        inside it then learn nothing from the pass."""

    def retained(self) -> Tensor | None:
        """Return the factors (B, T) by which the model's gradient is multiplied: `1 - strength` at flagged positions and 1
        elsewhere. None if no position is flagged or gradients are off."""
        flagged_BT = self._flagged()
        return None if flagged_BT is None else 1 - self.strength * flagged_BT

    def quarantined(self) -> Tensor | None:
        """Return the factors (B, T) by which the quarantine's gradient is multiplied: `1 + strength (forget - 1)` at flagged
        positions and 1 elsewhere. None if no position is flagged or gradients are off."""
        flagged_BT = self._flagged()
        return None if flagged_BT is None else 1 + self.strength * (self.forget - 1) * flagged_BT

    def _flagged(self) -> Tensor | None:
        return self.context.now.flagged_BT if torch.is_grad_enabled() else None


@dataclass(frozen=True, eq=False)
class LabelSite:
    """Everything that label routing keeps about one module: its name, the model's gates, and its adapter in the quarantine (None
    if the quarantine has no adapter there)."""

    name: str
    gates: Gates
    adapter: LabelAdapter | None = None
    cuts: bool = False
    """Whether the module stops the cotangent of flagged positions from passing backward if `Gates.method` is `activations`."""
    transposed: bool = False
    """Whether the module stores its weight as (inputs, outputs), as GPT-2's Conv1D does."""


class LabelledModule(nn.Module):
    """Mixin for the class of a module that is routed by labels: labels scale the gradient of the module's parameters, and the
    quarantine's output is added to the module's. Among the base classes it must stand before the module's own class."""

    label_site: LabelSite

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        site = self.label_site
        gates = site.gates
        output = self._learning(super().forward, gates, args, kwargs)
        if site.adapter is None or gates.context.now.ablated:
            return output
        weights_BT = gates.quarantined()
        weights = None if weights_BT is None or gates.inside else spread(weights_BT, output, site.name)
        return site.adapter.add(output, args[0], gates.scale, weights, learns=not gates.inside)

    def _learning(self, run: Callable[..., Any], gates: Gates, args: Any, kwargs: Any) -> Any:
        """Return the module's own output, computed in such a way that the gradient of the module's parameters is multiplied by
        `gates.retained()`. `run`: the module's plain forward."""
        weights_BT = None if gates.inside else gates.retained()
        cuts = gates.method == "activations" and self.label_site.cuts and weights_BT is not None
        if not cuts and not any(each.requires_grad for each in self._parameters.values() if each is not None):
            return run(*args, **kwargs)
        if gates.inside or weights_BT is None:
            with _detached(self, gates.inside):
                return run(*args, **kwargs)
        if cuts:
            output = run(*args, **kwargs)
            return _combine(_detach(output), output, weights_BT, self.label_site.name)
        with _detached(self, True):
            output = run(*args, **kwargs)
        gates.inside = True
        try:
            learned = run(*map(_detach, args), **{key: _detach(value) for key, value in kwargs.items()})
        finally:
            gates.inside = False
        return _combine(output, learned, weights_BT, self.label_site.name)

    __reduce__ = reduce_routed


@contextmanager
def _detached(module: nn.Module, on: bool) -> Iterator[None]:
    """Inside the block, if `on`, gradients do not reach the module's own parameters. Those of its submodules are not affected."""
    own = vars(module)["_parameters"]
    if on:
        module.__dict__["_parameters"] = {name: None if value is None else value.detach() for name, value in own.items()}
    try:
        yield
    finally:
        module.__dict__["_parameters"] = own


def _detach(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, (tuple, list)):
        return type(value)(map(_detach, value))
    return value


def _combine(output: Any, learned: Any, weights_BT: Tensor, name: str) -> Any:
    """Return the values of `output`, with a gradient that is the sum of the gradient of `output` and `weights_BT` times the
    gradient of `learned`. Both are tensors, or tuples of them; `name`: the module, for messages."""
    if isinstance(output, tuple):
        return tuple(_combine(one, two, weights_BT, name) for one, two in zip(output, learned, strict=True))
    if not isinstance(output, Tensor) or not learned.requires_grad:
        return output
    return output + spread(weights_BT, learned, name) * (learned - learned.detach())


def spread(weights_BT: Tensor, like: Tensor, name: str) -> Tensor:
    """Reshape `weights_BT` so that it broadcasts to the shape of `like`, which is the output of the module `name`. This shape
    must be (B, T, ...), where T may be only the last positions, or (B·T, ...), or (1, T, ...) if all rows share the output.
    ModelError for any other shape."""
    rows, positions = weights_BT.shape
    if like.dim() >= 3 and like.shape[0] in (1, rows) and like.shape[1] <= positions:
        weights = weights_BT[:, positions - like.shape[1]:]
        return weights.reshape(*weights.shape, *[1] * (like.dim() - 2)).to(like.dtype)
    if like.dim() >= 2 and like.shape[0] == rows * positions:
        return weights_BT.reshape(-1, *[1] * (like.dim() - 1)).to(like.dtype)
    raise ModelError(f"{name} returns the shape {tuple(like.shape)} for {rows} rows of {positions} tokens, so its rows cannot be "
                     "told apart by label; set routing.mode=route or none")


def label_module(module: nn.Module, site: LabelSite) -> None:
    """Replace the class of the module in place by one that has `LabelledModule` before the old class, and set its
    `label_site`."""
    module.__class__ = routed_class(type(module), LabelledModule)
    object.__setattr__(module, "label_site", site)


def unlabel_module(module: nn.Module) -> None:
    """Give the module the class back that it had before `label_module`, and take its `label_site` away."""
    module.__class__ = type(module).__mro__[2]
    object.__delattr__(module, "label_site")
