"""A subspace that is made worse on purpose: by exactly the angle and the share that were asked for."""

import math

import pytest
import torch

from routed_rl.config import DegradeConfig
from routed_rl.errors import ConfigError, SubspaceError
from routed_rl.linalg import principal_cosines
from routed_rl.subspace import degrade
from tests.subspace.test_artifact import LAYERS, WIDTH
from tests.subspace.test_artifact import make as made


def make(**changes):
    return made(**{"spreads": [torch.tensor([0.9, 0.5, 0.2]), torch.tensor([0.7, 0.3])]} | changes)


@pytest.mark.parametrize("angle", [15.0, 30.0, 60.0, 90.0])
def test_every_direction_and_every_axis_inside_is_turned_by_the_angle(angle):
    whole = make()
    inside = [basis @ torch.ones(basis.shape[1], 2) / basis.shape[1] ** 0.5 for basis in whole.directions]
    whole = make(directions=whole.directions, axes=inside)
    worse = degrade(whole, angle, 0.0, seed=1)
    for layer in range(LAYERS):
        cosines = principal_cosines(whole.directions[layer], worse.directions[layer])
        torch.testing.assert_close(cosines, torch.full_like(cosines, math.cos(math.radians(angle))), atol=1e-5, rtol=0)
        along = (whole.axes[layer] * worse.axes[layer]).sum(0)
        torch.testing.assert_close(along, torch.full_like(along, math.cos(math.radians(angle))), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.cat(worse.spreads), torch.cat([whole.strengths(layer) * whole.units[layer]
                                                                     for layer in range(LAYERS)]))


def test_directions_are_left_out_with_their_strengths_and_the_seed_decides_which():
    whole = make()
    worse = degrade(whole, 0.0, 0.5, seed=1)
    assert [basis.shape[1] for basis in worse.directions] == [2, 1]
    for layer, basis in enumerate(worse.directions):
        places = [int((whole.directions[layer].mT @ column).abs().argmax()) for column in basis.mT]
        assert basis.equal(whole.directions[layer][:, places])
        torch.testing.assert_close(worse.strengths(layer), whole.strengths(layer)[places])
    drawn = [degrade(whole, 0.0, 0.5, seed).directions[0] for seed in range(6)]
    assert any(not each.equal(drawn[0]) for each in drawn) and drawn[1].equal(worse.directions[0])
    torch.testing.assert_close(worse.axes, whole.axes)


def test_it_says_what_was_done_and_is_read_again(tmp_path):
    worse = degrade(make(), 30.0, 0.5, seed=4)
    assert worse.provenance.details["degraded"] == {"angle": 30.0, "missing": 0.5, "seed": 4}
    worse.save(tmp_path / "s")
    assert all(one.equal(other) for one, other in zip(type(worse).load(tmp_path / "s").spreads, worse.spreads, strict=True))


def test_a_share_or_an_angle_that_is_none_and_a_stream_without_room_are_refused():
    for settings, said in (({"angle": 91.0}, r"\[0, 90\] degrees, got 91"), ({"missing": 1.5}, r"\[0, 1\], got 1.5"),
                           ({"angle": -1.0}, "must be a number >= 0")):
        with pytest.raises(ConfigError, match=said):
            DegradeConfig(**settings)
    basis = torch.eye(WIDTH)[:, :7]
    with pytest.raises(SubspaceError, match="7 directions in a stream 12 wide.* lower subspace.rank"):
        degrade(make(directions=[basis] * LAYERS, spreads=[torch.ones(7)] * LAYERS), 30.0, 0.0, seed=0)
