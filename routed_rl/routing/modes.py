"""The table of routing modes: which cotangent goes on, and what happens after the model's optimizer has stepped.

A new mode is one function and one row here.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from routed_rl.routing.target import Target

AfterStep = Callable[[Target, Tensor, float | Tensor], None]
"""(target, ΔC_e (E, K, N), the weights' decay this step = rate · decay) -> None, in place.

The decay is (N,) where columns differ: trainers spare a bias, which is the last column."""


@dataclass(frozen=True)
class Mode:
    """One row of the table."""

    contained: bool
    after_step: AfterStep
    whole: bool = False
    """Of a writer with a LoRA: the policy is the module as it stands, with what its LoRA has learned inside the subspace."""


def reimpose(target: Target) -> None:
    """`W -= A (BᵀW - R)`. Adam does not commute with a projection: projected gradients alone let W drift inside."""
    target.take_out(target.inside())


@torch.no_grad()
def route_step(target: Target, delta_EKN: Tensor, decay: float | Tensor) -> None:
    target.parts += delta_EKN
    # One environment after another, so that every rank and every reload gets the same bits.
    target.coefficients.copy_(sum(target.parts, torch.zeros_like(target.coefficients)))
    reimpose(target)


@torch.no_grad()
def erase_step(target: Target, delta_EKN: Tensor, decay: float | Tensor) -> None:
    reimpose(target)


@torch.no_grad()
def observe_step(target: Target, delta_EKN: Tensor, decay: float | Tensor) -> None:
    target.parts += delta_EKN
    moved = target.inside()
    if target.frozen:  # The LoRA keeps what it has learned, and C tells what of it is inside.
        target.coefficients.copy_(moved)
        return
    target.coefficients.mul_(1 - decay).add_(moved)
    target.take_out(moved)


MODES = {
    "observe": Mode(contained=False, after_step=observe_step, whole=True),
    "route": Mode(contained=True, after_step=route_step),
    "erase": Mode(contained=True, after_step=erase_step),
}
"""By `routing.mode`; in mode `none` there is no router."""
