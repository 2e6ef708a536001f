"""The tape: sampled inputs, their mean, and how the subspace compares with random ones."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from routed_rl.routing.context import RoutingContext
from routed_rl.routing.linear import route_module
from routed_rl.routing.tape import MEAN_DECAY
from tests.builders import PROPERTY, Run, batch, exact_inside, relative, tiny, writer


@PROPERTY
@given(st.lists(st.lists(st.integers(0, 1), min_size=5, max_size=5), min_size=1, max_size=8), st.integers(1, 50))
def test_the_sample_holds_real_tokens_only_at_most_as_many_as_asked_and_spread_out(mask, wanted):
    context, mask = RoutingContext(), torch.tensor(mask)
    context.set_batch(torch.zeros(len(mask), dtype=torch.long), mask, wanted)
    sample, real = context.now.sample_S, int(mask.sum())
    assert mask.flatten()[sample].all() and len(set(sample.tolist())) == len(sample) <= wanted
    assert len(sample) >= min(real, wanted) / 2
    stride = -(-real // wanted)
    assert len(sample) < 2 or sample.diff().min() > 0
    ranks = mask.flatten().cumsum(0)[sample] - 1  # Of each sampled token among the real ones: one in every stride.
    assert (ranks // max(stride, 1)).tolist() == list(range(len(sample)))


@pytest.mark.parametrize("tokens", [64, 128, 100])
def test_no_position_of_a_row_is_sampled_out_of_turn(tokens):
    """A stride that divides the rows' length would take the first token, an outlier in many models, in every row."""
    context, rows = RoutingContext(), 32
    context.set_batch(torch.zeros(rows, dtype=torch.long), torch.ones(rows, tokens), 256)
    first = (context.now.sample_S % tokens == 0).sum().item()
    assert first <= 3 * max(1, len(context.now.sample_S) / tokens)
    assert (torch.arange(rows * tokens)[:: rows * tokens // 256] % tokens == 0).sum() >= 8 or tokens == 100


@pytest.mark.parametrize("kind", [{}, {"bias": True}, {"transposed": True}])
def test_the_running_mean_leaves_padding_out_and_is_unbiased_from_the_first_step(kind):
    target = writer(**kind)
    route_module(target.module, target)
    means, mask = [], torch.tensor([[0, 1, 1], [1, 1, 1]])
    for step in range(3):
        x = torch.randn(2, 3, 5, dtype=torch.float64) + step
        x[0, 0] = 1e6
        target.context.set_batch(torch.tensor([0, 1]), mask, 100)
        target.module(x).sum().backward()
        means.append(x[mask.bool()].mean(0))
        target.tape.update_mean(target.tape.mean_sums())
        target.tape.clear()
        weights = torch.tensor([MEAN_DECAY ** (step - i) for i in range(step + 1)], dtype=torch.float64)
        expected = (torch.stack(means) * weights[:, None]).sum(0) / weights.sum()
        torch.testing.assert_close(target.tape.mean()[:5], expected)
        assert not target.has_bias or target.tape.mean()[5].item() == pytest.approx(1)


def test_many_micro_batches_keep_at_most_two_ones_worth_of_inputs_spread_over_all_of_them():
    target = writer(inputs=1)
    route_module(target.module, target)
    for step in range(2):
        for i in range(21):
            target.context.set_batch(torch.tensor([0, 1]), torch.ones(2, 16), 32 if i != 7 else 3)
            target.module(torch.full((2, 16, 1), float(i), dtype=torch.float64)).sum().backward()
            held = target.tape.sample()
            assert len(held) <= 64 and (i > 1 or len(held) == 32 * (i + 1))
            assert sum(x.untyped_storage().nbytes() for x in target.tape.inputs) <= 64 * 8
        counts = torch.bincount(held.squeeze(1).long(), minlength=21)
        counts = counts[torch.arange(21) != 7]
        assert counts.min() >= 1 and counts.max() <= 3, step
        target.tape.clear()


def test_clearing_empties_all_but_the_running_mean():
    run = Run(tiny("llama"), control=1)
    tape = run.targets[0].tape
    run.backward(batch())
    tape.update_mean(tape.mean_sums())
    assert tape.control_energies() is not None
    mean = tape.mean().clone()
    tape.clear()
    assert not tape.ledger.any() and not len(tape.sample()) and not tape.fired and tape.control_energies() is None
    assert tape.mean().equal(mean) and mean.any()


def test_behind_a_post_norm_inputs_are_scaled_so_that_coefficients_times_them_are_the_streams_change():
    """First order, direct: the norm's own reaction to a longer output is left out, as every later effect is."""
    run = Run(tiny("gemma2", dtype=torch.float64))
    for target in run.targets:
        target.coefficients.normal_(generator=torch.Generator().manual_seed(1))
    rows = batch()
    seen = {}
    layer = run.model.model.layers[0]
    layer.self_attn.o_proj.register_forward_hook(lambda _m, args, out: seen.update(x=args[0].detach(), y=out.detach()))
    layer.post_attention_layernorm.register_forward_hook(lambda _m, _a, out: seen.update(out=out.detach()))
    run.backward(rows)
    target = run.targets[0]
    real = rows.mask.bool()
    rms = (seen["y"][real].square().mean(-1, keepdim=True) + 1e-6).sqrt()
    added = target.pair.gain_D.double() * (seen["x"][real] @ target.coefficients.mT @ target.pair.write.mT) / rms
    effect = target.tape.sample() @ target.coefficients.mT
    torch.testing.assert_close(effect @ target.pair.basis.mT, added, rtol=1e-5, atol=1e-6)  # The scale is float32.
    # And the norm's output does hold that much along the basis: W's part and the quarantine's part add up.
    own = target.pair.gain_D.double() * (seen["y"] - seen["x"] @ target.coefficients.mT @ target.pair.write.mT)[real] / rms
    torch.testing.assert_close(own + added, seen["out"][real], rtol=1e-5, atol=1e-5)


CONTROL = dict(width=12, inputs=300, rank=3, environments=2)


def _measured(target, seed: int, draws: int = 8, stream=None, data_seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Energies found, and the gradients per environment they are of."""
    generator = torch.Generator().manual_seed(data_seed)
    x = torch.randn(4, 3, target.tape.width, dtype=torch.float64, generator=generator)
    g = torch.randn(4, 3, target.pair.basis.shape[0], dtype=torch.float64, generator=generator)
    target.tape.clear()
    target.context.change(control_draws=draws)
    target.tape.draw_control(draws, seed, stream)
    target.context.set_batch(torch.tensor([0, 1, 0, 1]), torch.ones(4, 3), 100)
    target.module(x).backward(g)
    energies = target.tape.control_energies()
    gradients = torch.stack([torch.einsum("btd,btn->dn", g[[e, e + 2]], x[[e, e + 2]]) for e in (0, 1)])
    return energies, gradients


def _exact(target, gradients: torch.Tensor) -> torch.Tensor:
    bases = target.tape.control_bases.unflatten(1, (-1, target.rank)).permute(1, 0, 2)
    everyone = torch.cat([gradients.sum(0, keepdim=True), gradients])
    return torch.einsum("rdk,edn->rekn", bases, everyone).square().sum((2, 3))


def test_measured_energies_are_unbiased_estimates_of_the_exact_ones():
    target = writer(**CONTROL)
    route_module(target.module, target)
    ratios = torch.stack([found / _exact(target, gradients)
                          for found, gradients in (_measured(target, seed) for seed in range(200))])
    assert ratios.shape == (200, 9, 3)
    # A sketch of 32 columns spreads an energy of rank >= 3 by less than sqrt(2/32) = 25 %; 200 seeds: 1.8 % (x 4 here).
    assert (ratios[:, 0].mean(0) - 1).abs().max() < 0.07
    assert abs(ratios.mean().item() - 1) < 0.03


def test_the_subspace_comes_first_and_stands_out_when_gradients_lie_in_it():
    target = writer(**CONTROL)
    route_module(target.module, target)
    target.tape.draw_control(16, 3, None)
    assert target.tape.control_bases[:, :3].equal(target.pair.write)
    target.context.change(control_draws=16)
    target.context.set_batch(torch.tensor([0, 1]), torch.ones(2, 3), 100)
    inside = torch.randn(2, 3, 3, dtype=torch.float64) @ target.pair.basis.mT
    target.module(torch.randn(2, 3, 300, dtype=torch.float64)).backward(inside)
    energies = target.tape.control_energies()
    assert (energies[0] > energies[1:].max(0).values).all() and energies[0, 0] > 2 * energies[1:, 0].mean()


@pytest.mark.parametrize("stream", [None, torch.randn(40, 12, generator=torch.Generator().manual_seed(0))])
def test_draws_are_the_same_for_the_same_seed_and_orthonormal(stream):
    first, second = writer(**CONTROL), writer(**CONTROL)
    first.tape.draw_control(5, 11, stream)
    second.tape.draw_control(5, 11, stream)
    assert first.tape.control_bases.equal(second.tape.control_bases)
    assert first.tape.control_sketch.equal(second.tape.control_sketch)
    second.tape.draw_control(5, 12, stream)
    assert not first.tape.control_bases.equal(second.tape.control_bases)
    bases = first.tape.control_bases.unflatten(1, (-1, 3)).permute(1, 0, 2)
    torch.testing.assert_close(bases.mT @ bases, torch.eye(3, dtype=torch.float64).expand(6, 3, 3), rtol=0, atol=1e-5)


def test_matched_draws_follow_the_streams_covariance_and_isotropic_ones_do_not():
    scale = torch.tensor([10.0] * 4 + [0.1] * 8)
    stream = torch.randn(100, 12, generator=torch.Generator().manual_seed(0)) * scale
    target, share = writer(**CONTROL), {}
    for name, sample in {"matched": stream, "isotropic": None}.items():
        target.tape.draw_control(64, 5, sample)
        share[name] = target.tape.control_bases[:4, 3:].square().sum().item() / (64 * 3)
    assert share["matched"] > 0.95 and abs(share["isotropic"] - 4 / 12) < 0.05


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_measuring_the_control_changes_neither_ledger_nor_gradients(family):
    plain = Run(tiny(family)).train(1)
    measured = Run(tiny(family), control=1).train(1)
    state = torch.get_rng_state()
    for run in (plain, measured):
        run.backward(batch(5))
    assert torch.get_rng_state().equal(state)  # Its generator is its own.
    for ours, theirs in zip(measured.targets, plain.targets, strict=True):
        assert ours.tape.ledger.equal(theirs.tape.ledger) and ours.module.weight.grad.equal(theirs.module.weight.grad)
        assert ours.tape.control_energies().shape == (5, 3) and theirs.tape.control_energies() is None


def test_micro_batches_of_one_step_are_measured_as_one_gradient():
    target = writer(**CONTROL)
    route_module(target.module, target)
    whole, gradients = _measured(target, seed=2)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 3, 300, dtype=torch.float64, generator=generator)
    g = torch.randn(4, 3, 12, dtype=torch.float64, generator=generator)
    target.tape.clear()
    target.tape.draw_control(8, 2, None)
    for part in ([0], [2, 1], [3]):
        target.context.set_batch(torch.tensor([0, 1, 0, 1])[part], torch.ones(len(part), 3), 100)
        target.module(x[part]).backward(g[part])
    torch.testing.assert_close(target.tape.control_energies(), whole)
    assert relative(gradients.sum(0), gradients[0]) > 0.1


def test_behind_a_post_norm_random_bases_are_written_as_the_subspace_is():
    """Else a gain that differs by direction makes every subspace look special, or none."""
    target = writer(**CONTROL, gain=True)
    target.tape.draw_control(4, 1, None)
    stream = target.tape.control_bases * target.pair.gain_D.double().unsqueeze(1)
    bases = stream.unflatten(1, (-1, 3)).permute(1, 0, 2)
    torch.testing.assert_close(bases.mT @ bases, torch.eye(3, dtype=torch.float64).expand(5, 3, 3), rtol=0, atol=1e-5)


def test_a_tape_survives_a_copy_of_its_model():
    run = Run(tiny("llama"))
    run.backward(batch())
    twin = copy.deepcopy(run.model)
    for target in run.targets:
        other = twin.get_submodule(target.name).routed_target
        assert other.tape.ledger.equal(target.tape.ledger) and other.tape.ledger is not target.tape.ledger
        assert exact_inside(other).equal(exact_inside(target)) and other.module is twin.get_submodule(target.name)
