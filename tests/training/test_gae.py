"""Advantages against a slow reference that knows only lists: an episode's own tokens, one after another."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from routed_rl.training.gae import at_last_own, explained_variance, gae, rewards_to_go, whitened
from tests.builders import PROPERTY

shapes = st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(0, 10_000))
share = st.floats(0, 1)


def drawn(shape):
    rows, tokens, seed = shape
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, rows, tokens, dtype=torch.float64, generator=generator)
    return rewards, values, torch.rand(rows, tokens, generator=generator) < 0.6


def slow_advantages(rewards, values, gamma, lam):
    """The definition, a double sum: A_t is the sum of (gamma lam)^k delta_{t+k} to the end."""
    if not values:
        return []
    deltas = [reward + gamma * following - value
              for reward, value, following in zip(rewards, values, [*values[1:], 0.0], strict=True)]
    return [sum((gamma * lam)**k * delta for k, delta in enumerate(deltas[t:])) for t in range(len(deltas))]


@PROPERTY
@given(shapes, share, share)
def test_advantages_are_the_double_sum_over_a_rows_own_tokens_and_0_elsewhere(shape, gamma, lam):
    rewards, values, own = drawn(shape)
    found = gae(rewards, values, own, gamma, lam)
    assert (found[~own] == 0).all()
    for row in range(len(own)):
        expected = slow_advantages(rewards[row][own[row]].tolist(), values[row][own[row]].tolist(), gamma, lam)
        assert all(math.isclose(a, b, abs_tol=1e-12) for a, b in zip(found[row][own[row]].tolist(), expected, strict=True))


@PROPERTY
@given(shapes, share, share)
def test_what_stands_at_other_tokens_is_never_read(shape, gamma, lam):
    rewards, values, own = drawn(shape)
    noise = torch.where(own, 0.0, 100.0)
    assert torch.equal(gae(rewards + noise, values - noise, own, gamma, lam), gae(rewards, values, own, gamma, lam))


@PROPERTY
@given(shapes, share)
def test_with_lambda_1_an_advantage_is_what_is_still_paid_minus_the_value(shape, gamma):
    rewards, values, own = drawn(shape)
    difference = gae(rewards, values, own, gamma, 1.0) + torch.where(own, values, 0.0) - rewards_to_go(rewards, own, gamma)
    assert difference.abs().max() < 1e-12


@PROPERTY
@given(shapes)
def test_a_row_is_paid_once_at_its_last_own_token(shape):
    paid, _, own = drawn(shape)
    placed = at_last_own(paid[:, 0], own)
    for row in range(len(own)):
        places = own[row].nonzero().flatten().tolist()
        expected = torch.zeros_like(placed[row])
        if places:
            expected[places[-1]] = paid[row, 0]
        assert torch.equal(placed[row], expected)


@PROPERTY
@given(shapes)
def test_whitened_advantages_have_mean_0_and_deviation_1_over_own_tokens_alone(shape):
    advantages, _, own = drawn(shape)
    found = whitened(advantages, own)
    if own.sum() > 1:
        assert (found[~own] == 0).all() and abs(found[own].mean()) < 1e-9 and math.isclose(found[own].std(), 1, abs_tol=1e-6)


def test_explained_variance_is_1_for_a_prophet_0_for_a_constant_and_less_for_noise():
    _, targets, own = drawn((4, 9, 3))
    assert explained_variance(targets, targets, own) == 1
    assert explained_variance(torch.full_like(targets, 7.0), targets, own) == 0
    assert explained_variance(-targets, targets, own) < -1
    assert math.isnan(explained_variance(targets, torch.ones_like(targets), own))
