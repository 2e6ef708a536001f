"""Law 3: with routing only observed the policy is the unrouted run; a swapped module computes what it did before."""

import copy

import pytest
import torch

from routed_rl.model.targets import freeze
from tests.builders import FAMILIES, FROZEN, OPTIMIZERS, Run, batch, columns, relative, tiny


def effective(run: Run) -> dict[str, torch.Tensor]:
    """`W + A C` of every writer, float64."""
    return {t.name: columns(t.module, t) + t.pair.write.double() @ t.coefficients.double() for t in run.targets}


def follow(family: str, optimizers: str, mode: str, steps: int = 12, dtype=torch.float32) -> tuple[Run, Run]:
    model = tiny(family, dtype=dtype)
    return (Run(copy.deepcopy(model), mode="none", optimizers=optimizers).train(steps),
            Run(model, mode=mode, optimizers=optimizers).train(steps))


@pytest.mark.parametrize("optimizers", OPTIMIZERS)
def test_the_observed_policy_is_the_unrouted_run(optimizers):
    plain, observed = follow("llama", optimizers, "observe")
    start = {t.name: columns(m, t) for t in plain.targets for m in [tiny("llama").get_submodule(t.name)]}
    for name, weight in effective(plain).items():
        # Of the movement, not of the weight, which is 10 to 100 times larger than its movement: hence 1e-5 for 1e-7.
        assert relative(effective(observed)[name] - start[name], weight - start[name]) < 5e-5
    others = [(n, p) for n, p in plain.model.named_parameters() if n.rpartition(".")[0] not in effective(plain)]
    for name, parameter in others:
        torch.testing.assert_close(observed.model.get_parameter(name), parameter, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("optimizers", ["sgd", "adamw with weight decay"])
def test_the_observed_policy_is_the_unrouted_run_exactly_in_float64(optimizers):
    plain, observed = follow("gpt2", optimizers, "observe", dtype=torch.float64)
    for name, weight in effective(plain).items():
        assert relative(effective(observed)[name], weight) < 1e-11


@pytest.mark.parametrize("apart", [False, True])
def test_rate_and_weight_decay_of_a_writer_and_of_its_bias_are_those_of_their_own_groups(apart):
    """One group, which decays biases too, or one for each parameter."""
    model, runs = tiny("gpt2", dtype=torch.float64), list[Run]()
    for mode in ("none", "observe"):
        run = Run(copy.deepcopy(model), mode=mode)
        own = [{"params": [parameter], "lr": 2e-3 * (1 + place % 3), "weight_decay": 4.0 * (place % 4)}
               for place, parameter in enumerate(run.parameters)]
        run.optimizer = torch.optim.AdamW(own if apart else run.parameters, lr=3e-3, weight_decay=8.0)
        runs.append(run.train(4))
    plain, observed = map(effective, runs)
    assert all(relative(observed[name], weight) < 1e-11 for name, weight in plain.items())


def test_a_decay_of_zero_for_the_bias_column_follows_an_optimizer_that_spares_biases():
    from routed_rl.routing.modes import observe_step
    from tests.builders import writer
    target = writer(bias=True)
    before = columns(target.module, target) + target.pair.write @ target.coefficients
    decay = torch.tensor([0.1] * 5 + [0.0], dtype=torch.float64)
    with torch.no_grad():
        target.module.weight.mul_(0.9)
    observe_step(target, torch.zeros_like(target.parts), decay)
    after = columns(target.module, target) + target.pair.write @ target.coefficients
    torch.testing.assert_close(after, before * (1 - decay), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", ["route", "erase"])
def test_the_routed_policy_is_not_the_unrouted_run(mode):
    plain, routed = follow("llama", "adamw", mode)
    assert max(relative(effective(routed)[name], weight) for name, weight in effective(plain).items()) > 1e-2


def test_without_routing_a_run_is_the_stock_trajectory_bit_for_bit():
    stock = tiny("llama")
    freeze(stock, FROZEN)
    optimizer = OPTIMIZERS["adamw"]([p for p in stock.parameters() if p.requires_grad])
    for step in range(3):
        batch(seed=step).loss(stock).backward()
        optimizer.step()
        optimizer.zero_grad()
    run = Run(tiny("llama"), mode="none").train(3)
    assert all(p.equal(q) for p, q in zip(stock.parameters(), run.model.parameters(), strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_an_empty_quarantine_leaves_the_logits_bit_for_bit(family):
    model, rows = tiny(family), batch()
    with torch.no_grad():
        before = model(input_ids=rows.ids, attention_mask=rows.mask).logits
    run = Run(model)
    with torch.no_grad():
        assert model(input_ids=rows.ids, attention_mask=rows.mask).logits.equal(before)
    run.context.set_batch(rows.environments, rows.mask, 256)
    assert model(input_ids=rows.ids, attention_mask=rows.mask).logits.equal(before)
    run.targets[0].coefficients.normal_()
    assert not model(input_ids=rows.ids, attention_mask=rows.mask).logits.equal(before)
