"""The matrices of one target: a basis of the stream, a matrix that writes to the basis, and one by which the writer's weight is
read.

Shape letters: D stream width, K rank, M any number of directions, S sampled tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class BasisPair:
    """The basis V in the stream, the matrix A that writes to it and the matrix B that reads from it, with `BᵀA = I`. A and B
    equal V unless the writer is followed by a norm's gain."""

    basis: Tensor
    """The basis V (D, K) of the stream."""
    gain_D: Tensor | None
    """Gain of a norm between the writer and the stream, or a constant scale; None if the writer adds to the stream directly."""
    norm_eps: float | None
    """The eps of the norm with this gain; None for a constant scale."""
    write: Tensor
    """The matrix A (D, K) that writes to the basis: V, or `diag(1/gain) V`."""
    read: Tensor
    """The matrix B (D, K) that reads from the weight: V, or `diag(gain) V`."""

    @classmethod
    def of(cls, basis: Tensor, gain_D: Tensor | None, norm_eps: float | None) -> "BasisPair":
        if gain_D is None:
            return cls(basis, None, norm_eps, basis, basis)
        gain_D = gain_D.detach().to(basis)
        return cls(basis, gain_D, norm_eps, basis / gain_D.unsqueeze(1), basis * gain_D.unsqueeze(1))

    @property
    def rank(self) -> int:
        return self.basis.shape[1]

    def written(self, directions_DM: Tensor) -> Tensor:
        """The output (D, M) that a writer must add so that the stream moves along `directions_DM`."""
        return directions_DM if self.gain_D is None else directions_DM / self.gain_D.unsqueeze(1)

    def outside(self, directions_DM: Tensor) -> Tensor:
        """`(I - A Bᵀ) directions`, (D, M): the part of `directions` that a writer may write without reaching the subspace."""
        return torch.addmm(directions_DM, self.write, self.read.mT @ directions_DM, alpha=-1)

    def norm_scale(self, y: Tensor, sample_S: Tensor | None) -> Tensor | None:
        """The factors (S,) by which the norm behind a writer multiplies the sampled tokens before its gain; None if there is no
        such norm."""
        if self.gain_D is None or self.norm_eps is None or sample_S is None:
            return None
        return y.reshape(-1, y.shape[-1])[sample_S].float().square().mean(-1).add(self.norm_eps).rsqrt()
