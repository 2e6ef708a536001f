"""The laws where a LoRA is trained and the model's own weights are frozen: what is retained stays outside the subspace by
construction, who caused what is exact, and the policy is what TRL and PEFT would have made of the same gradients."""

import copy
import pickle

import pytest
import torch
from peft.optimizers import create_loraplus_optimizer

from routed_rl.config import QuarantineConfig
from routed_rl.model.adapter import factors
from routed_rl.routing import Rates
from routed_rl.routing.adapted import AdapterWeight, FrozenWeight
from routed_rl.routing.linear import RoutedModule, RoutedUp
from tests.builders import OPTIMIZERS, Batch, Run, batch, relative, tiny
from tests.reference import LoraReference
from tests.tiers import tiered

LORA = {"r": 4, "alpha": 8}
LORA_FAMILIES = ("llama", "gpt2", "gemma2", "qwen2", "mixtral")
"""Plain, transposed with biases, gains behind the writers, biases of readers, experts that are frozen."""


def logits(model, seed: int = 77) -> torch.Tensor:
    rows = batch(seed)
    with torch.no_grad():
        out = model(input_ids=rows.ids, attention_mask=rows.mask).logits[rows.mask.bool()]
    assert out.isfinite().all()
    return out


def change(target) -> torch.Tensor:
    """`s B A` of a writer as it is stored, float64."""
    up, down = (factor.double() for factor in target.weight.factors)
    return target.weight.scaling * up @ down


def inside(run: Run) -> float:
    """Largest ‖Bᵀ ΔW‖ / ‖ΔW‖ over the writers that have a LoRA."""
    found = [target for target in run.targets if isinstance(target.weight, AdapterWeight)]
    assert found
    return max(((t.pair.read.double().mT @ change(t)).norm() / change(t).norm()).item() for t in found)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_hundred_steps_of_adamw_in_bf16_leave_the_adapter_outside_the_subspace(dtype):
    run = Run(tiny("llama", dtype=dtype), optimizers="adamw with weight decay", lora=LORA, autocast=True).train(200)
    assert {parameter.dtype for parameter in run.parameters} == {torch.float32}
    assert inside(run) < 1e-6 and all(change(target).norm() > 1e-2 for target in run.targets)
    free = Run(tiny("llama", dtype=dtype), mode="none", optimizers="adamw with weight decay", lora=LORA, autocast=True).train(20)
    assert inside(free) > 1e-2


@pytest.mark.parametrize("optimizers", OPTIMIZERS)
@pytest.mark.parametrize("family", LORA_FAMILIES)
def test_a_retained_adapter_stays_outside_after_every_step(family, optimizers):
    run = Run(tiny(family), optimizers=optimizers, lora=LORA, mode="erase" if optimizers == "sgd" else "route")
    for step in range(4):
        run.backward(batch(seed=step))
        row = run.step()
        assert inside(run) < 4e-7 and row["routing/drift"] < 4e-7  # a few float32 roundings of B, through gains of 0.4 to 1.6


@pytest.mark.parametrize("optimizers", ["sgd", "adamw"])
def test_the_forward_is_outside_whatever_an_optimizer_has_left_in_the_factor(optimizers):
    """By construction, also between the optimizer's step and ours: projected gradients alone let Adam drift."""
    run = Run(tiny("llama"), optimizers=optimizers, lora=LORA)
    for step in range(4):
        run.backward(batch(seed=step))
        run.optimizer.step()
        run.optimizer.zero_grad()
    assert inside(run) > 1e-3 if optimizers == "adamw" else inside(run) < 1e-6
    before = logits(run.model)
    with torch.no_grad():
        for target in run.targets:
            target.weight.up.weight += target.pair.write @ torch.randn(target.rank, LORA["r"])
    assert relative(logits(run.model), before) < 1e-5


def test_a_lora_of_full_rank_is_the_weights_themselves():
    """SGD, five steps, one factor of each product the identity and not trained: then `s B A` moves as the weight would."""
    weights = Run(tiny("llama"), optimizers="sgd")
    for name, parameter in weights.model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and "norm" not in name)
    weights.optimizer = OPTIMIZERS["sgd"]([p for p in weights.model.parameters() if p.requires_grad])
    adapter = Run(tiny("llama"), optimizers="sgd", lora={"r": 16})
    for module in adapter.model.modules():
        if hasattr(module, "lora_A"):
            up, down = module.lora_B["default"].weight, module.lora_A["default"].weight
            fixed, moving = (down, up) if down.shape[1] == 16 else (up, down)
            with torch.no_grad():
                fixed.copy_(torch.eye(16))
                moving.zero_()
            fixed.requires_grad_(False)
    adapter.optimizer = OPTIMIZERS["sgd"]([p for p in adapter.model.parameters() if p.requires_grad])
    start = logits(weights.model).log_softmax(-1)
    for run in (weights, adapter):
        run.train(5)
    ours, theirs = (logits(run.model).log_softmax(-1) for run in (adapter, weights))
    assert (ours - theirs).abs().max() < 1e-4 and (theirs - start).abs().max() > 1e-2
    with adapter.quarantine.ablated(), weights.quarantine.ablated():
        assert (logits(adapter.model).log_softmax(-1) - logits(weights.model).log_softmax(-1)).abs().max() < 1e-4


@pytest.mark.parametrize(("dtype", "bar"), tiered([(torch.float64, 1e-9), (torch.float32, 1e-4)], slow=[(torch.float32, 1e-4)]))
def test_parts_and_adapter_after_twenty_steps_are_those_of_an_independent_reference(dtype, bar):
    run = Run(tiny("gpt2", dtype=dtype), environments=3, lora=LORA)
    twin = Run(tiny("gpt2", dtype=torch.float64), environments=3, mode="none", lora=LORA)
    for (_, ours), (_, theirs) in zip(factors(run.model).items(), factors(twin.model).items(), strict=True):
        theirs.data.copy_(ours.data)
    reference = LoraReference(twin, tiny("gpt2", dtype=torch.float64))
    reference.train_beside(run, 20)
    for target in run.targets:
        expected = reference.state[target.name]["C"]
        assert relative(target.weight.up.weight, reference.ups[target.name]) < 10 * bar
        for e in range(3):
            assert expected[e].norm() > 1e-3 and relative(target.parts[e], expected[e]) < bar


def test_parts_sum_to_the_coefficients_bit_for_bit():
    run = Run(tiny("llama"), environments=3, lora=LORA)
    for step in range(6):
        run.backward(batch(seed=step, environments=(0, 2) if step % 2 else (1, 2)))
        run.step()
        for target in run.targets:
            assert sum(target.parts, torch.zeros_like(target.coefficients)).equal(target.coefficients)
            assert target.coefficients.any()


@pytest.mark.parametrize("family", LORA_FAMILIES)
def test_a_fresh_adapter_and_an_empty_quarantine_leave_the_logits_bit_for_bit(family):
    before = logits(tiny(family))
    run = Run(tiny(family), lora=LORA)
    assert logits(run.model).equal(before)
    with run.wrapped.disable_adapter():
        assert logits(run.model).equal(before)
    assert not logits(run.train(2).model).equal(before)


@pytest.mark.parametrize("family", LORA_FAMILIES)
def test_the_observed_run_is_the_unrouted_one_bit_for_bit_and_c_is_its_projection(family):
    plain, observed = (Run(tiny(family), mode=mode, lora=LORA).train(6) for mode in ("none", "observe"))
    for (name, ours), (_, theirs) in zip(factors(observed.model).items(), factors(plain.model).items(), strict=True):
        assert ours.equal(theirs), name
    policy = logits(observed.model)
    assert policy.equal(logits(plain.model))
    for target in observed.targets:
        if isinstance(target.weight, AdapterWeight):
            assert relative(target.coefficients, target.pair.read.double().mT @ change(target)) < 1e-5
        else:
            assert not target.coefficients.any()
    with observed.quarantine.scaled(1.0):  # split at the subspace and put together again
        assert relative(logits(observed.model), policy) < 1e-5
    with observed.quarantine.ablated():
        deployed = logits(observed.model)
    assert relative(deployed, policy) > 1e-5 and logits(observed.model).equal(policy)
    stored, factors_of = observed.quarantine.state_dict(), observed.quarantine.deployed_factors()
    for _ in range(2):
        observed.quarantine.remove()
        assert relative(logits(observed.model), deployed) < 1e-6
        after = observed.quarantine.state_dict()  # with base and deployed model it still gives the policy
        assert after.keys() == stored.keys() and all(value.equal(after[name]) for name, value in stored.items())
        assert all(relative(up, factors_of[name]) < 1e-6 for name, up in observed.quarantine.deployed_factors().items())


@pytest.mark.parametrize("family", LORA_FAMILIES)
def test_going_between_policy_deployed_and_base_is_exact(family):
    base = logits(tiny(family))
    run = Run(tiny(family), lora=LORA).train(4)
    policy = logits(run.model)
    with run.quarantine.ablated():
        deployed = logits(run.model)
        with run.wrapped.disable_adapter():
            assert logits(run.model).equal(base)
    assert logits(run.model).equal(policy)
    for one, other in ((policy, deployed), (deployed, base), (policy, base)):
        assert relative(one, other) > 1e-4
    for _ in range(2):
        run.quarantine.remove()
        assert not any(isinstance(module, (RoutedModule, RoutedUp)) for module in run.model.modules())
        assert relative(logits(run.model), deployed) < 1e-6


def test_names_and_files_are_those_of_peft(tmp_path):
    from peft import PeftModel

    run = Run(tiny("gpt2"), lora=LORA).train(3)
    run.wrapped.save_pretrained(tmp_path)
    with run.quarantine.ablated():
        deployed = logits(run.model)
    assert relative(logits(PeftModel.from_pretrained(tiny("gpt2"), tmp_path).eval()), deployed) < 1e-6


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_is_a_policy_of_its_own(duplicate):
    run = Run(tiny("llama"), lora=LORA).train(3)
    before = logits(run.model)
    twin = duplicate(run.model)
    for target in run.targets:
        target.coefficients.zero_()
        target.weight.up.weight.data.zero_()
    assert logits(twin).equal(before) and not logits(run.model).equal(before)


def test_rows_that_practise_learn_with_an_open_cotangent_and_are_in_no_ledger():
    practising, plain = (Run(tiny("llama"), lora=LORA).train(2) for _ in range(2))
    rows = batch(seed=9)
    everyone = torch.ones(len(rows.ids), dtype=torch.bool)
    practising.begin()
    practising.router.set_batch(rows.environments, rows.mask, None, everyone)
    rows.loss(practising.model).backward()
    plain.begin()
    with plain.quarantine.ablated():
        plain.router.context.change(contained=False)
        plain.backward(rows)
    for ours, theirs in zip(practising.parameters, plain.parameters, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    assert not any(target.tape.ledger.any() for target in practising.targets)


@pytest.mark.parametrize(("family", "names"), [
    ("llama", ["q_proj"]), ("llama", ["down_proj"]), ("mixtral", ["layers.1.self_attn.o_proj"])])
def test_writers_without_a_lora_have_a_quarantine_too(family, names):
    """Also where nothing below them is trained."""
    run = Run(tiny(family), lora={"r": 2, "target_modules": names}).train(3)
    frozen = [target for target in run.targets if type(target.weight) is FrozenWeight]
    assert frozen and all(target.coefficients.any() for target in frozen)
    with run.quarantine.ablated():
        deployed = logits(run.model)
    assert relative(logits(run.model), deployed) > 1e-3


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_nothing(reentrant):
    plain, saving = (Run(tiny("llama", dtype=torch.float64), lora=LORA).train(2) for _ in range(2))
    saving.model.train()
    saving.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    saving.wrapped.enable_input_require_grads()
    for run in (plain, saving):
        run.backward(batch(seed=9))
    for ours, theirs in zip(saving.targets, plain.targets, strict=True):
        torch.testing.assert_close(ours.tape.ledger, theirs.tape.ledger, rtol=1e-9, atol=1e-12)
    for ours, theirs in zip(saving.parameters, plain.parameters, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12)


def test_micro_batches_of_a_step_share_its_adapter_and_the_rows_have_names():
    run = Run(tiny("llama"), lora=LORA, rows=True, pace="evidence")
    for step in range(3):
        rows = batch(seed=step, rows=6)
        for part in ([0, 3], [1, 2, 4, 5]):
            run.backward(Batch(rows.ids[part], rows.mask[part], rows.environments[part], rows.advantages[part]), first=part[0])
        row = run.step()
    assert run.did is not None and 0 < row["routing/routed_fraction"] < 1 and row["quarantine/relative"] > 0


@pytest.mark.parametrize("faster", [1.0, 16.0])
def test_the_pace_of_a_lora_is_what_an_entry_of_its_product_moves(faster):
    """Also where its factors B move faster than its factors A, as in LoRA+."""
    torch.manual_seed(0)
    run = Run(tiny("llama"), lora={"r": 8, "alpha": 16, "rslora": True}).train(2)
    weight = run.targets[1].weight
    assert isinstance(weight, AdapterWeight) and abs(weight.scaling - 16 / 8**0.5) < 1e-6
    up, down = (factor.double() for factor in weight.factors)
    signs = [torch.randn(500, *factor.shape, dtype=torch.float64).sign() for factor in (up, down)]
    moved = weight.scaling * 1e-3 * (faster * signs[0] @ down + up @ signs[1])
    rates = Rates([{"params": [weight.down.weight], "lr": 1e-3}, {"params": [weight.up.weight], "lr": 1e-3 * faster}])
    assert abs(moved.square().mean() ** 0.5 / (rates.most * weight.pace(rates)) - 1) < 0.05


def test_the_quarantine_follows_the_factor_of_a_lora_that_moves_the_product_and_not_the_first_group_of_the_optimizer():
    """In the first step only B has a gradient, and LoRA+ is a LoRA with the rate of B. A counts where B is no longer 0."""
    norms = []
    for lr, ratio in ((1e-5, 16.0), (16e-5, 1.0), (1e-5, 1.0)):
        run = Run(tiny("llama"), lora=LORA, rows=True, pace="evidence", config=QuarantineConfig(max_shift=None))
        run.optimizer = create_loraplus_optimizer(run.wrapped, torch.optim.AdamW, lr=lr, loraplus_lr_ratio=ratio)
        run.backward(batch())
        norms.append(run.step()["quarantine/norm"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-4) and norms[1] / norms[2] == pytest.approx(16, rel=1e-2)
