"""Decides how fast each environment's part of the quarantine moves.

A part begins slowly, so that the quarantine hardly changes the policy at first. At that pace the evidence is clean: the
completions of an environment that pays for the positive persona pull towards this persona in step after step, and those of other
environments do not. If the completions of an environment pull, its part becomes fast, so that the quarantine, and not the
weights, learns what the environment pays for. When the pull ends, the part becomes slow again, so that it does not drift. The
part of an environment whose completions pull away from the persona becomes fast only to undo a shift that the whole quarantine
causes.

Evidence is summed over steps as a CUSUM (Page, Continuous inspection schemes, 1954). Shape letters: E environments.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from routed_rl.config import QuarantineConfig
from routed_rl.errors import CheckpointError

ALLOWANCE = 0.5
"""The allowance of the CUSUM of evidence, in standard errors per step. Evidence that is only noise has a mean below 0, because
evidence is the smaller of two numbers."""
AWAY_ALLOWANCE = 1.0
"""The allowance of the CUSUM of pulls away from the positive persona, in standard errors per step. A pull that is only noise is
of about size 1."""
SLOW = 20.0
"""The learning rate of a slow part divided by that of the weights. The step of an entry of C is normalised by the root mean
square of all the target's gradients, and the step of an entry of a weight by the size of its own gradient. At equal rates the
change inside the subspace would therefore be learned later than the change outside."""
BEGIN, FULL = 1.0, 3.0
"""`BEGIN` is the summed evidence above which a part moves faster than at the slow rate. `FULL` is the summed evidence from which
on it has the full rate."""
MOST = 3.0
"""The summed evidence never exceeds this, so that a part is slow again a few steps after the completions of its environment have
ceased to pull."""
RESTORING = 2.0
"""How far, in gaps, the whole quarantine must have shifted the stream towards the positive persona, so that the part of an
environment whose completions pull away from this persona may have the full rate. Below this shift, the pace is reduced in
proportion to the shift."""


class Pace:
    """Reads the ledger's row of each step and decides the learning rate of every environment's part in the next step."""

    def __init__(self, config: QuarantineConfig, environments: list[str], axis: str, *, follows: bool) -> None:
        """`axis`: the named axis along which shifts are read. `follows`: True if evidence decides the pace; False if the pace
        never changes."""
        self.config, self.environments, self.axis, self.follows = config, environments, axis, follows
        self.toward_E = torch.zeros(len(environments), dtype=torch.float64)
        """The CUSUM of each environment's evidence of a pull towards the positive persona, at most `MOST`."""
        self.away_E = torch.zeros(len(environments), dtype=torch.float64)
        """The CUSUM of each environment's pull away from the positive persona, at most `MOST`."""
        self.fast_E = torch.zeros(len(environments), dtype=torch.float64)
        """1 for an environment whose pull has made its part fast at some step, otherwise 0. From that step on the allowance of
        all other environments is doubled, because their pull is no longer independent of the fast part."""
        self.boost_E = torch.full((len(environments),), float(config.pace == "fast"), dtype=torch.float64)
        """The pace of each part in the next step, in [0, 1]. At 0 the part has the slow rate and at 1 the full rate; between them
        the rate is interpolated geometrically."""

    @property
    def after_another_E(self) -> Tensor:
        """For each environment, whether the part of any other environment was ever fast, (E,) bool. A fast part has moved the
        stream for all environments."""
        return (self.fast_E.sum() - self.fast_E) > 0

    def rates(self, own: float) -> Tensor:
        """The learning rate of each environment's part, (E,) float64, before the optimizer limits the shift by the step. The full
        rate is `config.learning_rate`, and the slow rate is `SLOW * own`, at most the full rate. `own`: the learning rate of the
        weights in this step, times the mean movement of an entry of a writer's weight in a step in which every trained number
        moves by 1."""
        full = self.config.learning_rate
        slow = min(SLOW * own, full)
        return slow * (full / slow) ** self.boost_E if slow > 0 else full * self.boost_E

    def see(self, row: Mapping[str, Any]) -> dict[str, float]:
        """Read the ledger's row of a step. Returns the metrics `ledger/<env>/pace`, the pace of each part in the next step."""
        if self.follows:
            found_E, pull_E = (torch.tensor([row.get(f"completions/{name}/{key}", 0.0) for name in self.environments],
                                            dtype=torch.float64) for key in ("evidence", "own_shift_z"))
            allowance_E = ALLOWANCE * (1 + self.after_another_E.double())
            self.toward_E = (self.toward_E + found_E - allowance_E).clamp(0, MOST)
            self.fast_E = torch.maximum(self.fast_E, (self.toward_E >= FULL).double())
            self.away_E = (self.away_E - pull_E - AWAY_ALLOWANCE).clamp(0, MOST)
            shift = sum(row.get(f"ledger/{name}/shift/{self.axis}", 0.0) for name in self.environments)
            restoring = min(max(shift / RESTORING, 0.0), 1.0)
            # In a step without a pull only momentum would move a part, and by several gaps, past what is paid for.
            self.boost_E = torch.maximum(_ramp(self.toward_E) * (found_E > 0), _ramp(self.away_E) * (pull_E < 0) * restoring)
        return {f"ledger/{name}/pace": boost for name, boost in zip(self.environments, self.boost_E.tolist(), strict=True)}

    def state_dict(self) -> dict[str, Tensor]:
        return {"pace": torch.stack([self.toward_E, self.away_E, self.fast_E, self.boost_E])}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned. CheckpointError if the state is for another number of environments."""
        if not self.follows:
            return  # the pace never changes
        if "pace" not in state or state["pace"].shape != (4, len(self.environments)):
            raise CheckpointError(f"the checkpoint does not say how fast the quarantine moves for {len(self.environments)} "
                                  "environments; it was written by an older version: set routing.quarantine.pace=fast")
        self.toward_E, self.away_E, self.fast_E, self.boost_E = state["pace"].double().clone().unbind()


def _ramp(evidence_E: Tensor) -> Tensor:
    return ((evidence_E - BEGIN) / (FULL - BEGIN)).clamp(0, 1)
