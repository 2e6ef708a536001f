"""Measures the effect of each row of a step, which is one completion, in the step's own backward pass.

A step's `ΔC_e` is the sum of a fresh part and the momentum of earlier steps. The fresh part is linear in this step's gradient and
so in its rows. A row's effect is its share of the fresh part, along two directions that are fixed before the step: C itself, and
the persona axis at the mean input. Only these two numbers are kept for each row and target, not the row's ledger. Not covered:
momentum, and terms that are quadratic in a step. Shape letters: B rows of a micro-batch, R rows of a step, T tokens, K rank, N
inputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from routed_rl.routing.axes import Along, Axes
from routed_rl.routing.target import Target


@dataclass(frozen=True, eq=False)
class StepRows:
    """The effects of the rows of one step. Numbers are nan if there is nothing to compare with: no C yet (always in `erase`), or
    no μ yet."""

    completions_R: Tensor
    """Number of the completion in each row, int64."""
    environments_R: Tensor
    """Index of each row's environment, int64."""
    push_R: Tensor
    """First-order growth of |C| by the row's gradient. Summed over the rows of an environment it is the growth by the fresh part
    of that environment."""
    shift_R: Tensor
    """Persona shift along the named axis by the row's gradient, in units of the axis' scale; positive is towards the
    positive persona. In `erase` it is the shift by the step that was refused."""

    def with_none(self, completions_U: Tensor, environments_U: Tensor) -> "StepRows":
        """The same rows with further completions that have no gradient. Their push and shift are 0 if those of other rows are
        known."""
        none = torch.zeros(len(completions_U), dtype=self.push_R.dtype)
        push, shift = (torch.cat([values, none + 0 * values[:1].sum()]) for values in (self.push_R, self.shift_R))
        return StepRows(torch.cat([self.completions_R, completions_U.cpu()]),
                        torch.cat([self.environments_R, environments_U.cpu()]), push, shift)

    def sums(self, environment: int) -> dict[str, float]:
        """Sums over one environment's rows; 0 if it has no rows. Sums that are nan are left out. `own_shift_up` is the sum of the
        positive shifts, `own_push_square` and `own_shift_square` are the sums of squares."""
        mine = self.environments_R == environment
        push, shift = self.push_R[mine], self.shift_R[mine]
        found = {"own_push": push.sum(), "own_push_square": push.square().sum(), "own_shift": shift.sum(),
                 "own_shift_up": shift.clamp(min=0).sum(), "own_shift_square": shift.square().sum()}
        return {name: value.item() for name, value in found.items() if not value.isnan()}


class RowBook:
    """Collects the effects of one step's rows over all targets. Call `begin` before the step's first backward pass, `after` for
    each target, then `close`."""

    def __init__(self, targets: Sequence[Target], axes: Axes, axis: str | None) -> None:
        self.axis = axis or axes.names[0]
        place, shares = axes.names.index(self.axis), axes.shares(sorted({target.layer for target in targets}))
        along = {layer: axes.directions[layer][:, place].to(targets[0].pair.basis) * share / axes.scales[layer, place].item()
                 for layer, share in shares.items()}
        self.targets, self.axes_K = targets, dict[str, Tensor]()
        for target in targets:
            # A writer's effect stays in the stream, so it is read at the writer's own layer and at all later ones.
            reached = torch.stack([along[layer] for layer in shares if layer >= target.layer]).sum(0)
            self.axes_K[target.name] = target.pair.basis.mT @ reached
        self._total_R2: Tensor | None = None
        self._rows: list[tuple[Tensor, Tensor]] = []

    def begin(self) -> None:
        """Fix the two directions for the coming step."""
        for target in self.targets:
            target.tape.along = Along(target.coefficients, self.axes_K[target.name], target.tape.mean())

    def after(self, target: Target, factor_E: Tensor) -> None:
        """Add the rows of a target. `factor_E` multiplies an environment's ledger to give the fresh part of its step."""
        if not target.tape.rows:
            return
        environments_R = torch.cat([environments for _, environments, _ in target.tape.rows])
        found = torch.cat([values for *_, values in target.tape.rows]).double() * factor_E[environments_R].unsqueeze(1)
        self._total_R2 = found if self._total_R2 is None else self._total_R2 + found
        self._rows = [(completions, environments) for completions, environments, _ in target.tape.rows]

    def close(self, old_norm: float, *, first: bool) -> StepRows | None:
        """Return the rows of this step, or None if completions were not numbered, and empty the book. `old_norm`: |C| before the
        step; `first`: whether this is the first step, so that there is no μ."""
        if self._total_R2 is None:
            return None
        push, shift = self._total_R2.cpu().unbind(1)
        nothing = torch.full_like(push, torch.nan)
        completions, environments = (torch.cat(names).cpu() for names in zip(*self._rows, strict=True))
        found = StepRows(completions, environments, push / old_norm if old_norm > 0 else nothing, nothing if first else shift)
        self._total_R2, self._rows = None, []
        return found
