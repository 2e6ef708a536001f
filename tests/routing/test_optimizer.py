"""The quarantine's optimizer (design 3.2): linear in environments, blind to units, bounded in the stream."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from routed_rl.config import QuarantineConfig
from routed_rl.errors import CheckpointError
from routed_rl.routing.optimizer import QuarantineOptimizer
from tests.builders import PROPERTY, relative, writer

SHAPE = (3, 2, 5)


def bounded_by(max_shift: float | None) -> QuarantineConfig:
    return QuarantineConfig(learning_rate=0.1, max_shift=max_shift)


FREE = bounded_by(None)


def stepped(optimizer: QuarantineOptimizer, ledgers: list[torch.Tensor]):
    """The next step of all targets, every environment at the configured rate."""
    return optimizer.step(ledgers, torch.full((len(ledgers[0]),), optimizer.config.learning_rate, dtype=torch.float64))


def ledgers(steps: int, seed: int = 0, shape=SHAPE):
    return torch.randn(steps, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def deltas(config: QuarantineConfig, steps: torch.Tensor, unit: float = 1.0, inputs: torch.Tensor | None = None, **kind):
    target = writer(**kind)
    target.unit = unit
    optimizer = QuarantineOptimizer(config, [target])
    found = []
    for ledger in steps:
        target.tape.inputs = [ledgers(1, 99, (40, 5))[0] if inputs is None else inputs]
        found.append(stepped(optimizer, [ledger])[0].delta_EKN)
    return torch.stack(found)


def test_a_step_follows_the_formula_of_one_scalar_second_moment():
    steps = ledgers(6)
    m, v, expected = torch.zeros(SHAPE, dtype=torch.float64), 0.0, []
    for t, ledger in enumerate(steps, start=1):
        m, v = 0.9 * m + 0.1 * ledger, 0.999 * v + 0.001 * sum((ledger[e] ** 2).mean() for e in range(3))
        expected.append(-0.1 * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)) ** 0.5 + 1e-12))
    torch.testing.assert_close(deltas(FREE, steps), torch.stack(expected))


@PROPERTY
@given(st.floats(1e-3, 10), st.floats(0.1, 100), st.integers(0, 1000))
def test_no_step_shifts_the_stream_further_than_the_bound_and_a_bounded_one_shifts_exactly_so_far(bound, unit, seed):
    inputs = ledgers(1, seed + 1, (40, 5))[0]
    bounded = deltas(bounded_by(bound), ledgers(4, seed), unit, inputs)
    free = deltas(FREE, ledgers(4, seed), unit, inputs)
    basis = writer().pair.basis
    for ours, raw in zip(bounded, free, strict=True):
        def shift(delta):
            return ((inputs @ delta.sum(0).mT @ basis.mT).norm(dim=1).square().mean().sqrt() / unit).item()
        assert shift(ours) == pytest.approx(min(bound, shift(raw)), rel=1e-9)  # float64 rounding
        torch.testing.assert_close(ours / ours.norm(), raw / raw.norm())  # All C_e alike: one factor.


def test_the_bound_is_shared_by_all_targets():
    target, *others = [writer() for _ in range(4)]
    for place, other in enumerate(others):
        other.name = f"other {place}"
    alone, many = (QuarantineOptimizer(bounded_by(1e-3), [target, *more]) for more in ([], others))
    target.tape.inputs = [torch.ones(4, 5, dtype=torch.float64)]
    found = [stepped(optimizer, [ledgers(1)[0]] * len(optimizer.targets))[0].delta_EKN for optimizer in (alone, many)]
    torch.testing.assert_close(found[0], 4 * found[1])


def test_the_bound_counts_what_reaches_the_stream_along_all_axes_together():
    target = writer(rank=2)
    target.tape.inputs = [torch.eye(5, dtype=torch.float64)]
    optimizer = QuarantineOptimizer(bounded_by(0.5), [target])
    delta = stepped(optimizer, [torch.ones(3, 2, 5, dtype=torch.float64) * 1e9])[0].delta_EKN
    assert delta.sum(0).norm() / 5**0.5 == pytest.approx(min(0.5, 0.1 * 3 / 3**0.5 * 2**0.5), rel=1e-9)


@PROPERTY
@given(st.permutations([0, 1, 2]), st.integers(0, 1000))
def test_a_step_is_linear_in_environments_so_swapping_them_swaps_their_parts(order, seed):
    config, steps = bounded_by(0.1), ledgers(5, seed)
    torch.testing.assert_close(deltas(config, steps[:, order]), deltas(config, steps)[:, order])


def test_splitting_an_environment_in_two_splits_its_part_given_the_shared_second_moment():
    steps = ledgers(4)
    halves = torch.stack([steps[:, 0] * 0.5, steps[:, 0] * 0.5, steps[:, 1]], dim=1)
    split = deltas(bounded_by(1e-4), halves)
    torch.testing.assert_close(split[:, 0], split[:, 1])
    together = torch.stack([steps[:, 0], torch.zeros_like(steps[:, 0]), steps[:, 1]], dim=1)
    # Bounded, so that the difference of `v` cancels.
    whole = deltas(bounded_by(1e-4), together)
    torch.testing.assert_close(split[-1, 0] + split[-1, 1], whole[-1, 0])


@pytest.mark.parametrize("scale", [2.0**-40, 2.0**-10, 2.0**10, 1000.0])
def test_multiplying_the_loss_leaves_the_step_unchanged(scale):
    config = bounded_by(0.1)
    # eps = 1e-12 is not nothing beside ledgers of 2^-40 = 1e-12: exact only where it is.
    config.eps = 0.0
    torch.testing.assert_close(deltas(config, ledgers(4) * scale), deltas(config, ledgers(4)))


def test_the_default_eps_does_not_show_down_to_ledgers_of_a_millionth():
    torch.testing.assert_close(deltas(FREE, ledgers(4) * 1e-6), deltas(FREE, ledgers(4)), rtol=1e-5, atol=0)


def test_an_absent_environment_decays():
    optimizer = QuarantineOptimizer(FREE, [writer()])
    moments = []
    for step in range(6):
        ledger = ledgers(1, step)[0]
        if step:
            ledger[1] = 0
        stepped(optimizer, [ledger])
        moments.append(optimizer.moments["writer"].first_EKN[1])
    for earlier, later in pairwise(moments):
        torch.testing.assert_close(later, 0.9 * earlier)
    assert moments[-1].any()


def test_environments_that_pull_against_each_other_keep_small_parts():
    pull, noise = ledgers(1)[0, 0], 1e-3 * ledgers(20, 5)[:, 0]
    steps = torch.stack([torch.stack([pull, -pull + n, torch.zeros_like(pull)]) for n in noise])
    parts = deltas(FREE, steps).sum(0)
    # Each step of each environment is at most the raw rate in root mean square, whatever the total is.
    assert all(part.square().mean().sqrt() < 20 * 0.1 for part in parts)
    total = steps.sum(1)
    naive = 0.1 * steps[:, 0].sum(0) / total.square().mean().sqrt()  # A second moment of the total instead.
    assert naive.norm() > 100 * parts[0].norm()


def test_a_step_that_saw_no_token_is_not_taken():
    nothing = torch.zeros(0, 5, dtype=torch.float64)
    assert not deltas(QuarantineConfig(), ledgers(2), inputs=nothing).any()
    assert deltas(FREE, ledgers(2), inputs=nothing).all()


def test_a_ledger_of_zeros_gives_a_step_of_zeros():
    assert not deltas(QuarantineConfig(), torch.zeros(3, *SHAPE, dtype=torch.float64)).any()


def test_rank_zero_has_an_empty_step():
    assert deltas(QuarantineConfig(), torch.zeros(2, 3, 0, 5, dtype=torch.float64), rank=0).shape == (2, 3, 0, 5)


def test_the_rate_scales_an_unbounded_step_and_nothing_else():
    slow, fast = (deltas(QuarantineConfig(max_shift=None, learning_rate=rate), ledgers(3)) for rate in (0.01, 1.0))
    torch.testing.assert_close(slow * 100, fast)


def test_going_on_from_a_saved_state_is_not_stopping_bit_for_bit():
    def run(stop: bool):
        target = writer()
        optimizer = QuarantineOptimizer(FREE, [target])
        for step, ledger in enumerate(ledgers(6)):
            if stop and step == 3:
                saved = optimizer.state_dict()
                optimizer = QuarantineOptimizer(FREE, [target])
                optimizer.load_state_dict(saved)
            delta = stepped(optimizer, [ledger])[0].delta_EKN
        return delta
    assert run(stop=True).equal(run(stop=False))


def test_a_saved_state_does_not_change_as_training_goes_on():
    optimizer = QuarantineOptimizer(FREE, [writer()])
    stepped(optimizer, [ledgers(1)[0]])
    saved = optimizer.state_dict()
    before = {key: value.clone() for key, value in saved.items()}
    stepped(optimizer, [ledgers(1, 1)[0]])
    assert all(before[key].equal(value) for key, value in saved.items())
    assert relative(optimizer.moments["writer"].first_EKN, before["writer.moment"]) > 0.01


@pytest.mark.parametrize("key", ["writer.moment", "writer.square"])
def test_a_state_of_another_subspace_is_refused_by_name(key):
    state = QuarantineOptimizer(FREE, [writer(rank=3)]).state_dict()
    optimizer = QuarantineOptimizer(FREE, [writer(rank=2)])
    with pytest.raises(CheckpointError, match=r"writer\.moment of shape \(3, 2, 5\).*same subspace and environments"):
        optimizer.load_state_dict(state)
    good = optimizer.state_dict()
    del good[key]
    with pytest.raises(CheckpointError, match=key):
        optimizer.load_state_dict(good)
