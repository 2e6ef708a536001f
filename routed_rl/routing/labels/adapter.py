"""The quarantine of label routing at one linear module: a LoRA whose two factors are both trained.

Shape letters: D outputs of the module, N inputs, R rank of the LoRA.
"""

import torch
from torch import Tensor
from torch.nn.functional import linear

SCALING = 1.0
"""The factor by which the product B A is multiplied. It equals the scaling of a LoRA whose alpha is its rank."""


class LabelAdapter:
    """A LoRA that adds `B A x` to the output of its module, whose input is x. B begins at 0, and A begins as in PEFT's LoRA.
    Neither factor is a parameter of the model."""

    def __init__(self, rows: int, width: int, rank: int, generator: torch.Generator, device: torch.device) -> None:
        bound = width**-0.5  # kaiming_uniform_ with a = sqrt(5), as PEFT starts a LoRA
        down = torch.empty(rank, width).uniform_(-bound, bound, generator=generator).to(device)
        self.down_RN, self.up_DR = down.requires_grad_(), torch.zeros(rows, rank, device=device).requires_grad_()

    @property
    def factors(self) -> dict[str, Tensor]:
        """The LoRA's factors A (R, N) and B (D, R), by the names that they have in files, `down` and `up`."""
        return {"down": self.down_RN, "up": self.up_DR}

    def product(self, scale: float) -> tuple[Tensor, Tensor]:
        """Return two factors (D, R) and (R, N). Their product is `scale` times what the LoRA adds to the weight of its module."""
        return scale * SCALING * self.up_DR.detach(), self.down_RN.detach()

    def add(self, output: Tensor, x: Tensor, scale: float, weights: Tensor | None, *, learns: bool = True) -> Tensor:
        """Return `output + scale B A x`. `output`: the module's own output for the input `x`. `weights`: factors by which the
        gradient of A and B is multiplied, in a shape that broadcasts to that of `output`; None: the gradient is not changed if
        `learns`, and does not reach A and B otherwise."""
        with torch.autocast(x.device.type, enabled=False):
            if weights is None and learns:
                added = self._product(x, self.down_RN, self.up_DR)
            else:
                added = self._product(x, self.down_RN.detach(), self.up_DR.detach())
            if weights is not None:
                learned = self._product(x.detach(), self.down_RN, self.up_DR)
                added = added + weights * (learned - learned.detach())
            return output + (scale * SCALING * added).to(output.dtype)

    @staticmethod
    def _product(x: Tensor, down_RN: Tensor, up_DR: Tensor) -> Tensor:
        return linear(linear(x.to(down_RN.dtype), down_RN), up_DR)

    @torch.no_grad()
    def square(self) -> float:
        """The squared Frobenius norm ‖B A‖²."""
        up, down = self.up_DR.double(), self.down_RN.double()
        return ((up.mT @ up) * (down @ down.mT)).sum().clamp(min=0).item()
