"""The directions along which the effect of a step is reported: named axes of the stream, and for each target two directions along
which the ledgers of single rows are measured.

Shape letters: L layers, J axes, D stream width, B rows of a micro-batch, T tokens, K rank, N inputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Axes:
    """Named directions of every layer's stream, along which shifts are reported. Each has a sign: positive is towards the persona
    that must not grow."""

    names: list[str]
    directions: list[Tensor]
    """For each layer, the axes as columns (D, J) of length 1, or 0 if the layer lacks the axis."""
    scales: Tensor
    """(L, J): the length in the stream that counts as a shift of 1 along each axis."""
    weights: Tensor
    """(L, J): the weight of each layer in a mean over layers of the shift along each axis."""

    def shares(self, layers: Sequence[int], column: int) -> dict[int, float]:
        """Return the weight of each of `layers` in a mean over these layers alone of the shift along the axis with the index
        `column`, by layer. The weights are those in `self.weights`, scaled to sum to 1, or are equal if `self.weights` is 0 at
        all of these layers."""
        weights = self.weights[list(layers), column].double()
        if not bool(weights.any()):
            weights = torch.ones_like(weights)
        return dict(zip(layers, (weights / weights.sum()).tolist(), strict=True))


@dataclass(frozen=True, eq=False)
class Along:
    """The two directions, fixed before a step, along which one target's ledgers are measured: growth of the quarantine (C), and
    shift along the named axis. The inner product of a ledger (K, N) with a direction is one number."""

    coefficients_KN: Tensor
    """The target's coefficients C before the step."""
    axis_K: Tensor
    """The named axis in the coordinates of the target's basis, as a weighted sum over the layers that the writer's output
    reaches, which are `Target.place` and all later ones."""
    mean_N: Tensor
    """The running mean μ of the target's inputs before the step."""

    def of_rows(self, ledgers_BKN: Tensor) -> Tensor:
        """Measure the ledger of each row along the two directions, (B, 2). Column 0 is `<ledger, C>`, the inner product with the
        coefficients; column 1 is `axisᵀ ledger μ`, the part along the axis of what the ledger, used as coefficients, would add to
        the stream at the mean input."""
        return torch.stack([torch.tensordot(ledgers_BKN, self.coefficients_KN, 2), (ledgers_BKN @ self.mean_N) @ self.axis_K], 1)

    def of_tokens(self, p_TK: Tensor, x_TN: Tensor) -> Tensor:
        """Measure the ledger `p xᵀ` of each token along the two directions, (T, 2), with the columns of `of_rows`. `p_TK` is the
        cotangent in the coordinates of the basis and `x_TN` is the target's input, at each token."""
        return torch.stack([(p_TK * (x_TN @ self.coefficients_KN.mT)).sum(1), (p_TK @ self.axis_K) * (x_TN @ self.mean_N)], 1)
