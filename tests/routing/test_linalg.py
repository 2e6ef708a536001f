"""Orthonormal bases: spans, Haar draws, angles."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from routed_rl.linalg import orthonormal, orthonormalise_draws, orthonormality_error, principal_cosines, random_basis
from tests.builders import PROPERTY


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@PROPERTY
@given(st.integers(1, 12), st.integers(0, 8), st.integers(0, 1000))
def test_a_basis_is_orthonormal_and_spans_its_columns(width, count, seed):
    columns = gaussian(width, count, seed=seed)
    basis = orthonormal(columns)
    assert basis.shape[0] == width and basis.shape[1] <= min(width, count) and basis.dtype == columns.dtype
    assert orthonormality_error(basis) < 1e-6
    torch.testing.assert_close(basis @ (basis.mT @ columns), columns, rtol=1e-4, atol=1e-4)


def test_directions_that_are_missing_or_weak_are_dropped_strongest_first():
    axes = torch.eye(6)
    columns = torch.stack([0.04 * axes[2], 3 * axes[1], axes[0], 3 * axes[1]], dim=1)
    assert orthonormal(columns).shape == (6, 3)
    kept = orthonormal(columns, drop_below=0.05)
    torch.testing.assert_close(kept.abs(), torch.stack([axes[1], axes[0]], dim=1))
    assert orthonormal(torch.zeros(6, 3)).shape == (6, 0) and orthonormal(torch.zeros(6, 0)).shape == (6, 0)


def test_random_bases_are_orthonormal_and_reproducible():
    first, second = (random_basis(10, 4, torch.Generator().manual_seed(3), draws=5) for _ in range(2))
    assert first.equal(second) and first.shape == (5, 10, 4)
    assert all(orthonormality_error(basis) < 1e-6 for basis in first)
    assert not first.equal(random_basis(10, 4, torch.Generator().manual_seed(4), draws=5))
    assert random_basis(10, 0, torch.Generator(), draws=2).shape == (2, 10, 0)
    with pytest.raises(AssertionError, match="no 11 orthonormal directions"):
        random_basis(10, 11, torch.Generator())


def test_random_bases_prefer_no_direction_and_no_sign():
    bases = random_basis(6, 2, torch.Generator().manual_seed(0), draws=20_000)
    projector = (bases @ bases.mT).mean(0)
    assert (projector - torch.eye(6) / 3).abs().max() < 0.01  # 20,000 draws of a variance below .1
    assert bases.mean(0).abs().max() < 0.02  # QR without its signs fixed fails here.
    assert (torch.linalg.qr(gaussian(20_000, 6, 2)).Q.mean(0)).abs().max() > 0.1


def test_rank_deficient_draws_still_have_no_null_column():
    gaussian_rank_one = gaussian(6, 1) @ torch.tensor([[1.0, 0.0]])
    assert orthonormality_error(orthonormalise_draws(gaussian_rank_one)) < 1e-6


def test_principal_cosines_are_one_for_the_same_span_and_zero_for_orthogonal_ones():
    basis = random_basis(8, 3, torch.Generator().manual_seed(0))
    turned = basis @ random_basis(3, 3, torch.Generator().manual_seed(1))
    torch.testing.assert_close(principal_cosines(basis, turned), torch.ones(3, dtype=torch.float64), atol=1e-6, rtol=0)
    assert principal_cosines(torch.eye(8)[:, :3], torch.eye(8)[:, 3:]).abs().max() < 1e-12
    assert principal_cosines(basis, torch.zeros(8, 0)).shape == (0,)
