"""Law 1: `BᵀW = R` after every step in observe, route and erase, whatever the optimizer; and not so without routing."""

import pytest
import torch

from tests.builders import FAMILIES, OPTIMIZERS, Run, batch, tiny

ROUNDING = 2e-7
"""Of ‖BᵀW - R‖ / ‖W‖: one float32 rounding (6e-8) of W after its correction, a little more through B and W's N terms."""


@pytest.mark.parametrize("optimizers", OPTIMIZERS)
@pytest.mark.parametrize("mode", ["observe", "route", "erase"])
def test_weights_stay_outside_the_subspace_after_every_step(mode, optimizers):
    run = Run(tiny("llama"), mode=mode, optimizers=optimizers)
    before = {target.name: target.weight.matrix().clone() for target in run.targets}
    for step in range(6):
        run.backward(batch(seed=step))
        run.step()
        assert run.drift() < ROUNDING
    for target in run.targets:  # A frozen writer would pass as well.
        assert (target.weight.matrix() - before[target.name]).norm() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_of_every_family_stay_outside_the_subspace(family):
    # A post-norm's gains of 0.4 to 1.6 enter B and A, hence a factor of 4 over the plain rounding.
    assert Run(tiny(family), optimizers="adamw with weight decay").train(4).drift() < 4 * ROUNDING


@pytest.mark.parametrize("mode", ["observe", "route", "erase"])
def test_weights_stay_outside_the_subspace_under_clipping(mode):
    run = Run(tiny("qwen3"), mode=mode, clip=0.05)
    for step in range(5):
        run.backward(batch(seed=step))
        norm = torch.stack([p.grad.norm() for p in run.parameters if p.grad is not None]).norm()
        assert norm > 0.05  # The clip does act.
        run.step()
        assert run.drift() < ROUNDING


def test_fifty_steps_leave_the_weights_outside_the_subspace():
    run = Run(tiny("llama"), optimizers="adamw with weight decay").train(50)
    assert run.drift() < 1e-6  # The bar of the project; corrections do not add up, so 50 steps are as good as one.


@pytest.mark.parametrize("optimizers", OPTIMIZERS)
def test_weights_move_inside_the_subspace_without_routing(optimizers):
    assert Run(tiny("llama"), mode="none", optimizers=optimizers).train(6).drift() > 1e-3


def _projected_gradients_only(optimizers: str) -> Run:
    run = Run(tiny("llama"), optimizers=optimizers)
    for step in range(6):
        run.backward(batch(seed=step))
        run.optimizer.step()
        run.optimizer.zero_grad()
        for target in run.targets:
            target.tape.clear()
    return run


def test_projected_gradients_alone_let_adam_drift_into_the_subspace():
    assert _projected_gradients_only("adamw").drift() > 1e-3


def test_projected_gradients_alone_are_enough_for_sgd_but_for_rounding():
    assert _projected_gradients_only("sgd").drift() < 1e-6


def test_erase_leaves_the_quarantine_empty():
    run = Run(tiny("llama"), mode="erase").train(4)
    assert run.quarantine is not None and run.quarantine.norm() == 0.0


def test_route_fills_the_quarantine():
    run = Run(tiny("llama"), mode="route").train(4)
    assert run.quarantine is not None and run.quarantine.norm() > 1e-2
