"""Law 4: what a contained cotangent lets through, and what it does not."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from routed_rl.linalg import random_basis
from routed_rl.model.targets import decoder_layers
from tests.builders import FAMILIES, PROPERTY, WIDTH, Run, batch, random_bases, relative, tiny, writer


def cotangent(target, g: Tensor, x: Tensor, *, contained: bool = True) -> Tensor:
    """What reaches the writer's own output, read off as its bias-free weight gradient's left factor."""
    from routed_rl.routing.linear import Tap
    target.context.change(contained=contained, environment_ids_B=torch.zeros(len(x), dtype=torch.long), sample_S=torch.arange(1))
    y = torch.zeros(*x.shape[:2], g.shape[-1], dtype=g.dtype, requires_grad=True)
    (passed,) = torch.autograd.grad(Tap.apply(y * 1, x, target), y, g)
    return passed


shapes = st.tuples(st.integers(1, 9), st.integers(1, 5), st.integers(1, 3), st.integers(1, 4))


@PROPERTY
@given(shapes, st.integers(0, 10_000), st.booleans())
def test_a_contained_cotangent_has_no_component_along_the_writers_basis(shape, seed, gain):
    width, inputs, rows, tokens = shape
    rank = seed % (width + 1)
    target = writer(width, inputs, rank, gain=gain, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    g = torch.randn(rows, tokens, width, dtype=torch.float64, generator=generator)
    x = torch.randn(rows, tokens, inputs, dtype=torch.float64, generator=generator)
    passed = cotangent(target, g, x)
    assert (passed @ target.pair.write).abs().sum() < 1e-10 * (1 + g.abs().sum())
    # Nothing else is lost: what is missing was written to the ledger's side, along B.
    torch.testing.assert_close(passed + (g @ target.pair.write) @ target.pair.read.mT, g)
    assert cotangent(target, g, x, contained=False).equal(g)


def gradient_DN(target):
    module, expert = target.module, target.expert
    gradient = module.weight.grad if expert is None else module.down_proj.grad[expert]
    return gradient.mT if target.weight.transposed else gradient



@pytest.mark.parametrize("family", FAMILIES)
def test_a_writers_weights_get_no_gradient_along_the_basis(family):
    run = Run(tiny(family))
    run.backward(batch())
    opened = Run(tiny(family), contained=False)
    opened.backward(batch())
    for ours, theirs in zip(run.targets, opened.targets, strict=True):
        gradient = [gradient_DN(target) for target in (ours, theirs)]
        assert (ours.pair.write.mT @ gradient[0]).norm() < 1e-5 * gradient[0].norm()
        assert (ours.pair.write.mT @ gradient[1]).norm() > 1e-2 * gradient[1].norm()


def test_a_skip_connection_keeps_the_full_cotangent():
    run = Run(tiny("llama", layers=1), bases=[torch.eye(WIDTH)])  # Rank D: nothing goes through the writers.
    streams = []
    layer = decoder_layers(run.model)[0]
    layer.register_forward_hook(lambda _m, args, out: streams.extend([args[0], out]))
    rows = batch()
    run.context.set_batch(rows.environments, rows.mask, 256)
    run.model.get_input_embeddings().requires_grad_(True)
    loss = rows.loss(run.model)
    into, out = torch.autograd.grad(loss, streams)
    assert into.equal(out) and into.any()
    opened = Run(tiny("llama", layers=1), mode="none")
    opened.model.get_input_embeddings().requires_grad_(True)
    streams.clear()
    decoder_layers(opened.model)[0].register_forward_hook(lambda _m, args, out: streams.extend([args[0], out]))
    into, out = torch.autograd.grad(rows.loss(opened.model), streams)
    assert relative(into, out) > 1e-2


def test_with_a_full_rank_basis_nothing_reaches_a_writers_weights():
    full = random_bases(2, rank=WIDTH)
    run = Run(tiny("llama"), bases=full)
    before = [t.weight.matrix().clone() for t in run.targets]
    for step in range(5):
        run.backward(batch(seed=step))
        for target in run.targets:
            assert target.module.weight.grad.norm() < 1e-6 * target.tape.ledger.norm()
        run.step()
    for target, weight in zip(run.targets, before, strict=True):
        # Adam makes steps of its own size out of rounding; the correction takes them back.
        assert relative(target.weight.matrix(), weight) < 1e-6
        assert target.coefficients.norm() > 1e-2


@pytest.mark.parametrize("mode", ["route", "observe", "erase"])
def test_with_rank_zero_everything_reaches_the_weights(mode):
    empty = [torch.zeros(WIDTH, 0)] * 2
    model = tiny("llama")
    routed = Run(copy.deepcopy(model), bases=empty, mode=mode).train(5)
    plain = Run(model, mode="none").train(5)
    assert all(p.equal(q) for p, q in zip(plain.model.parameters(), routed.model.parameters(), strict=True))


def _loss_on_an_axis(run: Run, axis: Tensor, seed: int) -> Tensor:
    """The last layer's output along one direction of the stream, before the final norm; the sample depends on the seed."""
    outputs: list[Tensor] = []
    hook = decoder_layers(run.model)[-1].register_forward_hook(lambda _m, _a, out: outputs.append(out))
    rows = batch(seed=seed)
    run.context.set_batch(rows.environments, rows.mask, 256)
    run.model(input_ids=rows.ids, attention_mask=rows.mask)
    hook.remove()
    return (outputs[0] @ axis)[rows.mask.bool()].mean()


def _train_on_an_axis(mode: str, optimizers: str, *, shared: bool) -> tuple[Run, list[float]]:
    bases = random_bases(2, shared=shared)
    run = Run(tiny("llama"), mode=mode, bases=bases, optimizers=optimizers)
    before = [p.detach().clone() for p in run.model.parameters()]
    for step in range(4):
        _loss_on_an_axis(run, bases[-1][:, 0], step).backward()
        run.step()
    return run, [(p - q).norm().item() for p, q in zip(run.model.parameters(), before, strict=True)]


@pytest.mark.parametrize("mode", ["erase", "route"])
def test_a_loss_on_an_axis_of_a_shared_basis_moves_no_weight(mode):
    run, moved = _train_on_an_axis(mode, "sgd", shared=True)
    assert max(moved) < 1e-5  # float32 rounding of cotangents of size 1, at rate 0.03.
    assert run.drift() < 2e-7
    assert (run.quarantine.norm() > 1e-2) == (mode == "route")


def test_a_loss_on_an_axis_moves_weights_below_where_bases_differ_by_layer():
    _, moved = _train_on_an_axis("erase", "sgd", shared=False)
    assert max(moved) > 1e-3


def test_a_loss_on_an_axis_moves_writers_inside_the_subspace_without_routing():
    run, _ = _train_on_an_axis("none", "sgd", shared=True)
    assert run.drift() > 1e-3


def test_a_basis_that_spans_later_ones_contains_what_would_leak_through_later_layers():
    leaked = {}
    last = random_bases(1, rank=2, seed=3)[0]
    first = random_basis(WIDTH, 2, torch.Generator().manual_seed(4))
    both = torch.linalg.qr(torch.cat([first, last], 1)).Q
    for name, bases in {"per layer": [first, last], "spanning": [both, last]}.items():
        run = Run(tiny("llama"), bases=bases)
        _loss_on_an_axis(run, last[:, 0], 0).backward()
        leaked[name] = sum(t.module.weight.grad.norm().item() for t in run.targets)
    assert leaked["spanning"] < 1e-5 < 1e-2 < leaked["per layer"]
