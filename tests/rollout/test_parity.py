"""The check holds where the engine has the trainer's weights, and fails where it has not."""

from __future__ import annotations

import pytest
import torch

from routed_rl.config import ParityConfig
from routed_rl.errors import ParityError
from routed_rl.rollout import ParityCheck, PolicyWeights, Sampling, Served, fixed_sequences
from tests.builders import VOCAB, Run, tiny
from tests.rollout.engines import CopyEngine

SEQUENCES = fixed_sequences([[3, 4, 5], [6, 7]], VOCAB, 30)


def routed(family: str = "llama") -> tuple[Run, Served, ParityCheck]:
    run = Run(tiny(family), optimizers="adamw")
    served = Served(CopyEngine(run.model), PolicyWeights(run.model, run.targets))
    return run, served, ParityCheck(served, run.model, SEQUENCES, ParityConfig(), run.quarantine.ablated)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gpt2"])
def test_parity_holds_after_a_sync_quarantine_on_and_off(family):
    run, served, check = routed(family)
    run.train(3)
    served.sync()
    found = check.run(3)
    assert set(found) == {"parity/policy", "parity/deployed"} and max(found.values()) < 1e-4


def test_a_skipped_sync_fails_the_check_with_both_numbers():
    run, _, check = routed()
    check.run(0)
    run.train(3)
    with pytest.raises(ParityError, match=r"the engine has the log-probability -\d+\.\d+ and the trainer -\d+\.\d+, .*limit"):
        check.run(3)


def test_a_quarantine_that_did_not_come_along_fails_the_check():
    run, served, check = routed()
    run.train(3)
    served.models = PolicyWeights(run.model, [])  # what would be pushed if nobody knew of the quarantine
    served.sync()
    with pytest.raises(ParityError, match="of the policy"):
        check.run(3)


def test_not_a_number_is_no_parity():
    _, served, check = routed()
    with torch.no_grad():
        served.engine.model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(ParityError):
        check.run(0)


def test_the_first_rollout_is_compared_and_then_every_so_often():
    _, _, check = routed()
    assert check.is_due(7)
    check.run(7)
    assert next(step for step in range(7, 30) if check.is_due(step)) == 17
    check.config = ParityConfig(every=0)
    assert not check.is_due(1000)


def test_without_adapters_the_deployed_model_is_loaded_and_the_policy_comes_back():
    run, served, _ = routed()
    run.train(2)
    served.sync()
    greedy = Sampling(0.0, 1, [])
    served.complete([[3, 4]], greedy, deployed=True)
    served.complete([[3, 4]], greedy, deployed=True)
    served.complete([[3, 4]], greedy)
    everything, there, back = served.engine.loads
    assert there == back == [f"{target.name}.weight" for target in run.targets] and len(everything) > len(there)


def test_fixed_sequences_are_the_same_in_every_run_and_no_longer_than_allowed():
    assert fixed_sequences([[1] * 40], 50, 30) == fixed_sequences([[1] * 40], 50, 30)
    assert all(len(row) <= 30 for row in fixed_sequences([[1] * 40, [2]], 50, 30))


@pytest.mark.parametrize(("model", "engine", "limit"), [("float32", "float32", 1e-3), ("bfloat16", "float32", 0.5),
                                                        ("float32", "bfloat16", 0.5)])
def test_the_coarser_side_sets_the_limit(model, engine, limit):
    """A frozen model may be bfloat16 where the engine is not."""
    trained = tiny("llama").to(getattr(torch, model))
    served = Served(CopyEngine(trained), PolicyWeights(trained, []))
    served.engine.dtype = engine
    assert ParityCheck(served, trained, SEQUENCES, ParityConfig(), None).limit == limit
