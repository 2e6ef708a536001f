"""The quarantine's optimizer: a function that computes the step of all targets, and a class that carries the state from step to
step.

The part of environment e changes by `ΔC_e = -rate_e · m̂_e / (sqrt(v̂) + eps)`, and the whole step is then shrunk if it shifts
the stream by more than a limit. m_e is the running mean of the environment's ledger, v is the running mean of `Σ_e
mean(ledger_e²)`, and the hats mark bias correction as in Adam. The step is linear in m_e, so the parts of environments stay
separable. A part is no counterfactual: all environments share v, the limit and the clip factor. The learning rate of a part,
before the limit has reduced it, is called raw. Shape letters: E environments, K rank, N inputs, S sampled tokens.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from routed_rl.config import QuarantineConfig
from routed_rl.errors import CheckpointError
from routed_rl.ranks import RANKS
from routed_rl.routing.target import Target


class Moments(NamedTuple):
    """The optimizer's moments of one target, which are carried from step to step. `first_EKN` is the running mean of the
    ledger."""

    first_EKN: Tensor
    second: Tensor
    """The running mean of `Σ_e mean(ledger_e²)`, which all environments share, (), float64, on the CPU."""


class Gradient(NamedTuple):
    """The numbers from which one target's step is computed."""

    ledger_EKN: Tensor
    inputs_SN: Tensor
    """The target's inputs at a sample of this step's tokens, on which the shift of the stream by the step is measured."""
    unit: float
    """The gap between the personas at the target's layer, which is the length in the stream that counts as a shift of 1."""
    limit: float
    """The largest shift of the stream that the step may make, as a root mean square over tokens, in units of `unit`; infinite if
    there is no limit."""


class Step(NamedTuple):
    """The change of one target's coefficients."""

    delta_EKN: Tensor
    """The change ΔC_e of each environment's part of the coefficients."""
    fresh_E: Tensor
    """For each environment, the factor by which the ledger of this very step enters ΔC_e. The rest of ΔC_e is momentum, which
    comes from the ledgers of earlier steps."""


def quarantine_steps(gradients: list[Gradient], moments: list[Moments], count: int, config: QuarantineConfig, rate_E: Tensor,
                     add_up: Callable[[list[Tensor]], None]) -> tuple[list[Step], list[Moments]]:
    """Return the `count`-th step (counted from 1) of all targets, and the targets' new moments. `gradients` and `moments` have
    one entry per target. `rate_E` has the raw rate of each environment's part. `add_up` sums tensors over the processes, in
    place.

    Bias correction uses `count` for every environment, also for one that was absent in some steps.
    """
    beta1, beta2 = config.betas
    moments = [Moments(first.lerp(ledger, 1 - beta1), second * beta2 + (1 - beta2) * _mean_square(ledger))
               for (first, second), (ledger, *_) in zip(moments, gradients, strict=True)]
    raw_E = -rate_E / (1 - beta1**count)
    rates = [raw_E.to(first) / ((second / (1 - beta2**count)).sqrt().item() + config.eps)
             for first, second in moments]
    free = [first * rate_E[:, None, None] for (first, _), rate_E in zip(moments, rates, strict=True)]
    reaches = [_reach(step, gradient.inputs_SN) for step, gradient in zip(free, gradients, strict=True)]
    add_up(reaches)
    bounds = [_bound(reach, gradient.unit, gradient.limit) for reach, gradient in zip(reaches, gradients, strict=True)]
    return [Step(step * bound, (1 - beta1) * rate_E * bound)
            for step, rate_E, bound in zip(free, rates, bounds, strict=True)], moments


def _mean_square(ledger_EKN: Tensor) -> Tensor | float:
    """`Σ_e mean(ledger_e²)`; 0 for a basis of rank 0, whose ledgers have no entries."""
    return ledger_EKN.double().square().mean(dim=(1, 2)).sum().cpu() if ledger_EKN.numel() else 0.0


def _reach(step_EKN: Tensor, inputs_SN: Tensor) -> Tensor:
    """Two numbers that say how far a step moves the stream: the sum of squared lengths of the movement over the sampled tokens,
    and the number of these tokens, (2,) float64."""
    effect = (inputs_SN.to(step_EKN.dtype) @ step_EKN.sum(0).mT).double()
    return torch.stack([effect.square().sum(), effect.new_tensor(len(effect))])


def _bound(reach: Tensor, unit: float, limit: float) -> float:
    """Return the factor in [0, 1] by which a step must be multiplied so that it shifts the stream by at most `limit`. `reach`:
    how far the step moves the stream, as `_reach` returns it, summed over the processes. `unit`, `limit`: as in `Gradient`. The
    factor is 0 if there is a limit and no token was sampled, because the shift is then unknown."""
    if limit == float("inf"):
        return 1.0
    square, tokens = reach.tolist()
    shift = (square / tokens) ** 0.5 / unit if tokens else float("inf")
    return min(1.0, limit / shift) if shift > 0 else 1.0


class QuarantineOptimizer:
    """Computes the step of every target from its ledger (E, K, N)."""

    def __init__(self, config: QuarantineConfig, targets: list[Target]) -> None:
        self.config, self.targets, self.steps = config, targets, 0
        self.writers = len({id(target.module) for target in targets})
        """Number of outputs that are added to the stream; the experts of a mixture count as one."""
        self.moments = {target.name: Moments(torch.zeros_like(target.parts), torch.zeros((), dtype=torch.float64))
                        for target in targets}

    def step(self, ledgers: list[Tensor], rate_E: Tensor) -> list[Step]:
        """Return the next step of all targets, and update the moments. `ledgers`: the ledger of each target, averaged over the
        processes and clipped. `rate_E`: the raw rate of each environment's part."""
        self.steps += 1
        gradients = [Gradient(ledger, target.tape.sample(), target.unit, self._limit(target))
                     for target, ledger in zip(self.targets, ledgers, strict=True)]
        steps, moments = quarantine_steps(gradients, list(self.moments.values()), self.steps, self.config, rate_E, RANKS.sum_)
        self.moments = dict(zip(self.moments, moments, strict=True))
        return steps

    def _limit(self, target: Target) -> float:
        """The largest shift that a step of this target may make: the setting `max_shift` divided equally among the writers, and
        in a mixture among the `target.active` experts that a token goes through, because their shifts add up."""
        return float("inf") if self.config.max_shift is None else self.config.max_shift / self.writers / target.active

    def state_dict(self) -> dict[str, Tensor]:
        """The moments, under `<target>.moment` and `<target>.square`, and the step count."""
        found = {"steps": torch.tensor(self.steps)}
        for name, (first, second) in self.moments.items():
            found |= {f"{name}.moment": first, f"{name}.square": second}
        return found

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned. CheckpointError if the state has another number of environments or other shapes."""
        for key, value in self.state_dict().items():
            if key not in state or state[key].shape != value.shape:
                raise CheckpointError(f"the quarantine's optimizer state has no {key} of shape {tuple(value.shape)}; "
                                      "resume with the same subspace and environments")
        for name, (first, second) in self.moments.items():
            self.moments[name] = Moments(state[f"{name}.moment"].to(first), state[f"{name}.square"].to(second))
        self.steps = int(state["steps"])
