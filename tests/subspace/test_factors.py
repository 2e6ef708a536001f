"""Factors of a map: planted directions are found, the radius is where it is said to be, and few factors are chosen well."""

import pytest
import torch
import torch._decomp.decompositions_for_jvp  # beside a thread of another test, Python 3.11 may fail to parse torch's sources

from routed_rl.errors import SubspaceError
from routed_rl.linalg import random_basis
from routed_rl.subspace.factors import calibrated_radius, captured, exponential_factors, linear_factors, most_captured

WIDTH, FACTORS = 12, 4


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pairs(pushes: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return pushes.split(2)


def start(seed: int = 1) -> torch.Tensor:
    return torch.randn(FACTORS, WIDTH, generator=generator(seed))


def test_linear_factors_are_the_leading_singular_vectors_of_the_mean_jacobian():
    maps = torch.randn(3, WIDTH, WIDTH, generator=generator())  # one a prompt
    _, strengths, right = torch.linalg.svd(maps.mean(0))
    found, values = linear_factors(lambda x: torch.einsum("fd,bed->fbe", x, maps).sin(), start(), 60, pairs)
    torch.testing.assert_close(values, strengths[:FACTORS], rtol=1e-3, atol=0)
    assert (found * right[:FACTORS]).sum(1).abs().min() > 0.99
    other, _ = linear_factors(lambda x: torch.einsum("fd,bed->fbe", x, maps).sin(), start(), 1, pairs)
    assert (other * right[:FACTORS]).sum(1).abs().min() < 0.9  # one iteration is not enough


def test_exponential_factors_are_the_planted_directions_which_the_derivative_at_no_push_cannot_tell_apart():
    planted, written = (random_basis(WIDTH, FACTORS, generator(seed)).mT for seed in (2, 3))

    def respond(pushes: torch.Tensor) -> torch.Tensor:
        return (torch.expm1(pushes @ planted.mT) @ written).unsqueeze(1)

    found = exponential_factors(respond, start(), 3.0, 30, pairs)
    assert (found @ planted.mT).abs().max(dim=0).values.min() > 0.95
    assert ((found @ planted.mT).abs().argmax(dim=1).sort().values == torch.arange(FACTORS)).all()
    # The singular values are all 1, so that any rotation of the planted directions is as good a linear answer.
    linear, _ = linear_factors(respond, start(), 30, pairs)
    assert (linear @ planted.mT).abs().max(dim=0).values.min() < 0.95


def test_the_radius_is_where_the_response_departs_by_the_share_that_is_asked_for():
    def respond(pushes: torch.Tensor) -> torch.Tensor:  # departs by .2 of its linear part for each unit of length
        return (pushes * (1 + 0.2 * pushes.norm(dim=1, keepdim=True))).unsqueeze(1)

    drawn = torch.nn.functional.normalize(torch.randn(7, WIDTH, generator=generator()), dim=1)
    for goal in (0.1, 0.5):
        assert calibrated_radius(respond, drawn, 4.0, goal, pairs) == pytest.approx(goal / 0.2, rel=1e-3)


def test_a_map_that_is_linear_everywhere_does_not_calibrate_and_that_is_said():
    drawn = torch.nn.functional.normalize(torch.randn(4, WIDTH, generator=generator()), dim=1)
    with pytest.raises(SubspaceError, match=r"does not calibrate.*0.00 of it at most.*subspace.radius, or subspace.form=linear"):
        calibrated_radius(lambda x: 2 * x.unsqueeze(1), drawn, 1.0, 0.5, pairs)


def test_the_factors_that_are_chosen_hold_what_is_said_of_the_target_and_are_no_worse_than_the_nearest_ones():
    effects = torch.randn(3, 9, WIDTH, generator=generator())
    effects[:, 1] = effects[:, 0] + 0.01 * effects[:, 1]  # a near copy adds hardly anything
    target = effects[:, 0] + 0.5 * effects[:, 5]
    chosen, shares = most_captured(effects, target, 4)
    assert shares == sorted(shares) and len(set(chosen)) == 4
    for count in range(1, 5):
        held = captured(effects[:, chosen[:count]], target)
        assert sum(held) / len(held) == pytest.approx(shares[count - 1], abs=1e-6)
    assert set(chosen[:2]) in ({0, 5}, {1, 5}) and shares[1] > 0.99
    nearest = torch.nn.functional.cosine_similarity(effects, target.unsqueeze(1), dim=2).square().mean(0).topk(2).indices
    assert shares[1] >= sum(captured(effects[:, nearest], target)) / 3 - 1e-6


def test_a_layer_without_a_target_does_not_count():
    effects = torch.randn(2, 3, WIDTH, generator=generator())
    target = torch.stack([torch.zeros(WIDTH), effects[1, 2]])
    assert most_captured(effects, target, 1) == ([2], [pytest.approx(1.0)])
    assert captured(effects, target)[0] is None
