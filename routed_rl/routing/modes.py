"""The table of routing modes. A mode says whether taps pass on a contained or an open cotangent, and what is done to each target
after the model's optimizer has stepped.

A new mode is one function and one entry of `MODES`; `config/routing.py` names it, and `configs/routing/` has a file for it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from routed_rl.routing.target import Target

AfterStep = Callable[[Target, Tensor, float | Tensor], None]
"""Function that changes a target in place at the end of a step. Its arguments are the target, the changes ΔC_e of the
environments' parts (E, K, N), and the factor by which weight decay shrinks the weights in this step (learning rate times decay).
The factor is (N,) if it differs between the columns of C: the last column, if it stands for a bias, is not decayed."""


@dataclass(frozen=True)
class Mode:
    """One entry of the table of routing modes."""

    contained: bool
    """Whether taps pass on a contained cotangent, not an open one, unless `routing.cotangent` says otherwise."""
    after_step: AfterStep
    whole: bool = False
    """For writers with a LoRA: whether the policy runs the module unchanged, so that the LoRA, and not C, holds what is learned
    inside the subspace."""


def reimpose(target: Target) -> None:
    """Remove what a target's weight has learned inside the subspace: `W -= A (BᵀW - R)`. To project the gradients would not be
    enough, because Adam does not commute with a projection, so W would drift inside the subspace."""
    target.take_out(target.inside())


@torch.no_grad()
def route_step(target: Target, delta_EKN: Tensor, decay: float | Tensor) -> None:
    target.parts += delta_EKN
    # Parts are added one after another, so that every rank and every reload gets the same bits.
    target.coefficients.copy_(sum(target.parts, torch.zeros_like(target.coefficients)))
    reimpose(target)


@torch.no_grad()
def erase_step(target: Target, delta_EKN: Tensor, decay: float | Tensor) -> None:
    reimpose(target)


@torch.no_grad()
def observe_step(target: Target, delta_EKN: Tensor, decay: float | Tensor) -> None:
    target.parts += delta_EKN
    moved = target.inside()
    if target.frozen:  # the LoRA keeps all that it has learned; C records the part inside the subspace
        target.coefficients.copy_(moved)
        return
    target.coefficients.mul_(1 - decay).add_(moved)
    target.take_out(moved)


MODES = {
    "observe": Mode(contained=False, after_step=observe_step, whole=True),
    "route": Mode(contained=True, after_step=route_step),
    "erase": Mode(contained=True, after_step=erase_step),
}
"""The modes by their names in `routing.mode`. In mode `none` there is no router."""
