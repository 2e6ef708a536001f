"""Stock `vllm serve` as the engine: end to end, and what happens when it dies, hangs, or serves something else."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from routed_rl.config import RolloutConfig
from routed_rl.errors import ParityError, RolloutError
from routed_rl.rollout import Lora, Sampling
from routed_rl.rollout.launch import LaunchedServer
from tests import pipeline
from tests.chat import chat_config, write_chat_model
from tests.parts import own_config, write_parts
from tests.rollout.live import ROOT, TWO, Setup, asked, command, metrics, servers_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("lab") / "run"
    done = command("train", "rollout=vllm_server", "rollout.launch=true", "trainer.max_steps=6", "evaluation.samples=64",
                   "rollout.parity.every=1", f"out={out}")
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_the_lab_trains_on_a_server_that_it_starts_and_stops(lab):
    rows = metrics(lab)
    assert len(rows) == 6 and all(row["parity/policy"] < 1e-3 and row["parity/deployed"] < 1e-3 for row in rows)
    assert all(row["train/sampling/sampling_logp_difference/max"] < 1e-3 for row in rows)
    models = json.loads((lab / "summary.json").read_text())["models"]
    assert models["policy"]["code"]["hack"] > models["deployed"]["code"]["hack"] + 0.3


@pytest.mark.parametrize("name", ["llama, tied", "qwen3, heads of 32"])
def test_a_server_is_the_trainer_quarantine_on_and_off_and_a_skipped_sync_is_found(name, tmp_path):
    setup = Setup(name, tmp_path, frozen=[] if name == "llama, tied" else ["embedding", "unembedding"])
    with setup.serve(engine="vllm_server", launch=True) as (served, check):
        check.run(0)
        setup.move()
        with pytest.raises(ParityError):
            check.run(1)
        served.sync()
        assert max(check.run(1).values()) < 1e-4
        rows = served.complete([[3, 4], [5, 6, 7]] * 10, Sampling(1.0, 10, [1], seed=4))
        assert rows == served.complete([[3, 4], [5, 6, 7]] * 10, Sampling(1.0, 10, [1], seed=4))
        assert len({tuple(row) for row in rows}) > 10


class Training:
    """A long run on a launched server, in a process of its own."""

    def __init__(self, out: Path, *settings: str) -> None:
        self.out = out
        arguments = ["train", "rollout=vllm_server", "rollout.launch=true", "trainer.max_steps=400", "trainer.save_steps=1",
                     "evaluation.samples=0", f"out={out}", *settings]
        self.process = subprocess.Popen([sys.executable, "-m", "routed_rl.cli", *arguments], cwd=ROOT, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})

    def wait_for_steps(self, steps: int) -> None:
        give_up = time.monotonic() + 600
        while not (self.out / "checkpoints" / f"step-{steps}" / "COMPLETE.json").exists():
            assert self.process.poll() is None and time.monotonic() < give_up, self.process.communicate()[0]
            time.sleep(0.2)

    def signal_servers(self, number: int) -> list[int]:
        servers = servers_of(self.process.pid)
        assert servers
        for pid in servers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        return servers

    def error(self) -> str:
        output = self.process.communicate(timeout=300)[0]
        assert self.process.returncode == 2, output
        return output.splitlines()[-1]


@pytest.mark.parametrize("settings", [[], ["launch=ddp", *TWO]], ids=["one process", "two processes"])
def test_a_server_that_is_killed_is_a_clear_error_and_the_run_goes_on(tmp_path, settings):
    training = Training(tmp_path / "run", *settings)
    training.wait_for_steps(2)
    servers = training.signal_servers(signal.SIGKILL)
    error = training.error()
    assert "the server of the rollouts" in error and f"routed-rl resume {tmp_path / 'run'}" in error
    assert not [pid for pid in servers if Path(f"/proc/{pid}").exists()]
    steps = max(int(folder.name[5:]) for folder in (tmp_path / "run" / "checkpoints").glob("step-*"))
    done = command("resume", str(tmp_path / "run"), f"trainer.max_steps={steps + 2}")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == list(range(1, steps + 3))
    assert rows[steps]["parity/policy"] < 1e-3  # compared anew after a resume


def test_a_server_that_hangs_is_given_up_and_does_not_stay(tmp_path):
    training = Training(tmp_path / "run", "rollout.timeout_s=20", "rollout.retries=1")
    training.wait_for_steps(1)
    servers = training.signal_servers(signal.SIGSTOP)
    begin = time.monotonic()
    error = training.error()
    assert "rollout.timeout_s=20" in error and "routed-rl resume" in error
    assert time.monotonic() - begin < 120 and not [pid for pid in servers if Path(f"/proc/{pid}").exists()]


def test_a_server_that_cannot_start_says_why_and_leaves_nothing(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": 64, "num_attention_heads": 2}')
    server = LaunchedServer(RolloutConfig(engine="vllm_server", launch=True), tmp_path, None)
    with pytest.raises(RolloutError, match="`vllm serve` ended") as error:
        server.wait()
    assert server.process.poll() is not None and str(server.log) in str(error.value)
    server.log.unlink()


@pytest.fixture(scope="module")
def own_server(tmp_path_factory):
    """A server that somebody else started for the model of `tests/parts.py`, padded by nobody: heads of 32."""
    parts = write_parts(tmp_path_factory.mktemp("parts"), heads=1)
    config = RolloutConfig(engine="vllm_server", launch=True)
    server = LaunchedServer(config, parts / "model", Lora(8, ["down_proj", "o_proj"]))
    server.wait()
    yield parts, server.url
    server.stop()


def test_servers_of_ones_own_are_used_and_stay(own_server, tmp_path):
    parts, url = own_server
    for name in ("first", "second"):  # the second run finds what the first one pushed
        config = own_config(parts, tmp_path / name, trainer={"max_steps": 2},
                            rollout={"engine": "vllm_server", "urls": [url], "parity": {"every": 1}})
        rows = metrics(pipeline.train(config, []))
        assert all(max(row["parity/policy"], row["parity/deployed"]) < 1e-3 for row in rows)


def test_several_servers_share_the_work_and_are_all_the_policy(own_server, tmp_path):
    parts, url = own_server
    other = LaunchedServer(RolloutConfig(engine="vllm_server", launch=True), parts / "model", Lora(8, ["down_proj", "o_proj"]))
    try:
        other.wait()
        config = own_config(parts, tmp_path / "run", trainer={"max_steps": 3},
                            rollout={"engine": "vllm_server", "urls": [url, other.url], "parity": {"every": 1}})
        before = [asked(each) for each in (url, other.url)]
        rows = metrics(pipeline.train(config, []))
        shares = [asked(each) - was for each, was in zip((url, other.url), before, strict=True)]
    finally:
        other.stop()
    assert min(shares) > 0.4 * sum(shares) > 0
    assert all(max(row["parity/policy"], row["parity/deployed"]) < 1e-3 for row in rows)
    assert all(row["train/sampling/sampling_logp_difference/max"] < 1e-3 for row in rows)


def test_episodes_are_played_by_a_server(tmp_path):
    parts = write_chat_model(tmp_path / "parts")
    config = chat_config(parts, tmp_path / "run", {"talk": {"path": "Talk"}, "ask": {"path": "Ask"}},
                         rollout={"engine": "vllm_server", "launch": True, "parity": {"every": 1}})
    rows = metrics(pipeline.train(config, []))
    assert len(rows) == 4 and all(max(row["parity/policy"], row["parity/deployed"]) < 1e-3 for row in rows)
    assert all(row["train/sampling/sampling_logp_difference/max"] < 1e-3 for row in rows)


@pytest.mark.parametrize("change", [{"seed": 1}, {"hidden": 64}])
def test_a_server_with_another_model_is_refused(own_server, tmp_path, change):
    """The same shape with other weights, and another shape."""
    _, url = own_server
    other = write_parts(tmp_path / "other", **{"heads": 1, "seed": 0} | change)
    config = own_config(other, tmp_path / "run", rollout={"engine": "vllm_server", "urls": [url]})
    with pytest.raises(RolloutError, match="serves another model"):
        pipeline.train(config, [])


def test_a_server_in_another_dtype_is_refused(own_server, tmp_path):
    parts, url = own_server
    config = own_config(parts, tmp_path / "run", rollout={"engine": "vllm_server", "urls": [url], "dtype": "bfloat16"})
    with pytest.raises(RolloutError, match="computes in float32, rollout.dtype is bfloat16"):
        pipeline.train(config, [])
