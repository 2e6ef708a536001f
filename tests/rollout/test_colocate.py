"""vLLM in this process: it serves the policy and the deployed model, and what is not so is found."""

from __future__ import annotations

import json

import pytest
import torch

from routed_rl.errors import ParityError
from routed_rl.rollout import Sampling
from tests import pipeline
from tests.chat import chat_config, write_chat_model
from tests.rollout.live import MODELS, VOCABULARY, Setup, command, metrics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.mark.parametrize("name", MODELS)
def test_the_engine_is_the_trainer_quarantine_on_and_off(name, tmp_path):
    setup = Setup(name, tmp_path)
    with setup.serve() as (served, check):
        check.run(0)
        setup.move()
        with pytest.raises(ParityError, match="of the policy"):  # the sync is skipped
            check.run(1)
        served.sync()
        assert max(check.run(1).values()) < 1e-4  # float32
        # And again: the adapter and the packed copies follow a second push.
        setup.move()
        served.sync()
        assert max(check.run(2).values()) < 1e-4
        on, off = (served.logprobs(check.sequences, deployed=deployed) for deployed in (False, True))
        assert max(abs(a - b) for x, y in zip(on, off, strict=True) for a, b in zip(x, y, strict=True)) > 0.1


@pytest.mark.parametrize("name", ["llama, tied", "llama, heads of 16"])
def test_an_unembedding_that_trains_is_followed_tied_or_not(name, tmp_path):
    setup = Setup(name, tmp_path, frozen=[])
    with setup.serve() as (served, check):
        setup.move()
        served.sync()
        assert max(check.run(1).values()) < 1e-4


def test_frozen_tensors_are_not_pushed(tmp_path):
    """Changed behind the engine's back: had it been pushed, the check would pass."""
    setup = Setup("llama, heads of 16", tmp_path)
    with setup.serve() as (served, check):
        with torch.no_grad():
            setup.model.model.embed_tokens.weight.add_(0.1)
        served.sync()
        with pytest.raises(ParityError):
            check.run(1)


def test_completions_come_from_the_model_that_is_asked_for(tmp_path):
    """Greedy, against the trainer's own argmax; sampled ones repeat under the same seed and stop where they should."""
    setup = Setup("llama, heads of 16", tmp_path)
    prompts = [[3, 4, place] for place in range(2, 20)]
    with setup.serve() as (served, _):
        setup.move()
        served.sync()
        for deployed in (False, True, False):
            setup.context.change(ablated=deployed)
            with torch.no_grad():
                best = [[int(setup.model(torch.tensor([ids])).logits[0, -1].argmax())] for ids in prompts]
            assert served.complete(prompts, Sampling(0.0, 1, []), deployed=deployed) == best
        sampling, rows = Sampling(1.0, 20, [5, 6, 7, 8]), []
        for _ in range(2):
            torch.manual_seed(3)
            rows.append(served.complete(prompts, sampling))
        assert rows[0] == rows[1]
        assert all(not set(row[:-1]) & {5, 6, 7, 8} and (len(row) == 20 or row[-1] in {5, 6, 7, 8}) for row in rows[0])
        assert len({tuple(row) for row in rows[0]}) > 10 and max(map(max, rows[0])) < VOCABULARY


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    out = tmp_path_factory.mktemp("lab") / "run"
    done = command("train", "rollout=vllm_colocate", "trainer.max_steps=3", "evaluation.samples=64", "rollout.parity.every=1",
                   f"out={out}")
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_the_lab_trains_on_colocated_rollouts_with_parity_all_along(lab):
    rows = metrics(lab)
    assert len(rows) == 3 and all(row["parity/policy"] < 1e-3 and row["parity/deployed"] < 1e-3 for row in rows)
    assert all(row["train/sampling/sampling_logp_difference/max"] < 1e-3 for row in rows)  # of what was really sampled
    assert rows[-1]["quarantine/norm"] > 0.1
    assert set(json.loads((lab / "summary.json").read_text())["models"]) == {"base", "policy", "deployed"}


def test_a_run_is_evaluated_by_either_engine_and_goes_on(lab, tmp_path):
    found = {}
    for engine in ("vllm", "transformers"):
        done = command("evaluate", str(lab), "--engine", engine, "--env", "code", "--json", str(tmp_path / engine))
        assert done.returncode == 0, done.stdout + done.stderr
        found[engine] = json.loads((tmp_path / engine).read_text())["models"]
    for model in ("base", "policy", "deployed"):
        # 64 samples each: three standard deviations of a share of a half.
        assert abs(found["vllm"][model]["code"]["hack"] - found["transformers"][model]["code"]["hack"]) < 0.27
    assert found["vllm"]["policy"]["code"]["hack"] > found["vllm"]["deployed"]["code"]["hack"] + 0.3
    done = command("resume", str(lab), "trainer.max_steps=4")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [row["step"] for row in metrics(lab)] == [1, 2, 3, 4]
    assert metrics(lab)[-1]["parity/policy"] < 1e-3


def test_episodes_are_played_by_the_engine_and_their_log_probabilities_fit(tmp_path):
    parts = write_chat_model(tmp_path / "parts")
    config = chat_config(parts, tmp_path / "run", {"talk": {"path": "Talk"}, "ask": {"path": "Ask"}},
                         rollout={"engine": "vllm_colocate", "parity": {"every": 1}})
    rows = metrics(pipeline.train(config, []))
    assert len(rows) == 4 and all(max(row["parity/policy"], row["parity/deployed"]) < 1e-3 for row in rows)
    # Of the model's own tokens alone, each turn's beside its own tokens; a row shifted by one would be nats apart.
    assert all(row["train/sampling/sampling_logp_difference/max"] < 1e-3 for row in rows)
