"""Laws 1, 2 and 9 as a run reports them: rows of the router that the trainer drives."""

import copy

import pytest
import torch

from routed_rl.config import QuarantineConfig, RandomControlConfig, RoutingConfig
from routed_rl.errors import ModelError
from routed_rl.model.targets import freeze
from routed_rl.routing import Axes, LedgerRow, Quarantine, Router, RoutingContext
from tests.builders import FROZEN, OPTIMIZERS, WIDTH, Batch, batch, find_targets, random_bases, tiny

NAMES = ["alpha", "beta", "gamma"]


class Trained:
    """A model, its router and optimizer, driven as the trainer does."""

    def __init__(self, mode: str = "route", family: str = "llama", names: list[str] | None = None, every: int = 2) -> None:
        self.model, bases = tiny(family), random_bases(2)
        context = RoutingContext()
        targets = find_targets(self.model, bases, context, environments=3)
        freeze(self.model, FROZEN)
        config = RoutingConfig(mode=mode, quarantine=QuarantineConfig(),
                               random_control=RandomControlConfig(every=every, draws=4))
        axes = Axes(["hacker", "careless"], [basis[:, :2] for basis in bases], torch.tensor([[2.0, 1.0], [4.0, 1.0]]))
        stream = torch.randn(2, 50, WIDTH, generator=torch.Generator().manual_seed(3))
        self.router = Router(Quarantine(targets, names or NAMES, context), config, axes, stream, seed=5)
        self.optimizer = OPTIMIZERS["adamw"]([p for p in self.model.parameters() if p.requires_grad])

    def step(self, step: int, rows: Batch | None = None) -> LedgerRow:
        rows = rows or batch(seed=step, rows=6, environments=(0, 1, 2))
        self.router.begin_step(step)
        self.router.set_batch(rows.environments, rows.mask)
        rows.loss(self.model).backward()
        self.optimizer.step()
        row = self.router.after_step(step, clip=1.0, rate=3e-3, decay=0.0)
        self.optimizer.zero_grad()
        return row


def test_pushes_sum_to_the_growth_and_shares_to_the_whole():
    run = Trained()
    for step in range(5):
        row = run.step(step)
        entries = row.environments.values()
        assert row.norm > 1e-2 and row.growth != 0
        assert sum(entry.push for entry in entries) == pytest.approx(row.growth, abs=1e-6)  # float32 parts
        assert abs(row.unattributed) < 1e-6
        assert sum(entry.share for entry in entries) == pytest.approx(1, abs=1e-5)
        assert row.drift < 2e-7
        assert sum(norm**2 for norm in row.layers.values()) == pytest.approx(row.norm**2) and len(row.layers) == 2
    assert run.router.pushes["alpha"] != 0
    assert sum(run.router.pushes.values()) == pytest.approx(row.norm, abs=1e-5)  # C started at zero.


def test_what_the_parts_do_not_explain_is_booked_as_unattributed_when_only_observed():
    rows = [run.step(step) for run in [Trained("observe")] for step in range(3)]
    for row in rows:
        pushes = sum(entry.push for entry in row.environments.values())
        assert row.unattributed == pytest.approx(row.growth - pushes, abs=1e-9) and abs(row.unattributed) > 1e-3


def test_erase_has_a_ledger_but_no_quarantine():
    row = Trained("erase").step(0)
    assert row.norm == row.growth == 0 and row.drift < 2e-7
    assert all(entry.norm > 0 and entry.part_norm == 0 for entry in row.environments.values())


def test_swapping_two_environments_swaps_their_entries():
    ours, theirs = Trained(), Trained(names=["beta", "alpha", "gamma"])
    for step in range(3):
        rows = batch(seed=step, rows=6, environments=(0, 1, 2))
        a = ours.step(step, rows)
        b = theirs.step(step, copy.deepcopy(rows))
    # Rows with label 0 are alpha's in one run and beta's in the other, and all else is equal.
    for one, other in {"alpha": "beta", "beta": "alpha", "gamma": "gamma"}.items():
        assert a.environments[one] == b.environments[other]
    assert a.environments["alpha"] != a.environments["beta"]


def test_the_persona_shift_is_the_direct_effect_of_a_part_at_the_mean_input():
    run = Trained()
    for step in range(3):
        row = run.step(step)
    for e, name in enumerate(NAMES):
        for j, (axis, scales) in enumerate({"hacker": (2.0, 4.0), "careless": (1.0, 1.0)}.items()):
            stream, along = torch.zeros(WIDTH), []
            for layer in (0, 1):
                for target in run.router.quarantine.targets:
                    if target.layer == layer:
                        stream = stream + target.write @ (target.parts[e] @ target.tape.mean())
                along.append((stream @ run.router.book.axes.directions[layer][:, j] / scales[layer]).item())
            assert row.environments[name].shift[axis] == pytest.approx(sum(along) / 2, rel=1e-4, abs=1e-7)


def test_going_on_from_a_saved_state_gives_the_same_rows_bit_for_bit():
    first, second = Trained(), Trained()
    for step in range(3):
        first.step(step)
    second.model.load_state_dict(copy.deepcopy(first.model.state_dict()))
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    second.router.load_state_dict(first.router.state_dict())
    for step in range(3, 6):
        assert first.step(step) == second.step(step)
    assert first.router.pushes == second.router.pushes
    assert Trained().step(3) != first.step(6)


def test_random_bases_are_measured_every_so_many_steps_taking_turns_and_change_nothing_else():
    measured, plain = Trained(every=2), Trained(every=0)
    for step in range(5):
        row, other = measured.step(step), plain.step(step)
        kinds = {key.split("/")[0] for key in row.control}
        assert kinds == [{"isotropic"}, set(), {"matched"}, set(), {"isotropic"}][step]
        assert not other.control
        assert row.environments == other.environments
        for key, value in row.control.items():
            assert value > 0 and (not key.endswith("rank") or 1 <= value <= 5)


def test_a_writer_the_loss_never_reaches_is_an_error_in_the_first_step():
    run = Trained()
    rows = batch()
    run.router.set_batch(rows.environments, rows.mask)
    with pytest.raises(ModelError, match=r"no gradient reached model\.layers\.0\.self_attn\.o_proj"):
        run.router.after_step(0, clip=1.0, rate=3e-3, decay=0.0)


def test_clipping_scales_what_is_booked_and_nothing_of_a_scale_free_step():
    halved, whole = Trained(), Trained()
    rows = batch()
    norms = []
    for run, clip in ((halved, 0.5), (whole, 1.0)):
        run.router.set_batch(rows.environments, rows.mask)
        rows.loss(run.model).backward()
        row = run.router.after_step(0, clip=clip, rate=0.0, decay=0.0)
        norms.append([entry.norm for entry in row.environments.values()])
        moment = run.router.optimizer.moments[run.router.quarantine.targets[0].name]
        norms[-1].append(moment.norm().item() / clip)
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
