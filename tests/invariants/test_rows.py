"""What each completion did: rows of the router against a slow reference, one backward a row, in float64."""

from __future__ import annotations

import copy

import pytest
import torch

from routed_rl.config import QuarantineConfig
from routed_rl.ranks import RANKS
from routed_rl.routing import StepRows
from routed_rl.routing.optimizer import Step
from routed_rl.routing.router import AWAY
from tests.builders import Batch, Run, batch, tiny
from tests.clamped import clamped_model

EXACT = 1e-10
"""float64 rounding through a few thousand operations."""
NORM_IN_FLOAT32 = 5e-5
"""Hugging Face's RMSNorm casts to float32, amplified by cancelling terms."""
SHARES = (2 / 3, 1 / 3)
"""Of the builder's two layers in a mean over layers."""


def told(family: str = "gpt2", mode: str = "route", *, rows: bool = True, axis: str | None = None,
         reentrant: bool | None = None, **settings) -> Run:
    """A float64 run that tells its completions apart, and whose clipping acts."""
    run = Run(tiny(family, dtype=torch.float64), mode=mode, environments=3, clip=0.01, rows=rows, axis=axis,
              config=QuarantineConfig(**settings))
    if reentrant is not None:
        run.model.train()
        run.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        run.model.enable_input_require_grads()
    return run


def step(run: Run, batches: list[Batch] | None = None) -> StepRows:
    """Micro-batches whose rows are numbered through, from 10 on."""
    first = 10
    for rows in batches or [batch(seed=run.steps, rows=6, environments=(0, 1, 2))]:
        run.backward(rows, first=first)
        first += len(rows.ids)
    run.row = run.step()
    assert run.coefficient < 0.5
    return run.did


def reference(run: Run, batches: list[Batch], axis: int, *, contained: bool) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
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
        stream = ledgers @ target.tape.mean() @ target.pair.basis.mT  # of two layers: the first writes into both
        shifts.append(sum(SHARES[layer] * stream @ run.axes.directions[layer][:, axis].double()
                          / run.axes.scales[layer, axis].double() for layer in range(target.layer, 2)))
    return pushes, shifts


def recorded_steps(run: Run) -> list[Step]:
    """What the optimizer's next step is, by target."""
    recorded, step = [], run.router.optimizer.step
    run.router.optimizer.step = lambda ledgers, rates: recorded.extend(step(ledgers, rates)) or recorded
    return recorded


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "mixtral"])
@pytest.mark.parametrize("mode", ["route", "observe"])
def test_a_rows_push_and_shift_are_those_of_its_own_gradient(family, mode):
    run = told(family, mode, axis="careless")
    for _ in range(2):
        step(run)
    batches = [batch(seed=70, rows=4, environments=(2, 0)), batch(seed=71, rows=3, environments=(1, 2, 0))]
    pushes, shifts = reference(run, batches, 1, contained=mode == "route")
    norm = run.router.quarantine.norm()
    steps = recorded_steps(run)
    rows = step(run, batches)
    factors = [one.fresh_E[0].item() * run.coefficient for one in steps]
    push = sum(factor * each for factor, each in zip(factors, pushes, strict=True)) / norm
    shift = sum(factor * each for factor, each in zip(factors, shifts, strict=True))
    assert rows.completions_R.tolist() == list(range(10, 17)) and rows.environments_R.tolist() == [2, 0, 2, 0, 1, 2, 0]
    tolerance = EXACT if family == "gpt2" else NORM_IN_FLOAT32
    assert (rows.push_R - push).norm() < tolerance * push.norm() and push.norm() > 1e-6
    assert (rows.shift_R - shift).norm() < tolerance * shift.norm() and shift.norm() > 1e-6


@pytest.mark.parametrize("mode", ["route", "observe", "erase"])
def test_rows_of_an_environment_sum_to_what_its_fresh_gradient_did(mode):
    """`ΔC_e` less the momentum of earlier steps, with the clip coefficient and with the bound on the step acting."""
    run = told(mode=mode, max_shift=0.05)
    beta1 = run.config.betas[0]
    for _ in range(3):
        step(run)
    old = [(t.coefficients.clone(), t.tape.mean(), run.router.optimizer.moments[t.name].first_EKN) for t in run.targets]
    steps = recorded_steps(run)
    rows = step(run)
    norm = sum(c.square().sum() for c, *_ in old).sqrt()
    for e in range(3):
        push, shift = 0.0, 0.0
        for target, (coefficients, mean, moment), (delta, factor) in zip(run.targets, old, steps, strict=True):
            fresh = delta[e] - factor[e] / (1 - beta1) * beta1 * moment[e]
            push += (fresh * coefficients).sum() / norm
            effect = target.pair.basis @ (fresh @ mean)
            shift += sum(SHARES[layer] * effect @ run.axes.directions[layer][:, 0].double()
                         / run.axes.scales[layer, 0].double() for layer in range(target.layer, 2))
        sums = rows.sums(e)
        assert sums["own_shift"] == pytest.approx(float(shift), rel=1e-8) and shift != 0
        assert 0 <= sums["own_shift_up"] >= sums["own_shift"]
        if mode == "erase":
            assert "own_push" not in sums and rows.push_R.isnan().all(), "there is no C to grow"
        else:
            assert sums["own_push"] == pytest.approx(float(push), rel=1e-8)


def test_without_momentum_the_rows_say_all_that_the_ledger_says_to_first_order():
    run = told(betas=(0.0, 0.999), max_shift=1e-6)
    run.config.max_shift = None
    step(run)
    run.config.max_shift = 1e-6
    rows = step(run)
    for e in range(3):
        assert rows.sums(e)["own_push"] == pytest.approx(run.row[f"ledger/env{e}/push"], rel=1e-4)


def test_the_first_step_has_nothing_to_compare_with():
    rows = step(told())
    assert len(rows.completions_R) == 6 and rows.push_R.isnan().all() and rows.shift_R.isnan().all() and rows.sums(0) == {}


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("family", ["gpt2", "mixtral"])
def test_gradient_checkpointing_counts_no_row_twice(family, reentrant):
    runs = told(family), told(family, reentrant=reentrant)
    for _ in range(3):
        plain, again = (step(run) for run in runs)
    assert again.completions_R.equal(plain.completions_R)
    torch.testing.assert_close(again.push_R, plain.push_R, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(again.shift_R, plain.shift_R, rtol=1e-6, atol=1e-12)


def test_padding_pushes_nothing():
    rows = batch(seed=3, rows=6, environments=(0, 1, 2))
    padded = Batch(torch.nn.functional.pad(rows.ids, (0, 3)), torch.nn.functional.pad(rows.mask, (0, 3)), rows.environments,
                   rows.advantages)
    found = []
    for last in (rows, padded):
        run = told()
        step(run)
        found.append(step(run, [last]))
    torch.testing.assert_close(found[0].push_R, found[1].push_R, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("mode", ["route", "observe", "erase"])
def test_telling_rows_apart_changes_neither_the_ledger_nor_the_weights(mode):
    apart, plain = told("llama", mode), told("llama", mode, rows=False)
    for _ in range(3):
        ours, theirs = step(apart), step(plain)
        assert theirs is None and ours is not None
        assert {key: value for key, value in apart.row.items() if not key.startswith("completions/")} == plain.row
    for a, b in zip(apart.model.parameters(), plain.model.parameters(), strict=True):
        assert a.equal(b)


def test_what_is_kept_of_a_row_does_not_grow_with_the_model():
    run = told()
    run.backward(batch(rows=6, environments=(0, 1, 2)))
    for target in run.targets:
        assert [tuple(along.shape) for *_, along in target.tape.rows] == [(6, 2)]
        target.tape.clear()
        assert not target.tape.rows and target.tape.along is None


def test_a_step_reports_the_sums_of_each_environments_rows_and_the_bytes_of_this_step_alone(monkeypatch):
    monkeypatch.setattr(RANKS, "bytes", 7)
    run = told()
    step(run)
    rows = step(run)
    own = {key: value for key, value in run.row.items() if key.startswith("completions/")}
    sums = [rows.sums(e) for e in range(3)]
    for e, each in enumerate(sums):
        each["own_shift_z"], push = (each[key] / each.pop(f"{key}_square") ** 0.5 for key in ("own_shift", "own_push"))
        taught = min(each["own_shift_z"], push)
        each["evidence"] = taught if run.row[f"ledger/env{e}/shift/hacker"] >= -AWAY else min(taught, 0.0)
    assert own == {f"completions/env{e}/{key}": value for e, each in enumerate(sums) for key, value in each.items()}
    assert len(own) == 15 and "routing/bytes" not in run.row


def test_a_copied_router_goes_on_with_the_same_rows():
    first, second = told(), told()
    for _ in range(2):
        step(first)
    second.steps = 2
    second.model.load_state_dict(copy.deepcopy(first.model.state_dict()))
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    second.router.load_state_dict(first.router.state_dict())
    ours, theirs = step(first), step(second)
    assert ours.push_R.equal(theirs.push_R) and ours.shift_R.equal(theirs.shift_R) and ours.push_R.isfinite().all()


@pytest.mark.parametrize("another", [False, True])
def test_what_an_environment_takes_back_of_its_own_part_is_no_evidence(another):
    """A secure one moves away while another is fast, and later back to where it was. Until another was fast a part that is
    nearly at 0 stands nowhere: that of a leaky environment may be, and then its pull is seen."""
    run, seen = told(), set()
    for _ in range(16):
        run.router.pace.fast_E[1] = float(another)
        step(run)
        for e in range(3):
            if f"completions/env{e}/evidence" not in run.row:
                continue  # in the first step there is no mean input yet
            own = [run.row[f"completions/env{e}/own_{key}"] for key in ("shift", "push")]
            found, stands = run.row[f"completions/env{e}/evidence"], run.row[f"ledger/env{e}/shift/hacker"]
            if min(own) > 0:
                seen.add("away" if stands < -AWAY else "nowhere" if stands < 0 else "towards")
                assert (found == 0.0) == (stands < (0.0 if another and e != 1 else -AWAY))
            else:
                seen.add("no growth" if max(own) > 0 else "no pull")
                assert found < 0.0
    assert seen >= {"away", "nowhere", "towards", "no growth"}, "all came up"
