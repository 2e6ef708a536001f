"""Several processes that train on the completions of stock `vllm serve`: each asks for its own, the first pushes for all."""

from __future__ import annotations

import importlib.util
import json

import pytest

from routed_rl.config import RolloutConfig
from routed_rl.rollout import Lora
from routed_rl.rollout.launch import LaunchedServer
from tests import pipeline
from tests.chat import chat_config, write_chat_model
from tests.parts import own_config, write_parts
from tests.rollout.live import TWO, asked, command, metrics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def assert_parity(rows: list[dict]) -> None:
    assert all(max(row["parity/policy"], row["parity/deployed"]) < 1e-3 for row in rows)
    assert all(row["train/sampling/sampling_logp_difference/max"] < 1e-3 for row in rows)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "zero3"])
def test_the_lab_trains_in_two_processes_on_one_server(strategy, tmp_path):
    if strategy == "zero3" and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("pip install 'routed-rl[deepspeed]'")
    done = command("train", "rollout=vllm_server", "rollout.launch=true", f"launch={strategy}", *TWO, "trainer.max_steps=3",
                   "evaluation.samples=64", "evaluation.every=3", "rollout.parity.every=1", f"out={tmp_path / 'run'}",
                   timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = metrics(tmp_path / "run")
    assert len(rows) == 3 and rows[-1]["quarantine/norm"] > 0
    assert_parity(rows)
    models = json.loads((tmp_path / "run" / "summary.json").read_text())["models"]
    assert models["policy"]["code"]["hack"] > models["deployed"]["code"]["hack"] + 0.3
    assert rows[-1]["evaluation/policy/code/hack"] > rows[-1]["evaluation/deployed/code/hack"] + 0.3


def test_two_processes_share_two_servers_also_where_one_has_nothing_to_evaluate(tmp_path):
    parts = write_parts(tmp_path / "parts", heads=1)
    config = RolloutConfig(engine="vllm_server", launch=True)
    servers = [LaunchedServer(config, parts / "model", Lora(8, ["down_proj", "o_proj"])) for _ in range(2)]
    try:
        for server in servers:
            server.wait()
        before = [asked(server.url) for server in servers]
        run = own_config(parts, tmp_path / "run", trainer={"max_steps": 3, "per_device_train_batch_size": 16},
                         env={"a": {"path": f"{parts}/environment.py:Add"}}, evaluation={"samples": 4, "every": 1},
                         launch={"strategy": "ddp", "processes": 2},
                         rollout={"engine": "vllm_server", "urls": [server.url for server in servers], "parity": {"every": 1}})
        assert_parity(metrics(pipeline.train(run, [])))
        shares = [asked(server.url) - was for server, was in zip(servers, before, strict=True)]
    finally:
        for server in servers:
            server.stop()
    assert min(shares) > 0.4 * sum(shares) > 0


def test_episodes_that_end_apart_are_played_where_weights_are_in_pieces(tmp_path):
    parts = write_chat_model(tmp_path / "parts")
    config = chat_config(parts, tmp_path / "run", {"talk": {"path": "Talk"}, "ask": {"path": "Ask"}},
                         launch={"strategy": "fsdp2", "processes": 2},
                         rollout={"engine": "vllm_server", "launch": True, "parity": {"every": 1}})
    rows = metrics(pipeline.train(config, []))
    assert len(rows) == 4
    assert_parity(rows)
