"""Makes the parameters of a module learn less from flagged rows, and the quarantine's adapter on it learn more from them.

The method `parameters` masks the gradient of parameters (selective gradient masking, SGTM 2025; GRAFT 2026). A module still
passes its whole cotangent backward, so the layers below get a cotangent from every row. The method `activations` also cuts the
backward edges of flagged rows through the linear modules of the layers; the edges through the quarantine's adapters stay (Cloud
et al., 2024, arXiv:2410.04332). Outputs are the same numbers in all cases, to the bit. Not covered: dropout inside a module with
parameters of its own. Shape letters: B rows, T positions.
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
    """Factors by which the gradients of the model and of the quarantine are multiplied at each position; all modules of a model
    share them."""

    def __init__(self, context: RoutingContext, *, strength: float = 1.0, forget: float = 2.0, method: str = "parameters"
                 ) -> None:
        """`strength`: the share of a flagged row's gradient that the model does not get. `forget`: the factor on that gradient in
        the quarantine, if `strength` is 1."""
        self.context, self.strength, self.forget, self.method = context, strength, forget, method
        self.scale = 1.0
        """Factor by which the quarantine's output is multiplied."""
        self.inside = False
        """Whether the present forward pass is run only to get the gradient of a surrounding module's parameters."""

    def retained(self) -> Tensor | None:
        """Factors by which the model's gradient is multiplied, (B, T), 1 if nothing is taken away; None if no position is
        flagged."""
        flagged_BT = self._flagged()
        return None if flagged_BT is None else 1 - self.strength * flagged_BT

    def quarantined(self) -> Tensor | None:
        """Factors by which the quarantine's gradient is multiplied, (B, T), 1 if a position is not flagged; None if no position
        is flagged."""
        flagged_BT = self._flagged()
        return None if flagged_BT is None else 1 + self.strength * (self.forget - 1) * flagged_BT

    def _flagged(self) -> Tensor | None:
        return self.context.now.flagged_BT if torch.is_grad_enabled() else None


@dataclass(frozen=True, eq=False)
class LabelSite:
    """The facts about a labelled module: its name, the gates, and its adapter in the quarantine (None if it has no adapter)."""

    name: str
    gates: Gates
    adapter: LabelAdapter | None = None
    cuts: bool = False
    """Whether flagged rows pass no cotangent backward through the module, with method=activations."""
    transposed: bool = False
    """Whether the module stores its weight as (N, D), as GPT-2's Conv1D does."""


class LabelledModule(nn.Module):
    """Mixin for the class of a module that is routed by labels; it must come before that class."""

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
        """The module's own output, with the gradient of its parameters multiplied by `retained`."""
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
    """Inside the block, if `on`, gradients do not reach the module's own parameters."""
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
    """`output`, with a gradient that is that of `output` plus `weights_BT` times that of `learned`."""
    if isinstance(output, tuple):
        return tuple(_combine(one, two, weights_BT, name) for one, two in zip(output, learned, strict=True))
    if not isinstance(output, Tensor) or not learned.requires_grad:
        return output
    return output + spread(weights_BT, learned, name) * (learned - learned.detach())


def spread(weights_BT: Tensor, like: Tensor, name: str) -> Tensor:
    """Reshape `weights_BT` so that it broadcasts to the shape of `like`: (B, T, ...), possibly with only the last positions,
    (B·T, ...), or (1, T, ...) if all rows share it. ModelError for any other shape."""
    rows, positions = weights_BT.shape
    if like.dim() >= 3 and like.shape[0] in (1, rows) and like.shape[1] <= positions:
        weights = weights_BT[:, positions - like.shape[1]:]
        return weights.reshape(*weights.shape, *[1] * (like.dim() - 2)).to(like.dtype)
    if like.dim() >= 2 and like.shape[0] == rows * positions:
        return weights_BT.reshape(-1, *[1] * (like.dim() - 1)).to(like.dtype)
    raise ModelError(f"{name} returns the shape {tuple(like.shape)} for {rows} rows of {positions} tokens, so its rows cannot be "
                     "told apart by label; set routing.mode=route or none")


def label_module(module: nn.Module, site: LabelSite) -> None:
    """Replace the class of the module, in place, by one that routes by labels."""
    module.__class__ = routed_class(type(module), LabelledModule)
    object.__setattr__(module, "label_site", site)


def unlabel_module(module: nn.Module) -> None:
    """Give the module its own class back."""
    module.__class__ = type(module).__mro__[2]
    object.__delattr__(module, "label_site")
