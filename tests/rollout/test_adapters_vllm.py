"""A LoRA that is trained on both engines of vLLM: the policy and the deployed model are the trainer's, and a sync is fast."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from routed_rl.errors import ParityError, RolloutError
from tests.parts import own_config, write_parts
from tests.rollout.live import MODELS, MODES, ROOT, Setup, command, metrics, trained_smollm2

pytestmark = [pytest.mark.slow, pytest.mark.timeout(5400)]

LORA = {"r": 7, "alpha": 10, "rslora": True}
SERVED = [name for name in MODELS if "gpt2" not in name]


@pytest.mark.parametrize("name", SERVED)
def test_the_engine_is_the_trainer_quarantine_on_and_off(name, tmp_path):
    setup = Setup(name, tmp_path, lora=LORA)
    with setup.serve() as (served, check):
        served.sync()
        check.run(0)
        for step in (1, 2):  # again: an adapter is replaced in its place
            setup.move()
            with pytest.raises(ParityError, match="of the policy"):  # the sync is skipped
                check.run(step)
            served.sync()
            assert max(check.run(step).values()) < 1e-4  # float32
        on, off = (served.logprobs(check.sequences, deployed=deployed) for deployed in (False, True))
        assert max(abs(a - b) for x, y in zip(on, off, strict=True) for a, b in zip(x, y, strict=True)) > 0.1


def test_what_vllm_has_no_adapters_for_is_refused_in_one_line(tmp_path):
    setup = Setup("llama, tied", tmp_path, lora=LORA)
    with setup.serve() as (served, _):
        tensors = served.models.tensors("policy")
        renamed = {name.replace("q_proj", "other_proj"): value for name, value in tensors.items()}
        with pytest.raises(RolloutError, match="vLLM does not take the adapter: .*other_proj.*rollout=transformers") as refusal:
            served.engine.load_adapter("policy", renamed)
        assert "\n" not in str(refusal.value)
    with pytest.raises(RolloutError, match="GPT2LMHeadModel does not support LoRA") as refusal, \
            Setup("gpt2, biases", tmp_path / "gpt2", lora=LORA).serve():
        pass
    assert "\n" not in str(refusal.value)


@MODES
def test_the_lab_trains_with_practice_is_evaluated_and_goes_on(mode, tmp_path):
    run = tmp_path / "run"
    done = command("train", "model.adapter=lora", *mode, "trainer.max_steps=3", "evaluation.samples=64", "rollout.parity.every=1",
                   "routing.practice.environments=all", f"out={run}")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = metrics(run)
    assert len(rows) == 3 and rows[-1]["quarantine/norm"] > 0
    done = command("evaluate", str(run), "--env", "code", "--scales", ".5", "--json", str(tmp_path / "found.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "found.json").read_text())["models"].keys() == {"base", "policy", "deployed"}
    done = command("resume", str(run), "trainer.max_steps=4")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = metrics(run)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(max(row["parity/policy"], row["parity/deployed"]) < 1e-3 for row in rows)
    assert all(row["train/sampling/sampling_logp_difference/max"] < 1e-3 for row in rows)  # of both models' completions


@pytest.mark.parametrize("adapter", [[], ["model.adapter=lora"]], ids=["weights", "lora"])
@MODES
def test_the_lab_routes_by_labels_and_both_models_are_the_trainers(mode, adapter, tmp_path):
    run = tmp_path / "run"
    done = command("train", "routing=labels", *adapter, *mode, "trainer.max_steps=3", "evaluation.samples=64",
                   "rollout.parity.every=1", f"out={run}")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = metrics(run)
    assert len(rows) == 3 and rows[-1]["quarantine/norm"] > 0
    assert all(max(row["parity/policy"], row["parity/deployed"]) < 1e-3 for row in rows)


def test_a_server_without_room_for_the_adapters_is_refused_with_its_options(tmp_path):
    from routed_rl.config import RolloutConfig
    from routed_rl.rollout import Lora
    from routed_rl.rollout.launch import LaunchedServer
    from tests import pipeline

    parts = write_parts(tmp_path / "parts", heads=1)
    server = LaunchedServer(RolloutConfig(engine="vllm_server", launch=True), parts / "model", Lora(8, ["down_proj", "o_proj"]))
    try:
        server.wait()
        config = own_config(parts, tmp_path / "run", model={"path": str(parts / "model"), "adapter": {"kind": "lora", "r": 4}},
                            rollout={"engine": "vllm_server", "urls": [server.url]})
        with pytest.raises(RolloutError, match="has no room .* --max-loras 2 --max-lora-rank 8 --lora-target-modules down_proj"):
            pipeline.train(config, [])
    finally:
        server.stop()


@MODES
def test_smollm2_trains_a_lora_on_either_engine_with_parity_all_along(mode, tmp_path):
    """Of a small rank: on CPUs vLLM copies the adapter's weights for every token, and with the default ranks a step takes 12
    minutes."""
    rows = trained_smollm2(tmp_path / "run", *mode, "model.adapter=lora", "model.adapter.r=4", "subspace.rank=2",
                           "subspace.layout=per_layer", "trainer.max_steps=4", "trainer.learning_rate=1e-3")
    # The fourth line's rollouts are those after three steps.
    assert len(rows) == 4 and all(row["train/sampling/sampling_logp_difference/max"] < 1e-3 for row in rows)
    assert rows[-1]["quarantine/norm"] > 0


@pytest.mark.parametrize("engine", ["vllm_colocate", "vllm_server"])
def test_a_sync_of_smollm2s_adapters_takes_less_than_a_tenth_of_a_second(engine, tmp_path):
    """By the clock, the best of several, since it needs a core to itself."""
    out = tmp_path / "found.json"
    subprocess.run([sys.executable, "scripts/bench_adapters.py", "--engine", engine, "--json", str(out)], cwd=ROOT, check=True,
                   timeout=1800)
    found = json.loads(Path(out).read_text())
    print(found)
    assert found["policy_s"] < 0.1 and found["deployed_s"] < 0.1
