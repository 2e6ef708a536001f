"""Experts of a mixture as writers: whose tokens count, how far a step may go, and that the gate is contained with them."""

import pytest
import torch

from routed_rl.config import QuarantineConfig
from tests.builders import Run, batch, by_module, tiny


def mixture(**settings) -> tuple[Run, list]:
    """A run and the targets of its last layer's mixture, which choose 2 of 4 experts a token."""
    run = Run(tiny("mixtral"), **settings)
    return run, by_module(run.targets)[-1]


def inputs_of(run: Run, experts: list, rows) -> torch.Tensor:
    """What every expert got of every real token, 0 where it was not chosen: (E, S, N), computed apart."""
    seen: dict[str, tuple] = {}
    hook = experts[0].module.register_forward_pre_hook(lambda _m, args: seen.update(args=args))
    with torch.no_grad():
        run.model(input_ids=rows.ids, attention_mask=rows.mask)
    hook.remove()
    hidden, index, weights = seen["args"]
    found = []
    for expert, module in ((one.expert, one.module) for one in experts):
        gate, up = (hidden @ module.gate_up_proj[expert].mT).chunk(2, -1)
        found.append(module.act_fn(gate) * up * (weights * (index == expert)).sum(-1, keepdim=True))
    return torch.stack(found)[:, rows.mask.flatten().bool()].detach()


def test_the_mean_input_of_an_expert_counts_the_tokens_that_others_got_as_zero():
    run, experts = mixture()
    rows = batch(rows=6)
    expected = inputs_of(run, experts, rows).mean(1)
    run.backward(rows)
    for target, mean in zip(experts, expected, strict=True):
        target.tape.update_mean(target.tape.mean_sums())
        torch.testing.assert_close(target.tape.mean(), mean)
        assert not torch.allclose(target.tape.sample().mean(0), mean)  # Its own tokens alone have another mean.


def test_a_step_of_a_whole_mixture_moves_a_token_no_farther_than_a_plain_writers():
    config = QuarantineConfig(learning_rate=100.0, max_shift=0.5)
    run, experts = mixture(config=config)
    rows = batch(rows=6)
    inputs = inputs_of(run, experts, rows)
    run.backward(rows)
    run.step()
    deltas = [target.coefficients for target in experts]  # C started at zero.
    shift = sum(x @ delta.mT for x, delta in zip(inputs, deltas, strict=True)).norm(dim=1).square().mean().sqrt()
    allowed = config.max_shift / len(by_module(run.targets))
    assert 0.3 * allowed < shift <= allowed * 1.0001  # The bound is what acts, and is not wasted on experts nobody chose.


def test_a_gate_cannot_say_inside_the_subspace_what_its_experts_may_not():
    """With a basis of full rank everything that a mixture writes is held, so nothing in it gets gradient."""
    full = [torch.eye(16)] * 2
    gradients = {}
    for contained in (True, False):
        run, _ = mixture(bases=full, contained=contained)
        run.backward(batch(rows=6))
        gradients[contained] = [parameter.grad.norm().item() for name, parameter in run.model.named_parameters()
                                if "layers.1.mlp" in name]
    assert len(gradients[True]) == 3 and max(gradients[True]) < 1e-6 < 1e-3 < min(gradients[False])


def test_experts_nobody_chose_are_no_error_and_have_no_ledger():
    run, experts = mixture()
    with torch.no_grad():
        gate = run.model.model.layers[1].mlp.gate
        gate.register_forward_hook(lambda _m, _a, out: (out[0], out[1], out[2] % 2))  # Only experts 0 and 1 are left.
    run.backward(batch(rows=6))
    assert [bool(target.tape.ledger.any()) for target in experts] == [True, True, False, False]
    assert all(target.tape.fired for target in experts)
    run.step()
    assert [bool(target.coefficients.any()) for target in experts] == [True, True, False, False]


@pytest.mark.parametrize("wrong", [0, 3])
def test_experts_of_a_mixture_share_one_basis(wrong):
    from routed_rl.routing import Quarantine, RoutingContext
    from routed_rl.routing.pair import BasisPair
    from tests.builders import find_targets, random_bases

    context = RoutingContext()
    targets = find_targets(tiny("mixtral"), random_bases(2), context, 1)
    targets[1 + wrong].pair = BasisPair.of(targets[1 + wrong].pair.basis.flip(0), None, 1e-6)
    with pytest.raises(AssertionError, match="one basis"):
        Quarantine(targets, ["a"], context)
