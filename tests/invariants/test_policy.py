"""Laws 5 and 6: policy and deployed model are one set of weights apart, and going between them is exact."""

import copy
import pickle

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2LMHeadModel

from routed_rl.routing.linear import RoutedModule
from tests.builders import FAMILIES, Run, batch, merged, plain_copy, relative, routed_twin, tiny


def logits(model, seed: int = 77):
    rows = batch(seed)
    with torch.no_grad():
        out = model(input_ids=rows.ids, attention_mask=rows.mask).logits[rows.mask.bool()]
    assert out.isfinite().all()
    return out


@pytest.fixture(params=FAMILIES)
def trained(request) -> Run:
    run = Run(tiny(request.param), optimizers="adamw").train(4)
    assert run.quarantine.norm() > 1e-2
    return run


def test_the_policy_is_the_model_with_the_quarantine_merged(trained):
    plain = merged(trained.model, trained.targets)
    assert not any(isinstance(module, RoutedModule) for module in plain.modules())
    assert relative(logits(trained.model), logits(plain)) < 3e-6  # float32: W x + A (C x) against (W + A C) x.
    assert relative(logits(trained.model), logits(plain_copy(trained.model))) > 1e-3


def test_the_policy_of_a_taped_forward_is_the_policy_of_an_untaped_one(trained):
    rows = batch(77)
    trained.context.set_batch(rows.environments, rows.mask, 256)
    with torch.enable_grad():
        taped = trained.model(input_ids=rows.ids, attention_mask=rows.mask).logits[rows.mask.bool()]
    trained.context.change(environment_ids_B=None)
    with torch.enable_grad():
        untaped = trained.model(input_ids=rows.ids, attention_mask=rows.mask).logits[rows.mask.bool()]
    assert taped.requires_grad and taped.equal(logits(trained.model)) and taped.equal(untaped)


def test_the_quarantine_adds_to_the_stream_only_along_the_subspace(trained):
    """Gemma's norm comes after the writer: its gain must not turn the quarantine's output out of the basis."""
    for target in trained.targets:
        rows = torch.randn(20, target.tape.width)
        rows = torch.cat([rows, torch.ones(20, 1)], 1) if target.has_bias else rows
        output = rows @ target.coefficients.mT @ target.pair.write.mT
        stream = output if target.pair.gain_D is None else output * target.pair.gain_D
        outside = stream - stream @ target.pair.basis @ target.pair.basis.mT
        assert outside.norm() < 1e-6 * stream.norm()
        if target.pair.gain_D is not None:
            turned = output - output @ target.pair.basis @ target.pair.basis.mT
            assert turned.norm() > 1e-2 * output.norm()  # Without the gain it would not be along it.


def test_ablating_runs_the_deployed_model_and_restoring_is_the_identity(trained):
    before = logits(trained.model)
    deployed = logits(plain_copy(trained.model))
    with trained.quarantine.ablated():
        assert logits(trained.model).equal(deployed)
        with trained.quarantine.ablated():
            pass
        assert logits(trained.model).equal(deployed)  # Nested blocks do not end the outer one.
    assert logits(trained.model).equal(before) and not before.equal(deployed)


def test_ablation_ends_even_when_the_block_raises():
    run = Run(tiny("llama")).train(2)
    before = logits(run.model)
    with pytest.raises(KeyError), run.quarantine.ablated():
        raise KeyError
    assert logits(run.model).equal(before)


def test_removing_the_quarantine_leaves_the_stock_deployed_model_and_twice_is_once(trained):
    kinds = {name: type(module) for name, module in plain_copy(trained.model).named_modules()}
    deployed = logits(plain_copy(trained.model))
    for _ in range(2):
        trained.quarantine.remove()
        assert {name: type(module) for name, module in trained.model.named_modules()} == kinds
        assert not any("routed_target" in vars(module) for module in trained.model.modules())
        assert logits(trained.model).equal(deployed)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
                         ids=["deepcopy", "pickle"])
def test_a_copy_of_the_routed_model_is_a_policy_of_its_own(trained, duplicate):
    before = logits(trained.model)
    twin = duplicate(trained.model)
    assert type(twin) is type(trained.model) and logits(twin).equal(before)
    for target in trained.targets:
        target.coefficients.zero_()
    assert logits(twin).equal(before) and not logits(trained.model).equal(before)
    targets = {id(routed_twin(twin, target).context) for target in trained.targets}
    assert len(targets) == 1 and id(trained.context) not in targets  # Copies share one context among themselves.


def test_the_saved_policy_is_the_deployed_model_for_stock_transformers(trained, tmp_path):
    trained.model.save_pretrained(tmp_path)
    again, found = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"] and not found["mismatched_keys"]
    assert not any(isinstance(module, RoutedModule) for module in again.modules())
    assert again.config.architectures == [type(trained.model).__name__]
    deployed = logits(plain_copy(trained.model))
    assert logits(again.eval()).equal(deployed) and not logits(trained.model).equal(deployed)


def test_routing_changes_no_name_and_no_parameter():
    model = tiny("gpt2")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parameters = dict(model.named_parameters())
    run = Run(model)
    assert isinstance(model, GPT2LMHeadModel) and run.quarantine is not None
    after = model.state_dict()
    assert list(after) == list(before) and all(after[name].equal(value) for name, value in before.items())
    assert all(parameters[name] is parameter for name, parameter in model.named_parameters())
