"""Directions along which the effect of a step is reported: the named axes of the stream, and for each target two directions along
which rows are measured.

Shape letters: L layers, J axes, D stream width, B rows of a micro-batch, T tokens, K rank, N inputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Axes:
    """Named, signed directions of every layer's stream, along which shifts are reported."""

    names: list[str]
    directions: list[Tensor]
    """For each layer, the axes as columns (D, J)."""
    scales: Tensor
    """(L, J): the length along each axis that counts as 1."""
    weights: Tensor
    """(L,): the weight of each layer in a mean over layers."""

    def shares(self, layers: Sequence[int]) -> dict[int, float]:
        """For each of these layers, its weight in a mean over them: `weights` scaled to sum to 1, or equal weights if all of them
        are 0."""
        weights = self.weights[list(layers)].double()
        if not bool(weights.any()):
            weights = torch.ones_like(weights)
        return dict(zip(layers, (weights / weights.sum()).tolist(), strict=True))


@dataclass(frozen=True, eq=False)
class Along:
    """Two directions for one target. The product of each with a ledger (K, N) is one number."""

    coefficients_KN: Tensor
    """C before the step."""
    axis_K: Tensor
    """The named axis in the coordinates of the basis, summed over the layers that the writer reaches."""
    mean_N: Tensor
    """μ before the step."""

    def of_rows(self, ledgers_BKN: Tensor) -> Tensor:
        """`<ledger_r, C>` and `axisᵀ ledger_r μ` for the ledger of each row r, (B, 2)."""
        return torch.stack([torch.tensordot(ledgers_BKN, self.coefficients_KN, 2), (ledgers_BKN @ self.mean_N) @ self.axis_K], 1)

    def of_tokens(self, p_TK: Tensor, x_TN: Tensor) -> Tensor:
        """As `of_rows`, for each token, whose ledger is `p xᵀ`; (T, 2)."""
        return torch.stack([(p_TK * (x_TN @ self.coefficients_KN.mT)).sum(1), (p_TK @ self.axis_K) * (x_TN @ self.mean_N)], 1)
