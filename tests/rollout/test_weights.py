"""What is pushed: the policy, out of place, without what is frozen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from routed_rl.errors import RolloutError
from routed_rl.pipeline.build import load_parts, make_router, make_subspace
from routed_rl.rollout import PolicyWeights
from routed_rl.training.backends import shard
from tests.builders import FAMILIES, Run, merged, tiny
from tests.parts import own_config, write_parts
from tests.ranks import on_ranks

MIXTURES = ("mixtral", "qwen3_moe")


@pytest.fixture(params=[family for family in FAMILIES if family not in MIXTURES])
def trained(request) -> Run:
    run = Run(tiny(request.param), optimizers="adamw").train(3)
    assert run.quarantine.norm() > 1e-2
    return run


def pushed(run: Run) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in PolicyWeights(run.model, run.targets).policy()}


def test_the_policy_is_pushed_and_the_model_is_left_as_it_was(trained):
    before = {name: value.clone() for name, value in trained.model.state_dict().items()}
    found, whole = pushed(trained), merged(trained.model, trained.targets).state_dict()
    assert all(torch.allclose(value, whole[name], atol=1e-6) for name, value in found.items())  # one rounding of W + A C
    assert all(torch.equal(value, before[name]) for name, value in trained.model.state_dict().items())
    assert any(not torch.allclose(found[name], before[name], atol=1e-4) for name in found)


@pytest.mark.parametrize("family", MIXTURES)
def test_a_mixture_is_refused_rather_than_pushed_without_its_quarantine(family):
    run = Run(tiny(family))
    with pytest.raises(RolloutError, match=r"expert of a mixture.*rollout=transformers"):
        PolicyWeights(run.model, run.targets)
    assert list(PolicyWeights(run.model, []).policy())


def test_every_parameter_is_pushed_or_frozen(trained):
    frozen = {name for name, parameter in trained.model.named_parameters() if not parameter.requires_grad}
    names = {name for name, _ in trained.model.named_parameters()}
    assert frozen and set(pushed(trained)) == names - frozen


def sharded(parts: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """As one of two processes: what is pushed of a routed model in pieces, and of the same one before it was cut."""
    dist.init_process_group("gloo")
    loaded = load_parts(own_config(parts, "unused"))
    router = make_router(loaded, make_subspace(loaded))
    for target in router.quarantine.targets:
        target.coefficients.fill_(0.1)
    weights = PolicyWeights(loaded.model, router.quarantine.targets)
    before = {name: value.clone() for name, value in weights.policy()}
    shard(loaded.model)
    assert not any(before[name].shape == value.to_local().shape for name, value in loaded.model.named_parameters()
                   if name in before), "it is in no pieces"
    return before, {name: value.clone() for name, value in weights.policy()}


@pytest.mark.slow
def test_of_a_model_in_pieces_every_process_pushes_the_whole(tmp_path):
    for before, after in on_ranks(sharded, write_parts(tmp_path)):
        assert before.keys() == after.keys() and all(after[name].equal(value) for name, value in before.items())


def test_a_writer_that_is_frozen_is_pushed_all_the_same(trained):
    """Its own weight stays, its quarantine does not."""
    target = trained.targets[0]
    target.module.weight.requires_grad_(False)
    assert f"{target.name}.weight" in pushed(trained)


def test_a_tied_weight_that_trains_is_pushed_under_both_names():
    model = tiny("llama", tie_word_embeddings=True)
    names = [name for name, _ in PolicyWeights(model, []).policy()]
    assert {"model.embed_tokens.weight", "lm_head.weight"} <= set(names)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_minus_the_quarantine_takes_the_policy_to_the_deployed_model(family):
    run = Run(tiny(family), optimizers="adamw").train(3)
    weights = PolicyWeights(run.model, run.targets)
    policy, adapter = pushed(run), weights.tensors("deployed")
    for target in run.targets:
        key = f"base_model.model.{target.name}"
        down, up = adapter[f"{key}.lora_A.weight"], adapter[f"{key}.lora_B.weight"]
        assert down.shape[0] == up.shape[1] == target.rank
        deployed = policy[f"{target.name}.weight"] + up @ down
        assert torch.allclose(deployed, target.module.weight, atol=1e-6)
        assert not torch.allclose(policy[f"{target.name}.weight"], target.module.weight, atol=1e-6)
