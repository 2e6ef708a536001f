"""What each completion did: rows of the router against a slow reference, one backward a row, in float64."""

from __future__ import annotations

import copy

import pytest
import torch

from routed_rl.config import QuarantineConfig, RandomControlConfig, RoutingConfig
from routed_rl.model.targets import freeze
from routed_rl.routing import Axes, LedgerRow, Quarantine, Router, RoutingContext, RowBook
from tests.builders import FROZEN, OPTIMIZERS, Batch, batch, find_targets, random_bases, tiny
from tests.clamped import clamped_model

EXACT = 1e-10
"""float64 rounding through a few thousand operations."""
NORM_IN_FLOAT32 = 5e-5
"""Hugging Face's RMSNorm casts to float32, amplified by cancelling terms."""
CLIP = 0.5


class Told:
    """A float64 model whose router tells its rows apart, driven as the trainer does."""

    def __init__(self, family: str = "gpt2", mode: str = "route", *, told: bool = True, axis: str | None = None,
                 reentrant: bool | None = None, **settings) -> None:
        self.model, bases = tiny(family, dtype=torch.float64), random_bases(2)
        context = RoutingContext()
        self.targets = find_targets(self.model, bases, context, environments=3)
        self.axes = Axes(["hacker", "careless"], [basis[:, :2] for basis in bases], torch.tensor([[2.0, 1.0], [4.0, 1.0]]))
        freeze(self.model, FROZEN)
        config = RoutingConfig(mode=mode, quarantine=QuarantineConfig(**settings), random_control=RandomControlConfig(every=0))
        rows = RowBook(self.targets, self.axes, axis) if told else None
        quarantine = Quarantine(self.targets, ["a", "b", "c"], context)
        self.router = Router(quarantine, config, self.axes, torch.zeros(2, 4, 16), 5, rows)
        self.optimizer = OPTIMIZERS["adamw"]([p for p in self.model.parameters() if p.requires_grad])
        if reentrant is not None:
            self.model.train()
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
            self.model.enable_input_require_grads()

    def step(self, step: int, batches: list[Batch] | None = None) -> LedgerRow:
        """Micro-batches whose rows are numbered through, from 10 on."""
        self.router.begin_step(step)
        first = 10
        for rows in batches or [batch(seed=step, rows=6, environments=(0, 1, 2))]:
            self.router.set_batch(rows.environments, rows.mask, torch.arange(first, first + len(rows.ids)))
            rows.loss(self.model).backward()
            first += len(rows.ids)
        self.optimizer.step()
        row = self.router.after_step(step, clip=CLIP, rate=3e-3, decay=0.0)
        self.optimizer.zero_grad()
        return row


def reference(run: Told, batches: list[Batch], axis: int, *, contained: bool) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Per target `<ledger_r, C>` and `aᵀ V ledger_r μ`, (R,), by one autograd pass a row through the clamped model."""
    plain, leaves = clamped_model(run.model, run.targets, contained=contained)
    grads: dict[str, list[torch.Tensor]] = {name: [] for name in leaves}
    for rows in batches:
        alone = Batch(rows.ids, rows.mask, torch.arange(len(rows.ids)), rows.advantages)
        for r in range(len(rows.ids)):
            found = torch.autograd.grad(alone.loss(plain, only=r), list(leaves.values()), allow_unused=True)
            for (name, leaf), grad in zip(leaves.items(), found, strict=True):
                grads[name].append(torch.zeros_like(leaf) if grad is None else grad)
    pushes, shifts = [], []
    for target in run.targets:
        ledgers = torch.stack(grads[target.name])
        pushes.append((ledgers * target.coefficients).sum((1, 2)))
        stream = ledgers @ target.tape.mean() @ target.basis.mT  # of two layers: the first writes into both
        shifts.append(sum(stream @ run.axes.directions[layer][:, axis].double() / run.axes.scales[layer, axis].double()
                          for layer in range(target.layer, 2)) / 2)
    return pushes, shifts


def recorded_bounds(run) -> dict[str, float]:
    """By target, the bound on the steps that follow."""
    bounds, kept = {}, run.router.optimizer.bound

    def bound(target, reach):
        bounds[target.name] = kept(target, reach)
        return bounds[target.name]

    run.router.optimizer.bound = bound
    return bounds



@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "mixtral"])
@pytest.mark.parametrize("mode", ["route", "observe"])
def test_a_rows_push_and_shift_are_those_of_its_own_gradient(family, mode):
    run = Told(family, mode, axis="careless")
    for step in range(2):
        run.step(step)
    batches = [batch(seed=70, rows=4, environments=(2, 0)), batch(seed=71, rows=3, environments=(1, 2, 0))]
    pushes, shifts = reference(run, batches, 1, contained=mode == "route")
    norm = run.router.quarantine.norm()
    bounds = recorded_bounds(run)
    rows = run.step(2, batches).rows
    factors = [run.router.optimizer.fresh(target, bounds[target.name]) * CLIP for target in run.targets]
    push = sum(factor * each for factor, each in zip(factors, pushes, strict=True)) / norm
    shift = sum(factor * each for factor, each in zip(factors, shifts, strict=True))
    assert rows.completions_R.tolist() == list(range(10, 17)) and rows.environments_R.tolist() == [2, 0, 2, 0, 1, 2, 0]
    tolerance = EXACT if family == "gpt2" else NORM_IN_FLOAT32
    assert (rows.push_R - push).norm() < tolerance * push.norm() and push.norm() > 1e-6
    assert (rows.shift_R - shift).norm() < tolerance * shift.norm() and shift.norm() > 1e-6


@pytest.mark.parametrize("mode", ["route", "observe", "erase"])
def test_rows_of_an_environment_sum_to_what_its_fresh_gradient_did(mode):
    """`ΔC_e` less the momentum of earlier steps, with the clip coefficient and with the bound on the step acting."""
    run = Told(mode=mode, max_shift=0.05)
    beta1 = run.router.config.quarantine.betas[0]
    for step in range(3):
        run.step(step)
    old = {t.name: (t.coefficients.clone(), t.tape.mean(), run.router.optimizer.moments[t.name].clone()) for t in run.targets}
    bounds, optimizer = recorded_bounds(run), run.router.optimizer
    rows = run.step(3).rows
    norm = sum(c.square().sum() for c, *_ in old.values()).sqrt()
    for e in range(3):
        push, shift = 0.0, 0.0
        for target in run.targets:
            coefficients, mean, moment = old[target.name]
            bound = bounds[target.name]
            delta = optimizer.step(target)[e] * bound
            fresh = delta - optimizer.fresh(target, bound) / (1 - beta1) * beta1 * moment[e]
            push += (fresh * coefficients).sum() / norm
            effect = target.basis @ (fresh @ mean)
            shift += sum(effect @ run.axes.directions[layer][:, 0].double() / run.axes.scales[layer, 0].double()
                         for layer in range(target.layer, 2)) / 2
        sums = rows.sums(e)
        assert sums["own_shift"] == pytest.approx(float(shift), rel=1e-8) and shift != 0
        assert 0 <= sums["own_shift_up"] >= sums["own_shift"]
        if mode == "erase":
            assert "own_push" not in sums and rows.push_R.isnan().all(), "there is no C to grow"
        else:
            assert sums["own_push"] == pytest.approx(float(push), rel=1e-8)


def test_without_momentum_the_rows_say_all_that_the_ledger_says_to_first_order():
    run = Told(betas=(0.0, 0.999), max_shift=1e-6)
    run.router.config.quarantine.max_shift = None
    run.step(0)
    run.router.config.quarantine.max_shift = 1e-6
    row = run.step(1)
    for e, entry in enumerate(row.environments.values()):
        assert row.rows.sums(e)["own_push"] == pytest.approx(entry.push, rel=1e-4)


def test_the_first_step_has_nothing_to_compare_with():
    rows = Told().step(0).rows
    assert len(rows.completions_R) == 6 and rows.push_R.isnan().all() and rows.shift_R.isnan().all() and rows.sums(0) == {}


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("family", ["gpt2", "mixtral"])
def test_gradient_checkpointing_counts_no_row_twice(family, reentrant):
    runs = Told(family), Told(family, reentrant=reentrant)
    for step in range(3):
        plain, again = (run.step(step).rows for run in runs)
    assert again.completions_R.equal(plain.completions_R)
    torch.testing.assert_close(again.push_R, plain.push_R, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(again.shift_R, plain.shift_R, rtol=1e-6, atol=1e-12)


def test_padding_pushes_nothing():
    rows = batch(seed=3, rows=6, environments=(0, 1, 2))
    padded = Batch(torch.nn.functional.pad(rows.ids, (0, 3)), torch.nn.functional.pad(rows.mask, (0, 3)), rows.environments,
                   rows.advantages)
    runs, found = (Told(), Told()), []
    for run, last in zip(runs, (rows, padded), strict=True):
        run.step(0)
        found.append(run.step(1, [last]).rows)
    torch.testing.assert_close(found[0].push_R, found[1].push_R, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("mode", ["route", "observe", "erase"])
def test_telling_rows_apart_changes_neither_the_ledger_nor_the_weights(mode):
    told, plain = Told("llama", mode), Told("llama", mode, told=False)
    for step in range(3):
        ours, theirs = told.step(step), plain.step(step)
        assert theirs.rows is None and ours.rows is not None
        assert ours.environments == theirs.environments and ours.norm == theirs.norm
    for a, b in zip(told.model.parameters(), plain.model.parameters(), strict=True):
        assert a.equal(b)


def test_what_is_kept_of_a_row_does_not_grow_with_the_model():
    run = Told()
    run.router.begin_step(0)
    rows = batch(rows=6, environments=(0, 1, 2))
    run.router.set_batch(rows.environments, rows.mask, torch.arange(6))
    rows.loss(run.model).backward()
    for target in run.targets:
        assert [tuple(along.shape) for *_, along in target.tape.rows] == [(6, 2)]
        target.tape.clear()
        assert not target.tape.rows and target.tape.along is None


def test_a_copied_router_goes_on_with_the_same_rows():
    first = Told()
    for step in range(2):
        first.step(step)
    second = Told()
    second.model.load_state_dict(copy.deepcopy(first.model.state_dict()))
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    second.router.load_state_dict(first.router.state_dict())
    ours, theirs = first.step(2).rows, second.step(2).rows
    assert ours.push_R.equal(theirs.push_R) and ours.shift_R.equal(theirs.shift_R) and ours.push_R.isfinite().all()
