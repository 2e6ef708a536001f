"""Measures, in the backward passes of a step, the effect of each row of the step. A row is one completion.

The change ΔC_e of an environment's part in a step is the sum of a fresh change, which comes from the gradient of this step, and
of momentum, which comes from earlier steps. The fresh change is linear in the gradient, so it is a sum over the step's rows. The
effect of a row is its term of this sum, measured along two directions that are fixed before the step: C itself, and the persona
axis at the mean input. Only these two numbers are kept for each row and target, not the row's ledger. Not covered: momentum, and
terms that are quadratic in a step. Shape letters: B rows of a micro-batch, R rows of a step, T tokens, K rank, N inputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from routed_rl.routing.axes import Along, Axes
from routed_rl.routing.target import Target


@dataclass(frozen=True, eq=False)
class StepRows:
    """The effects of the rows of one step, one entry per row: the push and the shift by the row's fresh change, which is the
    change of C that the row's gradient causes in this step, without momentum from earlier steps. Pushes are nan while C is 0
    (always in mode `erase`), and shifts are nan in the first step, which has no mean input μ yet."""

    completions_R: Tensor
    """The number by which the trainer knows the completion in each row, int64."""
    environments_R: Tensor
    """Index of each row's environment, int64."""
    push_R: Tensor
    """The growth of |C| by the row's fresh change, to first order. The sum over the rows of an environment is the growth by the
    change that all these rows' gradients cause."""
    shift_R: Tensor
    """The shift of the stream along the named axis by the row's fresh change, in units of the axis' scale; positive is towards
    the positive persona. In mode `erase`, which makes no step of the quarantine, it is the shift that the step would have
    made."""

    def with_none(self, completions_U: Tensor, environments_U: Tensor) -> "StepRows":
        """Return a copy with one more row for each of U completions that have no gradient. `completions_U`, `environments_U`: the
        number of each of these completions and the index of its environment. Their push and shift are 0, or nan if the first
        row's push or shift is nan."""
        none = torch.zeros(len(completions_U), dtype=self.push_R.dtype)
        push, shift = (torch.cat([values, none + 0 * values[:1].sum()]) for values in (self.push_R, self.shift_R))
        return StepRows(torch.cat([self.completions_R, completions_U.cpu()]),
                        torch.cat([self.environments_R, environments_U.cpu()]), push, shift)

    def sums(self, environment: int) -> dict[str, float]:
        """Return sums over the rows of the environment with this index; each is 0 if there are no such rows. `own_push` and
        `own_shift` are the sums of pushes and of shifts, `own_push_square` and `own_shift_square` the sums of their squares, and
        `own_shift_up` is the sum of the positive shifts. Sums that are nan are left out."""
        mine = self.environments_R == environment
        push, shift = self.push_R[mine], self.shift_R[mine]
        found = {"own_push": push.sum(), "own_push_square": push.square().sum(), "own_shift": shift.sum(),
                 "own_shift_up": shift.clamp(min=0).sum(), "own_shift_square": shift.square().sum()}
        return {name: value.item() for name, value in found.items() if not value.isnan()}


class RowBook:
    """Sums the effects of one step's rows over all targets. Call `begin` before the step's first backward pass, `after` for each
    target once its step has been computed, and `close` at the end."""

    def __init__(self, targets: Sequence[Target], axes: Axes, axis: str | None) -> None:
        self.axis = axis or axes.names[0]
        place, layers = axes.names.index(self.axis), sorted({target.place for target in targets})
        along = {layer: axes.directions[layer][:, place].to(targets[0].pair.basis) * share / axes.scales[layer, place].item()
                 for layer, share in axes.shares(layers, place).items()}
        self.targets, self.axes_K = targets, dict[str, Tensor]()
        for target in targets:
            # A writer's effect stays in the stream, so it is read at the writer's own place and at all later ones.
            reached = torch.stack([along[layer] for layer in layers if layer >= target.place]).sum(0)
            self.axes_K[target.name] = target.pair.basis.mT @ reached
        self._total_R2: Tensor | None = None
        self._rows: list[tuple[Tensor, Tensor]] = []

    def begin(self) -> None:
        """Set the two directions of every target along which its tape measures the rows of the coming step."""
        for target in self.targets:
            target.tape.along = Along(target.coefficients, self.axes_K[target.name], target.tape.mean())

    def after(self, target: Target, factor_E: Tensor) -> None:
        """Add the effects that the rows have through one target. `factor_E`: for each environment, the factor that turns a row's
        ledger into the change of C that the row's gradient causes in this step."""
        if not target.tape.rows:
            return
        environments_R = torch.cat([environments for _, environments, _ in target.tape.rows])
        found = torch.cat([values for *_, values in target.tape.rows]).double() * factor_E[environments_R].unsqueeze(1)
        self._total_R2 = found if self._total_R2 is None else self._total_R2 + found
        self._rows = [(completions, environments) for completions, environments, _ in target.tape.rows]

    def close(self, old_norm: float, *, first: bool) -> StepRows | None:
        """Return the effects of this step's rows, and empty the book. Returns None if `Record.completions_B` was None.
        `old_norm`: |C| before the step. `first`: whether this is the run's first step, in which there is no mean input μ yet."""
        if self._total_R2 is None:
            return None
        push, shift = self._total_R2.cpu().unbind(1)
        nothing = torch.full_like(push, torch.nan)
        completions, environments = (torch.cat(names).cpu() for names in zip(*self._rows, strict=True))
        found = StepRows(completions, environments, push / old_norm if old_norm > 0 else nothing, nothing if first else shift)
        self._total_R2, self._rows = None, []
        return found
