"""The table of modes, and the corrections after a step."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from routed_rl.config import RoutingConfig
from routed_rl.errors import ConfigError
from routed_rl.routing.modes import MODES, reimpose
from tests.builders import PROPERTY, columns, exact_inside, writer

KINDS = st.fixed_dictionaries({"gain": st.booleans(), "bias": st.booleans(), "transposed": st.booleans()})


def knocked(kind, seed: int):
    """A target whose weights an optimizer has moved, and a change of its parts."""
    target = writer(seed=seed, **kind)
    generator = torch.Generator().manual_seed(seed)
    target.coefficients.zero_()
    with torch.no_grad():
        for parameter in target.module.parameters():
            parameter.add_(torch.randn(parameter.shape, dtype=torch.float64, generator=generator))
    return target, torch.randn(target.parts.shape, dtype=torch.float64, generator=generator)


@PROPERTY
@given(KINDS, st.integers(0, 1000))
def test_reimposing_undoes_the_movement_inside_and_keeps_the_rest(kind, seed):
    target, _ = knocked(kind, seed)
    moved = columns(target.module, target)
    assert target.drift().norm() > 0.1
    reimpose(target)
    torch.testing.assert_close(exact_inside(target), target.reference)
    kept = torch.eye(6, dtype=torch.float64) - target.pair.write @ target.pair.read.mT
    torch.testing.assert_close(kept @ columns(target.module, target), kept @ moved)
    once = columns(target.module, target)
    reimpose(target)
    torch.testing.assert_close(columns(target.module, target), once)


@PROPERTY
@given(KINDS, st.integers(0, 1000), st.floats(0, 0.5))
def test_observing_moves_the_change_from_the_weights_to_the_quarantine(kind, seed, decay):
    target, delta = knocked(kind, seed)
    target.coefficients.copy_(delta[0])
    before = columns(target.module, target) + (1 - decay) * target.pair.write @ target.coefficients
    MODES["observe"].after_step(target, delta, decay)
    torch.testing.assert_close(columns(target.module, target) + target.pair.write @ target.coefficients, before)
    torch.testing.assert_close(exact_inside(target), target.reference)
    assert target.parts.equal(delta)


def test_routing_adds_the_parts_and_erasing_adds_nothing():
    for name, expected in {"route": True, "erase": False}.items():
        target, delta = knocked({}, 1)
        MODES[name].after_step(target, delta, 0.0)
        assert target.parts.equal(delta if expected else torch.zeros_like(delta))
        assert target.coefficients.any() == expected
        torch.testing.assert_close(exact_inside(target), target.reference)


def test_weight_decay_of_the_weights_leaves_routed_parts_alone():
    found = []
    for decay in (0.0, 0.3):
        target, delta = knocked({}, 1)
        MODES["route"].after_step(target, delta, decay)
        found.append(target.parts)
    assert found[0].equal(found[1])


def test_the_table_has_a_row_for_every_mode_that_routes():
    for name in ("none", *MODES):
        RoutingConfig(mode=name)
    with pytest.raises(ConfigError, match=f"none.*{'.*'.join(MODES)}"):
        RoutingConfig(mode="rout")
