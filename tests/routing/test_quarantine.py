"""Targets and the quarantine: construction, refusals, state."""

from operator import attrgetter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save

from routed_rl.errors import ConfigError, SubspaceError
from routed_rl.routing import RoutingContext
from routed_rl.routing.quarantine import Quarantine
from routed_rl.routing.target import Target
from tests.builders import FAMILIES, PROPERTY, Run, batch, columns, exact_inside, random_bases, tiny, writer


@PROPERTY
@given(st.integers(1, 9), st.integers(1, 6), st.booleans(), st.booleans(), st.booleans(), st.integers(0, 1000))
def test_the_pair_is_dual_and_the_reference_is_what_the_weights_hold_inside(width, inputs, gain, bias, transposed, seed):
    target = writer(width, inputs, seed % (width + 1), gain=gain, bias=bias, transposed=transposed, seed=seed)
    torch.testing.assert_close(target.pair.read.mT @ target.pair.write, torch.eye(target.rank, dtype=torch.float64))
    torch.testing.assert_close(target.reference, exact_inside(target))
    assert target.reference.shape == (target.rank, inputs + (bias or transposed))
    assert not target.drift().any()


@PROPERTY
@given(st.booleans(), st.booleans(), st.booleans(), st.integers(0, 1000))
def test_moving_the_weights_inside_is_read_back_and_moves_nothing_else(gain, bias, transposed, seed):
    target = writer(gain=gain, bias=bias, transposed=transposed, seed=seed)
    inside = torch.randn(target.reference.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    before = columns(target.module, target)
    target.take_out(-inside)
    torch.testing.assert_close(target.drift(), inside)
    torch.testing.assert_close(columns(target.module, target) - before, target.pair.write @ inside)


@PROPERTY
@given(st.booleans(), st.integers(0, 1000))
def test_the_change_of_the_weights_is_estimated_without_a_copy_of_them(transposed, seed):
    target = writer(24, 40, transposed=transposed, seed=seed)
    assert float(target.weight.moved()) == 0.0
    change = torch.randn(24, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    target.weight.matrix().add_(change)
    assert 0.6 < float(target.weight.moved()) / float(change.square().sum()) < 1.6


def test_a_basis_of_another_width_is_refused():
    module = torch.nn.Linear(5, 6)
    with pytest.raises(SubspaceError, match=r"basis for down has 7 rows but the model's stream is 6 wide.*another model"):
        Target(name="down", layer=0, module=module, basis=torch.eye(7)[:, :2], unit=1.0, context=RoutingContext(),
               environments=1)


def test_a_rank_above_the_width_is_refused():
    module = torch.nn.Linear(5, 6)
    with pytest.raises(SubspaceError, match=r"basis for down has rank 7.*width 6; lower subspace.rank"):
        Target(name="down", layer=0, module=module, basis=torch.zeros(6, 7), unit=1.0, context=RoutingContext(),
               environments=1)


def test_the_norm_is_that_of_all_coefficients_together():
    run = Run(tiny("llama")).train(2)
    everything = torch.cat([target.coefficients.flatten() for target in run.targets])
    assert run.quarantine.norm() == pytest.approx(everything.norm().item(), rel=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_state_on_disk_restores_bit_for_bit(family):
    run = Run(tiny(family)).train(3)
    stored = load(save(run.quarantine.state_dict()))  # Targets share bases, which safetensors would refuse as they are.
    fresh = Run(tiny(family), bases=random_bases(2, seed=8))
    fresh.model.load_state_dict(run.model.state_dict())
    assert not fresh.targets[0].pair.read.equal(run.targets[0].pair.read)
    fresh.quarantine.load_state_dict(stored)
    for ours, theirs in zip(fresh.targets, run.targets, strict=True):
        for name in ("pair.basis", "pair.write", "pair.read", "reference", "coefficients", "parts"):
            mine, yours = (attrgetter(name)(target) for target in (ours, theirs))
            assert mine.equal(yours), name
        assert ours.tape.mean_input.equal(theirs.tape.mean_input) and ours.tape.pair is ours.pair
    again = fresh.quarantine.state_dict()
    assert sorted(again) == sorted(stored) and all(again[key].equal(value) for key, value in stored.items())
    rows = batch(50)
    fresh.backward(rows)
    run.backward(rows)
    assert all(a.tape.ledger.equal(b.tape.ledger) for a, b in zip(fresh.targets, run.targets, strict=True))


def test_a_state_taken_does_not_change_as_training_goes_on():
    run = Run(tiny("llama")).train(2)
    state = run.quarantine.state_dict()
    before = {key: value.clone() for key, value in state.items()}
    run.train(2)
    assert all(state[key].equal(value) for key, value in before.items())
    assert any(not run.quarantine.state_dict()[key].equal(value) for key, value in before.items())


@pytest.mark.parametrize("settings", [{"rank": 2}, {"environments": 3}])
def test_a_state_of_other_shapes_is_refused_by_name(settings):
    state = Run(tiny("llama"), **settings).train(1).quarantine.state_dict()
    run = Run(tiny("llama"))
    before = run.quarantine.state_dict()
    with pytest.raises(SubspaceError, match=r"model\.layers\.0\.self_attn\.o_proj\.\w+ where this run has .*resume with"):
        run.quarantine.load_state_dict(state)
    assert all(before[key].equal(value) for key, value in run.quarantine.state_dict().items())  # Nothing half-loaded.


def test_a_state_of_another_model_is_refused_by_name():
    with pytest.raises(SubspaceError, match=r"None for model\.layers\.1\.self_attn\.o_proj\.basis"):
        Run(tiny("llama")).quarantine.load_state_dict(Run(tiny("llama", layers=1)).quarantine.state_dict())


def test_a_quarantine_of_one_target_ablates_and_removes_it_alone():
    target = writer()
    quarantine = Quarantine([target], ["a", "b", "c"], target.context)
    x = torch.randn(1, 2, 5, dtype=torch.float64)
    policy = target.module(x)
    with quarantine.ablated():
        deployed = target.module(x)
    quarantine.remove()
    assert target.module(x).equal(deployed) and not policy.equal(deployed)


@pytest.mark.parametrize("shares", [{"other": 1.0}, {"env0": "auto"}, {"env0": float("nan")}])
def test_a_share_of_no_part_is_refused_and_nothing_changes(shares):
    run = Run(tiny("llama")).train(1)
    norm = run.quarantine.norm()
    refused = pytest.raises(ConfigError, match=r"kept: .* is no share of an environment's part; give .* some of env0, env1")
    with refused, run.quarantine.kept(shares):
        pass
    for scale in (float("nan"), "half", None):
        refused = pytest.raises(ConfigError, match=r"scaled: .* is no finite number; give one such as")
        with refused, run.quarantine.scaled(scale):  # pyright: ignore[reportArgumentType]
            pass
    assert run.quarantine.norm() == norm > 0


def test_it_is_on_until_it_is_removed():
    run = Run(tiny("llama"))
    assert run.quarantine.is_on
    run.quarantine.remove()
    assert not run.quarantine.is_on


def test_a_step_that_was_broken_off_leaves_nothing_for_the_next():
    """As an exception leaves one behind its first backward pass."""
    plain, broken = Run(tiny("llama"), rows=True), Run(tiny("llama"), rows=True)
    broken.backward(batch(seed=9))
    broken.optimizer.zero_grad()
    broken.begun = False
    ours, theirs = (run.train(1).router.state_dict() for run in (broken, plain))
    assert all(value.equal(theirs[name]) for name, value in ours.items())
