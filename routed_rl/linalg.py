"""Makes, draws and compares orthonormal bases. Shape letters: D stream width, K rank."""

import torch
from torch import Tensor


def orthonormal(columns_DM: Tensor, *, drop_below: float = 0.0) -> Tensor:
    """Orthonormal basis (D, K) of the span of `columns_DM`, largest singular value first.

    Directions whose singular value is below `drop_below` times the largest are dropped, and so are null directions, so
    K <= min(D, M). It is computed in float64.
    """
    if columns_DM.shape[1] == 0:
        return columns_DM.new_zeros(columns_DM.shape[0], 0)
    left, singular, _ = torch.linalg.svd(columns_DM.double(), full_matrices=False)
    floor = max(drop_below, singular.shape[0] * torch.finfo(columns_DM.dtype).eps) * singular[0]
    return left[:, singular > floor].to(columns_DM.dtype)


def random_basis(width: int, rank: int, generator: torch.Generator, *, draws: int | None = None) -> Tensor:
    """Haar-distributed orthonormal basis (D, K) on the CPU; with `draws`, that many of them, (draws, D, K). The same generator
    state gives the same basis."""
    assert rank <= width, f"no {rank} orthonormal directions in a stream {width} wide"
    shape = (width, rank) if draws is None else (draws, width, rank)
    return orthonormalise_draws(torch.randn(shape, generator=generator, dtype=torch.float32))


def orthonormalise_draws(gaussian: Tensor) -> Tensor:
    """Orthonormalise the columns of (..., D, K) by QR; for Gaussian input the result is Haar-distributed."""
    q, r = torch.linalg.qr(gaussian)
    # Without fixing the signs of R's diagonal the distribution would not be Haar and would depend on the LAPACK in use.
    # `torch.sign` is not used, because its 0 would null a column where the input is rank-deficient.
    return q * torch.where(torch.diagonal(r, dim1=-2, dim2=-1) < 0, -1.0, 1.0).unsqueeze(-2)


def principal_cosines(a_DK: Tensor, b_DM: Tensor) -> Tensor:
    """Cosines of the principal angles between two orthonormal bases, (min(K, M),), the largest first."""
    return torch.linalg.svdvals(a_DK.double().mT @ b_DM.double()).clamp(max=1.0)


def orthonormality_error(basis_DK: Tensor) -> float:
    """The largest absolute entry of `VᵀV - I` for the columns V of a basis (D, K). It is 0 if they are exactly orthonormal."""
    gram = basis_DK.double().mT @ basis_DK.double()
    return (gram - torch.eye(gram.shape[0], dtype=gram.dtype)).abs().max().item() if gram.numel() else 0.0
