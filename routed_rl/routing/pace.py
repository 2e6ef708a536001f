"""How fast the quarantine moves: at the weights' own rate until an environment's completions pull, step after step, towards the
positive persona; then fast, until they no longer do."""

import os
from typing import Any

import torch
from torch import Tensor

from routed_rl.config import QuarantineConfig

E = os.environ.get
ALLOW, LO, HI, CAP = float(E("R_ALLOW", 1)), float(E("R_LO", 2)), float(E("R_HI", 4)), float(E("R_CAP", 6))
RESTORE = float(E("R_RESTORE", 0.25))


class Pace:
    def __init__(self, config: QuarantineConfig, environments: list[str]) -> None:
        self.config, self.environments = config, environments
        self.up = torch.zeros(len(environments), dtype=torch.float64)
        self.down = torch.zeros(len(environments), dtype=torch.float64)
        self.boost = torch.zeros(len(environments))

    def rates(self, weights: float) -> Tensor:
        own = min(weights, self.config.learning_rate)
        if not own:
            return torch.full_like(self.boost, self.config.learning_rate)
        return own ** (1 - self.boost) * self.config.learning_rate ** self.boost

    def see(self, row: dict[str, Any]) -> None:
        found, shifts = [], []
        for name in self.environments:
            pull, square = row.get(f"completions/{name}/own_shift", 0.0), row.get(f"completions/{name}/own_shift_square", 0.0)
            found.append(pull / square**0.5 if square else 0.0)
            shifts.append(next(value for key, value in row.items() if key.startswith(f"ledger/{name}/shift/")))
        z = torch.tensor(found, dtype=torch.float64)
        self.up = (self.up + z - ALLOW).clamp(0, CAP)
        self.down = (self.down - z - ALLOW).clamp(0, CAP)
        ramp = lambda s: ((s - LO) / (HI - LO)).clamp(0, 1)
        back = min(1.0, max(0.0, sum(shifts) / RESTORE)) if RESTORE else 0.0
        self.boost = torch.maximum(ramp(self.up), ramp(self.down) * back).float()

    def state_dict(self) -> dict[str, Tensor]:
        return {"pace": torch.stack([self.up, self.down]), "boost": self.boost.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        (self.up, self.down), self.boost = state["pace"].clone().unbind(), state["boost"].clone()
