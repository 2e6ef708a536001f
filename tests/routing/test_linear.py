"""The tap: what a routed writer computes, passes on and writes down."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import linear

from routed_rl.routing.linear import RoutedModule, route_module, unroute_module
from tests.builders import PROPERTY, Run, batch, relative, tiny, writer
from tests.clamped import clamped_forward

KINDS = {"plain": {}, "bias": {"bias": True}, "conv1d": {"transposed": True}, "gain": {"gain": True},
         "bias and gain": {"bias": True, "gain": True}}
ONE_LAYER = st.tuples(st.integers(1, 7), st.integers(1, 5), st.integers(1, 4), st.integers(1, 3))


def named(target, ids, tokens: int) -> None:
    target.context.set_batch(torch.tensor(ids), torch.ones(len(ids), tokens), 1000)


@PROPERTY
@given(ONE_LAYER, st.sampled_from(sorted(KINDS)), st.booleans(), st.integers(0, 10_000))
def test_a_routed_writer_is_autograds_detach_form_in_every_shape(shape, kind, contained, seed):
    width, inputs, rows, tokens = shape
    target = writer(width, inputs, rank=seed % (width + 1), seed=seed, **KINDS[kind])
    module, generator = target.module, torch.Generator().manual_seed(seed)
    x = torch.randn(rows, tokens, inputs, generator=generator, dtype=torch.float64, requires_grad=True)
    g = torch.randn(rows, tokens, width, generator=generator, dtype=torch.float64)
    leaf = target.coefficients.clone().requires_grad_(True)
    expected = clamped_forward(module, target, leaf, contained)(x)
    wanted = torch.autograd.grad(expected, [leaf, x, *module.parameters()], g, allow_unused=True)

    route_module(module, target)
    target.context.change(contained=contained)
    named(target, [seed % 3] * rows, tokens)
    found = module(x)
    got = torch.autograd.grad(found, [x, *module.parameters()], g)
    close = {"rtol": 1e-11, "atol": 1e-11}  # float64 rounding.
    torch.testing.assert_close(found, expected, **close)
    torch.testing.assert_close(target.tape.ledger[seed % 3], wanted[0], **close)
    for ours, theirs in zip(got, wanted[1:], strict=True):
        torch.testing.assert_close(ours, torch.zeros_like(ours) if theirs is None else theirs, **close)


@pytest.mark.parametrize("kind", KINDS)
def test_the_quarantine_is_one_more_term_of_the_output(kind):
    target = writer(**KINDS[kind])
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    plain = target.module(x)
    route_module(target.module, target)
    full = torch.cat([x, torch.ones(2, 3, 1, dtype=torch.float64)], -1) if target.has_bias else x
    torch.testing.assert_close(target.module(x), plain + full @ target.coefficients.mT @ target.pair.write.mT)
    target.context.change(ablated=True)
    assert target.module(x).equal(plain)


def test_an_ablated_forward_with_taps_gives_the_deployed_gradients_and_still_fills_the_ledger():
    target, x = writer(), torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    g = torch.randn(2, 3, 6, dtype=torch.float64)
    deployed = target.module(x)
    plain = torch.autograd.grad(deployed, x, g)[0]
    route_module(target.module, target)
    target.context.change(ablated=True, contained=False)
    named(target, [0, 1], 3)
    y = target.module(x)
    assert y.equal(deployed)
    target.context.change(ablated=False)  # What counts is the forward's state, as with the environments.
    torch.testing.assert_close(torch.autograd.grad(y, x, g)[0], plain, rtol=0, atol=0)
    assert target.tape.ledger[:2].any()


def test_the_backward_books_to_the_environments_its_forward_had():
    target, x = writer(), torch.randn(2, 3, 5, dtype=torch.float64)
    route_module(target.module, target)
    named(target, [1, 1], 3)
    y = target.module(x)
    named(target, [0, 2], 3)
    y.sum().backward()
    assert target.tape.ledger[1].any() and not target.tape.ledger[[0, 2]].any()


def test_a_batch_of_other_rows_than_named_is_refused():
    target = writer()
    route_module(target.module, target)
    named(target, [0, 1, 2], 3)
    with pytest.raises(AssertionError, match="2 rows reached a tap but 3 environment ids are set"):
        target.module(torch.randn(2, 3, 5, dtype=torch.float64)).sum().backward()


def test_without_environments_nothing_is_written_and_gradients_are_the_policys():
    target, x = writer(), torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    route_module(target.module, target)
    g = torch.randn(2, 3, 6, dtype=torch.float64)
    merged = target.module.weight.detach() + target.pair.write @ target.coefficients
    torch.testing.assert_close(torch.autograd.grad(target.module(x), x, g)[0], g @ merged)
    assert not target.tape.fired and not target.tape.ledger.any() and not target.tape.inputs


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_generation_writes_nothing_on_the_tape_and_follows_the_policy(family):
    run = Run(tiny(family)).train(2)
    rows = batch()
    run.context.set_batch(rows.environments, rows.mask, 256)  # Left over from the last loss, as in a trainer.
    before = [target.tape.mean_input.clone() for target in run.targets]
    kinds = dict(attention_mask=rows.mask, max_new_tokens=6, do_sample=False, pad_token_id=0)
    policy = run.model.generate(rows.ids, **kinds)
    for target, mean in zip(run.targets, before, strict=True):
        assert not target.tape.fired and not target.tape.inputs and not target.tape.ledger.any()
        assert target.tape.mean_input.equal(mean)
    run.targets[-1].coefficients.mul_(1000)
    assert not run.model.generate(rows.ids, **kinds).equal(policy)  # The quarantine does take part.
    rows.loss(run.model).backward()
    assert all(target.tape.fired for target in run.targets)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("contained", [True, False])
def test_under_bf16_autocast_ledgers_and_gradients_stay_float32_and_close(family, contained):
    exact, rounded = (Run(tiny(family), contained=contained).train(2) for _ in range(2))
    exact.backward(batch(9))
    with torch.autocast("cpu", torch.bfloat16):
        loss_inputs = batch(9)
        rounded.context.set_batch(loss_inputs.environments, loss_inputs.mask, 256)
        loss = loss_inputs.loss(rounded.model)
    loss.backward()
    for ours, theirs in zip(rounded.targets, exact.targets, strict=True):
        assert ours.tape.ledger.dtype == ours.tape.sample().dtype == torch.float32
        assert ours.module.weight.grad.dtype == torch.float32
        # bf16 keeps 8 bits (4e-3); a few layers of it add up. A lost environment or layer would be of order 1.
        assert relative(ours.tape.ledger, theirs.tape.ledger) < 0.1
    rounded.step()
    assert rounded.drift() < 1e-6  # The weights themselves are never rounded to bf16.


def test_under_bf16_autocast_the_ledgers_products_are_float32():
    target = writer(width=32, inputs=40, dtype=torch.float32)
    route_module(target.module, target)
    named(target, [0, 1, 0, 1], 50)
    x, g = torch.randn(4, 50, 40), torch.randn(4, 50, 32).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y = target.module(x)
    assert y.dtype == torch.bfloat16
    y.backward(g)
    for e in (0, 1):
        rows = g[[e, e + 2]].double() @ target.pair.write.double()
        expected = torch.einsum("btk,btn->kn", rows, x[[e, e + 2]].double())
        assert relative(target.tape.ledger[e], expected) < 1e-5  # bf16 products would be off by 1e-3.


def test_gradients_flow_to_earlier_layers_exactly_as_without_a_tap_when_open_and_empty():
    tapped, plain = Run(tiny("llama"), contained=False), Run(tiny("llama"), mode="none")
    for run in (tapped, plain):
        run.backward(batch())
    for ours, theirs in zip(tapped.parameters, plain.parameters, strict=True):
        assert ours.grad.equal(theirs.grad)


def test_routing_swaps_the_class_and_unrouting_swaps_it_back():
    target = writer()
    module = target.module
    route_module(module, target)
    assert type(module).__name__ == "RoutedLinear" and isinstance(module, nn.Linear) and isinstance(module, RoutedModule)
    assert list(module.state_dict()) == ["weight"]
    with pytest.raises(AssertionError, match="routed already"):
        route_module(module, target)
    unroute_module(module)
    assert type(module) is nn.Linear and "routed_target" not in vars(module)


def test_inference_mode_computes_the_policy():
    target, x = writer(), torch.randn(2, 3, 5, dtype=torch.float64)
    route_module(target.module, target)
    expected = linear(x, target.module.weight.detach() + target.pair.write @ target.coefficients)
    with torch.inference_mode():
        torch.testing.assert_close(target.module(x), expected)
