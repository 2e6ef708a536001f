"""The three matrices of one target: the basis of its subspace, a matrix that writes to the subspace, and a matrix by which the
writer's weight is read.

Shape letters: D stream width, K rank, M any number of directions, S sampled tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class BasisPair:
    """The basis V in the stream, the matrix A by which a writer writes to the subspace and the matrix B by which its weight is
    read, with `BᵀA = I`. A and B equal V unless a gain stands between writer and stream."""

    basis: Tensor
    """The basis V (D, K) of the subspace in the stream."""
    gain_D: Tensor | None
    """The gain of a norm between the writer and the stream, or a constant scale there, (D,); None if the writer adds to the
    stream directly."""
    norm_eps: float | None
    """The eps of the norm between writer and stream; None if there is no norm."""
    write: Tensor
    """The matrix A (D, K) by which the quarantine's output is written: V, or `diag(1/gain) V` behind a gain."""
    read: Tensor
    """The matrix B (D, K): `Bᵀ W` is what the weight W writes into the subspace. B is V, or `diag(gain) V` behind a gain."""

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
        """Return the outputs (D, M) that a writer must produce so that the stream moves along the columns of `directions_DM`. If
        the gain is that of a norm, the norm's division by the size of each token's vector is left out."""
        return directions_DM if self.gain_D is None else directions_DM / self.gain_D.unsqueeze(1)

    def outside(self, directions_DM: Tensor) -> Tensor:
        """Return `(I - A Bᵀ) directions`, (D, M), the part of a writer's outputs `directions_DM` that does not reach the
        subspace. It is computed in the dtype of the matrices, on the device of `directions_DM`."""
        write, read = self.write.to(directions_DM.device), self.read.to(directions_DM.device)
        directions_DM = directions_DM.to(write.dtype)
        return torch.addmm(directions_DM, write, read.mT @ directions_DM, alpha=-1)

    def norm_scale(self, y: Tensor, sample_S: Tensor | None) -> Tensor | None:
        """Return the factors (S,) by which the norm behind the writer scales the sampled tokens before its gain; None if there is
        no such norm or no sample. `y`: the writer's output (..., D); `sample_S`: indices into the flattened tokens of `y`."""
        if self.gain_D is None or self.norm_eps is None or sample_S is None:
            return None
        return y.reshape(-1, y.shape[-1])[sample_S].float().square().mean(-1).add(self.norm_eps).rsqrt()
