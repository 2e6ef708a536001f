"""Practice: rows that the deployed model rolls out and learns, beside rows of the policy in one batch. In float64."""

import pytest
import torch
from torch import Tensor

from routed_rl.config import QuarantineConfig
from routed_rl.routing.pace import ALLOWANCE, BEGIN, FULL, MOST, RESTORING, SLOW, Pace
from tests.builders import Batch, Run, batch, tiny

PRACTISING = torch.tensor([False, True, True, False, True, False])
NAMES = ["gemma2", "gpt2", "llama", "mixtral"]
MIXTURES = [name for name in NAMES if any(target.expert is not None for target in Run(tiny(name)).targets)]
"""Whose experts get the tokens of all rows in one product, which rounds by how many there are."""


def mixed(seed: int = 0, other: int | None = None) -> Batch:
    """Six rows of three environments; with `other` the rows that practise say something else."""
    rows = batch(seed=seed, rows=6, environments=(0, 1, 2))
    if other is not None:
        theirs = batch(seed=other, rows=6, environments=(0, 1, 2))
        rows.ids = torch.where(PRACTISING[:, None], theirs.ids, rows.ids)
        rows.advantages = torch.where(PRACTISING, theirs.advantages, rows.advantages)
    return rows


def trained(family: str = "llama") -> Run:
    """A run whose quarantine is not empty."""
    return Run(tiny(family, dtype=torch.float64), environments=3, rows=True, control=1).train(
        2, rows=6, environments=(0, 1, 2))


def backward(run: Run, rows: Batch, practising: Tensor | None) -> None:
    run.begin()
    run.router.set_batch(rows.environments, rows.mask, torch.arange(len(rows.ids)), practising)
    rows.loss(run.model).backward()


def alike(one: Tensor, other: Tensor, family: str) -> bool:
    """To the bit; of a mixture to rounding."""
    return torch.allclose(one, other, rtol=1e-6, atol=1e-9) if family in MIXTURES else one.equal(other)


def gradients(run: Run) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in run.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", NAMES)
def test_a_row_that_practises_leaves_ledger_parts_and_moments_as_they_are_to_the_bit(family):
    first, second = trained(family), trained(family)
    backward(first, mixed(9), PRACTISING)
    backward(second, mixed(9, other=77), PRACTISING)
    weights = gradients(first), gradients(second)
    assert not all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0]), "they taught the weights nothing"
    for one, other in zip(first.targets, second.targets, strict=True):
        assert alike(one.tape.ledger, other.tape.ledger, family) and one.tape.ledger.any()
    for each in (first, second):  # as if the weights had not been taught otherwise
        for parameter in each.model.parameters():
            parameter.grad = None
        each.step()
    for one, other in zip(first.targets, second.targets, strict=True):
        assert alike(one.parts, other.parts, family) and alike(one.coefficients, other.coefficients, family)
        ours, theirs = (run.router.optimizer.moments[one.name] for run in (first, second))
        assert alike(ours.first_EKN, theirs.first_EKN, family) and alike(ours.second, theirs.second, family)
    assert first.did.completions_R.tolist() == [0, 3, 5], "rows that practise are not among those that pushed"


@pytest.mark.parametrize("family", NAMES)
@pytest.mark.parametrize("contained", [True, False])
def test_a_batch_of_both_kinds_has_the_gradient_of_the_two_batches_apart(family, contained):
    together, policy, deployed = (trained(family) for _ in range(3))
    for run in (together, policy, deployed):
        run.context.change(contained=contained)
    rows = mixed(9)
    backward(together, rows, PRACTISING)
    kept = [Batch(rows.ids, rows.mask, rows.environments, rows.advantages * mine) for mine in (~PRACTISING, PRACTISING)]
    backward(policy, kept[0], None)
    deployed.context.change(contained=False)  # it has no quarantine that could learn what is inside the subspace
    with deployed.quarantine.ablated():
        backward(deployed, kept[1], None)
    ours, theirs, others = gradients(together), gradients(policy), gradients(deployed)
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name] + others[name], rtol=1e-5, atol=1e-7)
    for one, other in zip(together.targets, policy.targets, strict=True):
        torch.testing.assert_close(one.tape.ledger, other.tape.ledger, rtol=1e-6, atol=1e-12)
        torch.testing.assert_close(one.tape.control_energies(), other.tape.control_energies(), rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("family", NAMES)
def test_a_row_that_practises_is_the_deployed_model_and_every_other_the_policy(family):
    run, rows = trained(family), mixed(9)

    def logits() -> Tensor:
        with torch.no_grad():
            return run.model(input_ids=rows.ids, attention_mask=rows.mask, use_cache=False).logits

    policy = logits()
    with run.quarantine.ablated():
        deployed = logits()
    with run.context.practising(PRACTISING):
        found = logits()
    assert alike(found[PRACTISING], deployed[PRACTISING], family) and alike(found[~PRACTISING], policy[~PRACTISING], family)
    assert not policy.equal(deployed) and logits().equal(policy), "the policy is back after the block"


def test_no_row_practises_is_the_step_without_practice_to_the_bit():
    first, second = trained(), trained()
    backward(first, mixed(9), torch.zeros(6, dtype=torch.bool))
    backward(second, mixed(9), None)
    assert first.step() == second.step()


def test_where_every_row_practises_the_quarantine_learns_nothing():
    run = trained()
    for target in run.targets:
        target.parts.zero_()
        target.coefficients.zero_()
    backward(run, mixed(9), torch.ones(6, dtype=torch.bool))
    row = run.step()
    assert row["quarantine/norm"] == 0.0 and all(not target.coefficients.any() for target in run.targets)


def see(pace: Pace, *evidence: float, shift: float = 0.0) -> list[float]:
    """The pace of both environments after one step: `a` has this evidence, and `shift`."""
    row = {f"completions/{name}/{key}": each for name, each in zip("ab", evidence, strict=True)
           for key in ("evidence", "own_shift_z")}
    found = pace.see(row | {"ledger/a/shift/persona": shift, "ledger/b/shift/persona": 0.0})
    return [found["ledger/a/pace"], found["ledger/b/pace"]]


def new_pace() -> Pace:
    return Pace(QuarantineConfig(), ["a", "b"], "persona", follows=True)


def test_a_part_is_fast_only_while_its_own_environment_pulls_step_after_step():
    pace = new_pace()
    assert pace.rates(1e-4).tolist() == pytest.approx([SLOW * 1e-4] * 2), "it begins slowly"
    assert see(pace, FULL + ALLOWANCE, 0.5) == [1.0, 0.0]
    assert pace.rates(1e-4).tolist() == pytest.approx([0.03, SLOW * 1e-4])
    for _ in range(20):
        see(pace, 9.0, -0.5)
    assert see(pace, 0.0, 0.0)[0] == 0.0, "it is slow at once in a step without a pull, when only momentum would move it"
    assert see(pace, 0.1, 0.0)[0] > 0.0, "and fast at once when the pull comes back"
    for _ in range(int(MOST / ALLOWANCE)):
        see(pace, 0.0, 0.0)
    assert see(pace, 0.1, 0.0)[0] == 0.0, "until what it had pulled is forgotten"
    little = [0.9 * ALLOWANCE, -0.9 * ALLOWANCE] * 20
    assert all(see(pace, one, -one) == [0.0, 0.0] for one in little), "what a pull of no meaning has is not summed up"


def test_once_one_part_was_fast_another_needs_twice_the_pull():
    pace = new_pace()
    assert see(pace, 9.0, 0.0) == [1.0, 0.0]
    for _ in range(30):
        assert see(pace, 0.0, 1.9 * ALLOWANCE)[1] == 0.0
    assert see(pace, 0.0, FULL + 2 * ALLOWANCE)[1] == 1.0


def test_a_part_that_pulls_away_is_fast_only_to_take_back_what_others_pushed():
    pace = new_pace()
    for _ in range(9):
        assert see(pace, 0.0, -9.0) == [0.0, 0.0], "there is nothing to take back"
    assert see(pace, 0.0, -9.0, shift=RESTORING / 2)[1] == 0.5
    assert see(pace, 0.0, -9.0, shift=9.0)[1] == 1.0


def test_between_slow_and_fast_the_rate_goes_by_powers_and_no_rate_is_above_full():
    pace = new_pace()
    see(pace, ALLOWANCE + (BEGIN + FULL) / 2, 0.0)
    assert pace.rates(3e-4 / SLOW).tolist() == pytest.approx([3e-3, 3e-4])  # half way from 3e-4 to 3e-2
    assert pace.rates(0.0).tolist() == [0.015, 0.0] and pace.rates(1.0).tolist() == [0.03, 0.03]


def test_the_pace_goes_on_from_a_saved_state_and_the_fast_one_never_changes():
    first, second = new_pace(), new_pace()
    see(first, 4.0, -6.0)
    second.load_state_dict(first.state_dict())
    assert see(first, 2.0, -1.0, shift=1.0) == see(second, 2.0, -1.0, shift=1.0)
    fast = Pace(QuarantineConfig(pace="fast"), ["a", "b"], "persona", follows=False)
    assert see(fast, -9.0, -9.0) == [1.0, 1.0]
