"""Law 2: who caused a routed change. Ledgers and parts against autograd and an independent float64 reference."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from routed_rl.config import QuarantineConfig
from tests.builders import FAMILIES, PROPERTY, Batch, Run, batch, by_module, relative, routed_twin, tiny
from tests.clamped import clamped_model
from tests.reference import Reference
from tests.tiers import tiered

EXACT = 1e-11
"""float64 rounding through a few thousand operations."""
NORM_IN_FLOAT32 = 2e-5
"""Hugging Face's RMSNorm casts to float32 (6e-8 a step), amplified by cancelling terms of the ledger."""


def warmed(family: str, mode: str = "route", steps: int = 2, **settings) -> Run:
    """A float64 run whose coefficients are no longer zero."""
    return Run(tiny(family, dtype=torch.float64), mode=mode, environments=3, **settings).train(steps, environments=(0, 1, 2))


def reference_ledgers(run: Run, rows: Batch, *, contained: bool) -> dict[str, torch.Tensor]:
    """Autograd's gradient of the loss masked to each environment's rows, (E, K, N) per target."""
    plain, leaves = clamped_model(run.model, run.targets, contained=contained)
    per_environment = [torch.autograd.grad(rows.loss(plain, only=e), list(leaves.values())) for e in range(run.environments)]
    return {name: torch.stack([grads[i] for grads in per_environment]) for i, name in enumerate(leaves)}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", ["route", "observe"])
def test_ledger_is_the_gradient_of_the_loss_masked_to_an_environments_rows(family, mode):
    run = warmed(family, mode)
    rows = batch(seed=50, rows=6, environments=(2, 0, 1))
    expected = reference_ledgers(run, rows, contained=mode == "route")
    run.backward(rows)
    tolerance = EXACT if family == "gpt2" else NORM_IN_FLOAT32
    for target in run.targets:
        assert target.coefficients.norm() > 1e-3
        for e in range(3):
            found, wanted = target.tape.ledger[e], expected[target.name][e]
            nobody = target.expert is not None and not wanted.any()  # No token of this environment chose the expert.
            assert not found.any() if nobody else relative(found, wanted) < tolerance


def test_contained_and_open_ledgers_differ():
    run = warmed("gpt2")
    rows = batch(seed=50, rows=6, environments=(2, 0, 1))
    contained, opened = (reference_ledgers(run, rows, contained=flag) for flag in (True, False))
    first = run.targets[0].name  # Only writers below another one can tell.
    assert relative(contained[first], opened[first]) > 1e-3


@pytest.mark.parametrize("contained", [True, False])
def test_weights_get_the_gradient_of_the_clamped_loss(contained):
    run = warmed("gpt2", contained=contained)
    rows = batch(seed=50)
    plain, _ = clamped_model(run.model, run.targets, contained=contained)
    rows.loss(plain).backward()
    run.backward(rows)
    for (name, ours), (_, theirs) in zip(run.model.named_parameters(), plain.named_parameters(), strict=True):
        if ours.requires_grad:  # A key's bias has no gradient but rounding: softmax does not see it.
            assert (ours.grad - theirs.grad).norm() < 1e-12 + EXACT * theirs.grad.norm(), name


def test_overriding_the_cotangent_makes_route_open():
    run = warmed("gpt2", contained=False)
    rows = batch(seed=50, environments=(0, 1, 2), rows=6)
    expected = reference_ledgers(run, rows, contained=False)
    run.backward(rows)
    for target in run.targets:
        assert relative(target.tape.ledger, expected[target.name]) < EXACT


@PROPERTY
@given(st.lists(st.integers(0, 2), min_size=2, max_size=6), st.integers(0, 1000))
def test_ledger_rows_sum_to_the_ledger_of_one_environment_alone(names, seed):
    model = tiny("gpt2", layers=1, dtype=torch.float64)
    apart, together = (Run(copy.deepcopy(model), environments=3) for _ in range(2))
    rows = batch(seed=seed, rows=len(names))
    rows.environments = torch.tensor(names)
    apart.backward(rows)
    rows.environments = torch.zeros(len(names), dtype=torch.long)
    together.backward(rows)
    for ours, whole in zip(apart.targets, together.targets, strict=True):
        assert relative(ours.tape.ledger.sum(0), whole.tape.ledger[0]) < EXACT
        for e in range(3):
            assert (e in names) == bool(ours.tape.ledger[e].any())  # Absent means exactly zero.


@pytest.mark.parametrize("mode", ["route", "observe"])
def test_micro_batches_accumulate_to_the_ledger_of_the_whole_batch(mode):
    run = warmed("gpt2", mode)
    whole = batch(seed=9, rows=6, environments=(0, 1, 2, 1))
    expected = reference_ledgers(run, whole, contained=mode == "route")
    tokens = (whole.mask[:, 1:] * whole.mask[:, :-1]).sum().item()
    for part in ([0, 3], [1], [2, 4, 5]):
        rows = Batch(whole.ids[part], whole.mask[part], whole.environments[part], whole.advantages[part])
        run.backward(rows, scale=(rows.mask[:, 1:] * rows.mask[:, :-1]).sum().item() / tokens)
    for target in run.targets:
        assert relative(target.tape.ledger, expected[target.name]) < EXACT


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "mixtral"])
@pytest.mark.parametrize("mode", ["route", "observe"])
def test_gradient_checkpointing_changes_nothing(family, mode, reentrant):
    plain = warmed(family, mode)
    model = copy.deepcopy(plain.model)
    model.train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model.enable_input_require_grads()
    assert model.is_gradient_checkpointing
    targets = [routed_twin(model, target) for target in plain.targets]
    context = targets[0].context
    rows = batch(seed=9)
    plain.backward(rows)
    context.set_batch(rows.environments, rows.mask, 256)
    loss = rows.loss(model)
    context.change(environment_ids_B=context.now.environment_ids_B.clone())  # Recomputation runs inside the backward.
    loss.backward()
    for ours, theirs in zip(targets, plain.targets, strict=True):
        torch.testing.assert_close(ours.tape.ledger, theirs.tape.ledger, rtol=1e-9, atol=1e-12)
        assert len(ours.tape.inputs) == len(theirs.tape.inputs) == 1  # Once a backward, not once a forward.
        torch.testing.assert_close(ours.tape.sample(), theirs.tape.sample(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_adds_exactly_zero(family):
    run = Run(tiny(family))
    rows = batch(seed=3)
    padded = Batch(torch.nn.functional.pad(rows.ids, (0, 3)), torch.nn.functional.pad(rows.mask, (0, 3)),
                   rows.environments, rows.advantages)
    seen = []
    run.targets[-1].module.register_full_backward_hook(lambda _m, _i, out: seen.append(out[0]))
    run.backward(padded)
    seen[0] = seen[0].view(*padded.mask.shape, -1)  # A mixture's rows are tokens.
    assert seen[0][:, -3:].eq(0).all() and seen[0][padded.mask == 0].eq(0).all()
    assert seen[0][padded.mask == 1].ne(0).any()
    ledgers = [target.tape.ledger.clone() for target in run.targets]
    for targets in by_module(run.targets):  # A token is in the sample of every expert that it chose.
        assert sum(len(target.tape.sample()) for target in targets) == targets[0].active * rows.mask.sum()
    for target in run.targets:
        target.tape.clear()
    run.backward(rows)
    for target, ledger in zip(run.targets, ledgers, strict=True):
        assert relative(ledger, target.tape.ledger) < 1e-5  # Another shape sums in another order.


@pytest.mark.parametrize("optimizers", ["sgd", "adamw"])
def test_parts_sum_to_the_coefficients_bit_for_bit(optimizers):
    run = Run(tiny("llama"), environments=3, optimizers=optimizers)
    for step in range(8):
        run.backward(batch(seed=step, environments=(0, 2) if step % 2 else (1, 2)))
        run.step()
        for target in run.targets:
            total = torch.zeros_like(target.coefficients)
            for part in target.parts:
                total = total + part
            assert total.equal(target.coefficients) and total.any()


def test_observed_parts_do_not_sum_to_the_coefficients():
    run = Run(tiny("llama"), mode="observe").train(3)
    for target in run.targets:
        assert relative(target.parts.sum(0), target.coefficients) > 1e-2


@pytest.mark.parametrize(("dtype", "bar"), tiered([(torch.float64, 1e-9), (torch.float32, 1e-4)], slow=[(torch.float32, 1e-4)]))
def test_parts_after_twenty_steps_are_those_of_an_independent_reference(dtype, bar):
    run = Run(tiny("gpt2", dtype=dtype), environments=3)
    reference = Reference(Run(tiny("gpt2", dtype=torch.float64), environments=3, mode="none"))
    reference.train_beside(run, 20)
    for target in run.targets:
        expected = reference.state[target.name]["C"]
        for e in range(3):
            assert expected[e].norm() > 1e-3
            assert relative(target.parts[e], expected[e]) < bar


def test_an_environment_that_never_appears_gets_no_part():
    run = Run(tiny("llama"), environments=3).train(4, environments=(0, 2))
    assert not any(target.parts[1].any() for target in run.targets)
    assert all(target.parts[2].any() for target in run.targets)


def test_a_fixed_rate_by_option_is_not_bounded():
    free = Run(tiny("llama"), config=QuarantineConfig(max_shift=None)).train(2)
    bounded = Run(tiny("llama"), config=QuarantineConfig(max_shift=0.01)).train(2)
    assert free.quarantine.norm() > 10 * bounded.quarantine.norm()
