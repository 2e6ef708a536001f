"""The quarantine's optimizer: first moments per environment, one scalar second moment, a step bounded in the stream's units.

`ΔC_e = -rate · m̂_e / (sqrt(v̂) + eps)`, `v` the running mean of `Σ_e mean(ledger_e²)`: linear in the ledgers, so what an
environment caused stays separable. Not a counterfactual: `v`, the bound and clipping are shared by all environments.
"""

from __future__ import annotations

import torch
from torch import Tensor

from routed_rl.config import QuarantineConfig
from routed_rl.errors import CheckpointError
from routed_rl.routing.target import Target


class QuarantineOptimizer:
    """Turns each target's ledger (E, K, N) into its change `ΔC_e` (E, K, N)."""

    def __init__(self, config: QuarantineConfig, targets: list[Target]) -> None:
        self.config, self.targets, self.steps = config, targets, 0
        self.writers = len({id(target.module) for target in targets})
        """How many outputs are added to the stream: all experts of a mixture make one."""
        self.moments = {target.name: torch.zeros_like(target.parts) for target in targets}
        self.squares = {target.name: torch.zeros((), dtype=torch.float64) for target in targets}
        """What multiplied the last step's ledger in `ΔC_e`; the rest of `ΔC_e` is momentum."""

    def advance(self) -> None:
        """Count one step; bias correction uses this global count also for environments that were absent."""
        self.steps += 1

    def delta(self, target: Target, ledger_EKN: Tensor) -> Tensor:
        """`ΔC_e` for this step's (reduced, clipped) ledger; moments are updated in place. In one process."""
        self.update(target, ledger_EKN)
        return self.step(target) * self.bound(target, self.reach(target))

    def update(self, target: Target, ledger_EKN: Tensor) -> None:
        """Take a step's ledger into the moments."""
        beta1, beta2 = self.config.betas
        if self.moments[target.name].lerp_(ledger_EKN, 1 - beta1).numel():
            self.squares[target.name].mul_(beta2).add_((1 - beta2) * ledger_EKN.double().square().mean(dim=(1, 2)).sum().cpu())

    def rate(self, target: Target) -> float:
        """What a moment is multiplied by to make a step, before the bound."""
        beta1, beta2 = self.config.betas
        root = (self.squares[target.name] / (1 - beta2**self.steps)).sqrt().item() + self.config.eps
        return -self.config.learning_rate / (1 - beta1**self.steps) / root

    def step(self, target: Target) -> Tensor:
        """`ΔC_e` before the bound, from the moments as they are."""
        return self.moments[target.name] * self.rate(target)

    def fresh(self, target: Target, bound: float) -> float:
        """What this step's ledger is multiplied by to make its own part of `ΔC_e`, without the momentum of earlier ones."""
        return (1 - self.config.betas[0]) * self.rate(target) * bound

    def reach(self, target: Target) -> Tensor:
        """How far the step before the bound moves the stream: the sum of squares over the sampled tokens, and their number,
        (2,) float64. Over processes they add up."""
        effect = target.stream_effect(self.step(target).sum(0), target.tape.sample()).double()
        return torch.stack([effect.square().sum(), effect.new_tensor(len(effect))])

    def bound(self, target: Target, reach: Tensor) -> float:
        """Factor in [0, 1] that keeps the step's root-mean-square shift of the stream within `max_shift`."""
        if self.config.max_shift is None:
            return 1.0
        square, tokens = reach.tolist()
        if not tokens:
            return 0.0  # No token was seen, so nothing says how far the step would reach.
        shift = (square / tokens) ** 0.5 / target.unit
        # Of a mixture's experts a token gets `target.active`, whose shifts add up.
        allowed = self.config.max_shift / self.writers / target.active
        return min(1.0, allowed / shift) if shift > 0 else 1.0

    def state_dict(self) -> dict[str, Tensor]:
        """Moments by `<target>.moment`, `<target>.square`, and the step count."""
        return {name: value.clone() for name, value in self._tensors().items()} | {"steps": torch.tensor(self.steps)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The inverse of `state_dict`."""
        ours = self._tensors()
        for key, value in (ours | {"steps": torch.tensor(self.steps)}).items():
            if key not in state or state[key].shape != value.shape:
                raise CheckpointError(f"the quarantine's optimizer state has no {key} of shape {tuple(value.shape)}; "
                                      "resume with the same subspace and environments")
        for key, value in ours.items():
            value.copy_(state[key])
        self.steps = int(state["steps"])

    def _tensors(self) -> dict[str, Tensor]:
        return ({f"{name}.moment": value for name, value in self.moments.items()}
                | {f"{name}.square": value for name, value in self.squares.items()})
