"""Decides how fast each environment's part of the quarantine moves.

A part begins slowly, so that the policy is about what it would be without routing. At that pace the evidence is clean: the
completions of an environment that pays for the persona pull towards it in step after step, and those of other environments do
not. If completions pull, the part becomes fast, so that the quarantine, and not the weights, learns what the environment pays
for. When the pull ends, the part becomes slow again, so that it does not drift. A part that pulls away from the persona becomes
fast only to undo what other parts have pushed.

Evidence is summed over steps as a CUSUM (Page, Continuous inspection schemes, 1954). Shape letters: E environments.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from routed_rl.config import QuarantineConfig
from routed_rl.errors import CheckpointError

ALLOWANCE = 0.5
"""Allowance of the CUSUM, in standard errors per step. Evidence from noise alone has a mean below 0, because it is the smaller of
two numbers."""
AWAY_ALLOWANCE = 1.0
"""The allowance for a pull away from the positive persona, in standard errors per step. Noise alone makes a pull of about size
1."""
SLOW = 20.0
"""The rate of a slow part divided by that of the weights. In a step, an entry of C moves by the mean size of its target's
gradient, and an entry of a weight by the size of its own gradient. At equal rates the change inside the subspace would therefore
be learned later than the change outside."""
BEGIN, FULL = 1.0, 3.0
"""Summed evidence at which a part begins to become faster, and at which it has the full rate."""
MOST = 3.0
"""The summed evidence never exceeds this, so that a part is slow again a few steps after its pull has ended."""
RESTORING = 2.0
"""If the whole quarantine has shifted the stream by this many gaps towards the positive persona, a part that pulls away from it
has the full rate."""


class Pace:
    """Reads the ledger's row of each step and decides the raw rate of every part in the next step."""

    def __init__(self, config: QuarantineConfig, environments: list[str], axis: str, *, follows: bool) -> None:
        """`axis`: the named axis along which shifts are read. `follows`: whether parts become faster by evidence."""
        self.config, self.environments, self.axis, self.follows = config, environments, axis, follows
        self.toward_E = torch.zeros(len(environments), dtype=torch.float64)
        """Summed evidence of a pull towards the positive persona."""
        self.away_E = torch.zeros(len(environments), dtype=torch.float64)
        """Summed evidence of a pull away from the positive persona."""
        self.fast_E = torch.zeros(len(environments), dtype=torch.float64)
        """1 for an environment whose pull has made its part fast at some step. From then on the allowance of all others is
        doubled, because their pull is no longer independent of that part."""
        self.boost_E = torch.full((len(environments),), float(config.pace == "fast"), dtype=torch.float64)
        """Pace of each part. 0: slow, 1: `config.learning_rate`; between them the rate is interpolated geometrically."""

    @property
    def after_another_E(self) -> Tensor:
        """(E,) bool: whether the part of another environment was ever fast. Such a part has moved the stream for all
        environments."""
        return (self.fast_E.sum() - self.fast_E) > 0

    def rates(self, own: float) -> Tensor:
        """The raw rate of each part, (E,) float64. `own`: the learning rate of the weights in this step."""
        full = self.config.learning_rate
        slow = min(SLOW * own, full)
        return slow * (full / slow) ** self.boost_E if slow > 0 else full * self.boost_E

    def see(self, row: Mapping[str, Any]) -> dict[str, float]:
        """Read the row of a step. Returns the metrics on each part's pace in the next step."""
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
        """The inverse of `state_dict`. CheckpointError if the state is of other environments."""
        if not self.follows:
            return  # the pace never changes
        if "pace" not in state or state["pace"].shape != (4, len(self.environments)):
            raise CheckpointError(f"the checkpoint does not say how fast the quarantine moves for {len(self.environments)} "
                                  "environments; it was written by an older version: set routing.quarantine.pace=fast")
        self.toward_E, self.away_E, self.fast_E, self.boost_E = state["pace"].double().clone().unbind()


def _ramp(evidence_E: Tensor) -> Tensor:
    return ((evidence_E - BEGIN) / (FULL - BEGIN)).clamp(0, 1)
