"""A LoRA that is trained is served as adapters on the base model: both models are the trainer's, and no weight is pushed."""

from __future__ import annotations

import pytest
import torch

from routed_rl.config import ParityConfig
from routed_rl.errors import ParityError, RolloutError
from routed_rl.rollout import Lora, ParityCheck, PolicyAdapters, Served, fixed_sequences
from routed_rl.rollout.heads import HeadPadding
from routed_rl.rollout.settings import served_lora
from tests.builders import VOCAB, Run, tiny
from tests.rollout.engines import CopyEngine

SEQUENCES = fixed_sequences([[3, 4, 5], [6, 7]], VOCAB, 30)
SCALED = {"r": 4, "alpha": 6, "rslora": True}
READERS = {"r": 4, "target_modules": ["q_proj", "up_proj"]}


def adapted(family: str = "llama", mode: str = "route", lora: dict | None = None) -> tuple[Run, Served, ParityCheck]:
    """A LoRA in training, and an engine with the base model."""
    run = Run(tiny(family), mode=mode, lora=lora or SCALED)
    served = Served(CopyEngine(run.model, Lora(8, [], 2)), PolicyAdapters(run.model, run.targets if run.router else []))
    return run, served, ParityCheck(served, run.model, SEQUENCES, ParityConfig(), run.quarantine and run.quarantine.ablated)


@pytest.mark.parametrize(("family", "mode", "lora"), [
    ("llama", "route", SCALED), ("gemma2", "route", SCALED), ("llama", "observe", SCALED), ("llama", "none", SCALED),
    ("llama", "route", READERS)])
def test_the_engine_is_the_trainer_quarantine_on_and_off_and_keeps_its_weights(family, mode, lora):
    run, served, check = adapted(family, mode, lora)
    check.run(0)
    run.train(3)
    with pytest.raises(ParityError, match="of the policy"):  # the sync is skipped
        check.run(3)
    served.sync()
    assert max(check.run(3).values()) < 1e-5
    assert served.engine.loads == []
    policy, deployed = (served.logprobs(SEQUENCES, deployed=which) for which in (False, True))
    assert (policy != deployed) == (mode != "none")


def test_only_the_adapter_that_is_asked_for_is_sent_once_a_sync():
    run, served, _ = adapted()
    for _ in range(2):
        served.sync()
        for deployed in (False, True, True, False):
            served.logprobs(SEQUENCES, deployed=deployed)
    assert served.engine.adapters == ["policy", "deployed"] * 2
    modules = [f"base_model.model.model.layers.0.self_attn.{name}.lora_A.weight" for name in ("o_proj", "q_proj")]
    ranks = {name: [len(served.models.tensors(name)[module]) for module in modules] for name in ("policy", "deployed")}
    assert ranks == {"policy": [4 + run.rank, 4], "deployed": [4, 4]}


def test_what_is_kept_of_a_quarantine_is_served_and_the_policy_again_after_it():
    run, served, check = adapted()
    run.train(3)
    served.sync()
    policy = served.logprobs(SEQUENCES)
    for other in (run.quarantine.kept({"env1": 0.5}), run.quarantine.scaled(2.0)):
        with other:
            with pytest.raises(ParityError):
                check._compare("policy", 3)
            served.sync()
            assert check._compare("policy", 3) < 1e-5
    served.sync()
    assert served.logprobs(SEQUENCES) == policy


def test_a_mixture_is_refused_rather_than_served_without_its_quarantine():
    with pytest.raises(RolloutError, match=r"expert of a mixture.*rollout=transformers"):
        adapted("mixtral")


@pytest.mark.parametrize("module", ["q_proj", "k_proj", "o_proj", "down_proj"])
def test_a_padded_adapter_is_the_adapter_of_the_padded_weight(module):
    """Heads of 3, filled up to 5."""
    padding, name = HeadPadding(3, 5), f"model.layers.0.self_attn.{module}"
    up, down = torch.randn(12, 2), torch.randn(2, 12)
    whole = padding.tensor(f"{name}.weight", up @ down)
    factors = [padding.tensor(f"{name}.lora_{letter}.weight", value) for letter, value in (("B", up), ("A", down))]
    assert torch.allclose(factors[0] @ factors[1], whole, atol=1e-6) and (whole.numel() > 144) == (module != "down_proj")


@pytest.mark.parametrize(("change", "fits"), [({}, True), ({"max_lora_rank": 8}, False), ({"max_loras": 1}, False),
                                              ({"target_modules": ["o_proj"]}, False), ({"target_modules": None}, False)])
def test_a_server_of_ones_own_must_have_room_for_both_adapters(change, fits):
    roomy = {"lora_config": {"max_lora_rank": 16, "max_loras": 2, "target_modules": ["q_proj", "o_proj", "up_proj"]}}
    other = {"lora_config": roomy["lora_config"] | change}
    found = served_lora([roomy, other], Lora(16, ["o_proj", "q_proj"], 2))
    assert found == (Lora(16, ["o_proj", "q_proj", "up_proj"], 2) if fits else None)
