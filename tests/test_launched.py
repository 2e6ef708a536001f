"""A run in several processes as a whole: one folder, one way out, and `resume` goes on where it was ended."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from routed_rl.artifacts import RunFolder, read_json
from routed_rl.errors import CheckFailed, ConfigError, Stopped
from routed_rl.pipeline import steps
from routed_rl.pipeline.build import load_parts
from routed_rl.pipeline.launched import following
from routed_rl.pipeline.memory import needs
from routed_rl.pipeline.record import dated, read_config
from routed_rl.stopping import STOP
from routed_rl.tracking import Tracker
from routed_rl.training.backends import check_launch
from tests import pipeline
from tests.chat import chat_config, write_chat_model
from tests.parts import own_config, typed, write_parts
from tests.ranks import on_ranks
from tests.training.test_resume import assert_same, lines, metrics, no_compose

DDP = {"strategy": "ddp", "processes": 2}
HALF = {"per_device_train_batch_size": 16}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return write_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def undisturbed(parts, tmp_path_factory):
    """Six steps in two processes."""
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    return pipeline.train(own_config(parts, out, launch=DDP, trainer=HALF,
                                     evaluation={"samples": 16, "every": 3, "during_samples": 8}), [])


@pytest.mark.slow
def test_two_processes_make_one_run_that_discard_and_one_process_can_read(parts, undisturbed, tmp_path):
    rows = metrics(undisturbed)
    assert [row["step"] for row in rows] == list(range(1, 7))
    assert all(0 < row["routing/drift"] < 1e-6 and row["routing/bytes"] > 0 for row in rows)
    evaluated = [{key for key in row if key.startswith("evaluation/")} for row in rows]
    assert [step for step, keys in enumerate(evaluated, 1) if keys] == [3, 6]
    assert {f"evaluation/{model}/{name}/hack" for model in ("policy", "deployed") for name in "abp"} <= evaluated[2]
    scored = [row["environment/a/failures"] for row in rows]
    assert scored == [0.0] * 6
    assert len(list(undisturbed.glob("completions/*.parquet"))) == 12
    assert set(read_json(undisturbed / "summary.json")["models"]) == {"base", "policy", "deployed"}
    pipeline.discard(str(undisturbed), str(tmp_path / "deployed"))
    assert (tmp_path / "deployed" / "model.safetensors").exists()
    folder = RunFolder(undisturbed).require_checkpoint()
    names = {path.name for path in folder.iterdir()}
    assert {"optimizer.pt", "loop.pt", "loop-1.pt", "rng_state_0.pth", "rng_state_1.pth"} <= names


def test_a_dry_run_of_a_job_writes_script_and_settings_and_shows_what_runs_where(parts, tmp_path, capsys):
    job = {"where": "slurm", "strategy": "ddp", "nodes": 4, "processes": 8}
    config = own_config(parts, tmp_path / "run", launch=job, trainer=HALF)
    assert pipeline.train(config, ["launch=slurm"], dry_run=True) == tmp_path / "run"
    said = capsys.readouterr().out
    assert "512 completions a step = 16 on a device x 1 accumulated x 32 processes; 512 at a time: 64 groups of 8" in said
    assert "srun --nodes=4" in said and "each of 4 nodes, 8 processes" in said and "not submitted" in said
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"config.yaml", "overrides.txt", "manifest.json", "job.sbatch"}
    found = read_config(RunFolder(tmp_path / "run"))
    assert found == dated(config, found.model.date)


@pytest.mark.parametrize(("settings", "message"), [
    ({"rollout": {"engine": "vllm_colocate"}}, "rollout.engine=vllm_colocate.*set rollout=vllm_server"),
    ({"rollout": {"engine": "vllm_server", "launch": True}, "launch": DDP | {"nodes": 2, "where": "slurm"}},
     r"rollout.launch=true .* launch.nodes is 2; .*rollout.urls=\[http://HOST:PORT\]"),
    ({"launch": {"strategy": "fsdp2", "processes": 2}, "trainer": {"bf16": True}}, "trainer.bf16=true .* launch=ddp"),
    ({"launch": {"strategy": "zero3", "processes": 2}, "model": {"path": "m", "dtype": "bfloat16", "adapter": {"kind": "lora"}}},
     "model.dtype=bfloat16 .*launch.strategy=zero3.* launch=fsdp2"),
])
def test_what_several_processes_cannot_do_is_refused_with_the_way_out(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        check_launch(own_config(tmp_path, tmp_path / "run", **{"launch": DDP} | settings))


@pytest.mark.parametrize("gpus", [0, 1, 2, 3])
def test_a_server_that_is_started_is_refused_where_no_gpu_is_left_for_it(tmp_path, monkeypatch, gpus):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    config = own_config(tmp_path, tmp_path / "run", launch=DDP, rollout={"engine": "vllm_server", "launch": True})
    refused = pytest.raises(ConfigError, match=rf"launch.processes=2, and there are {gpus}; .*set rollout.urls")
    with refused if gpus in (1, 2) else nullcontext():
        check_launch(config)


def test_episodes_are_refused_where_no_process_can_go_on_alone(tmp_path):
    config = chat_config(write_chat_model(tmp_path / "parts"), tmp_path / "run", {"talk": {"path": "Talk"}},
                         launch={"strategy": "fsdp2", "processes": 2})
    with pytest.raises(ConfigError, match=r"environment talk has episodes.*launch.strategy=fsdp2.*set rollout=vllm_server"):
        pipeline.train(config, [])
    assert not (tmp_path / "run").exists()


def test_pieces_take_their_share_of_a_devices_memory(parts):
    def need(strategy, processes):
        found = needs(load_parts(own_config(parts, "unused", launch={"strategy": strategy, "processes": processes})))
        return {need.name: need.bytes for need in found}

    whole, ddp, zero1, fsdp2 = need("none", 1), need("ddp", 4), need("zero1", 4), need("fsdp2", 4)
    assert ddp == whole and whole["optimizer"] == 2 * whole["weights"]
    assert zero1["weights"] == whole["weights"] and zero1["optimizer"] == 3 * whole["weights"] // 4  # a copy of the weights too
    assert fsdp2["weights"] == whole["weights"] // 4 and fsdp2["ledgers"] == whole["ledgers"]


class Told(Tracker):
    def __init__(self) -> None:
        self.rows: list[int] = []
        self.checkpoints: list[int] = []

    def row(self, row):
        self.rows.append(row["step"])

    def checkpoint(self, step):
        self.checkpoints.append(step)


def test_a_tracker_is_told_what_other_processes_write_while_they_do(tmp_path):
    run, told = RunFolder(tmp_path), Told()
    run.metrics.write_text('{"step": 1}\n')
    run.checkpoint(1).mkdir(parents=True)
    with following(run, told, every_s=0.01), open(run.metrics, "a", buffering=1) as file:
        for step in (2, 3):
            file.write(f'{{"step": {step}')
            file.flush()
            time.sleep(0.05)
            assert told.rows == list(range(2, step)), "a line that is being written is none yet"
            file.write("}\n")
            deadline = time.monotonic() + 10
            while told.rows != list(range(2, step + 1)):
                assert time.monotonic() < deadline
                time.sleep(0.01)
        run.checkpoint(3).mkdir()
    assert (told.rows, told.checkpoints) == ([2, 3], [3])


def told_to_stop(config, number):
    """Train, and be sent a signal in the third step; what came of it."""
    def when(state):
        return state.global_step == 2

    from routed_rl.training.callback import RoutingCallback

    begin = RoutingCallback.on_step_begin

    def on_step_begin(self, args, state, control, **kwargs):
        begin(self, args, state, control, **kwargs)
        if when(state):
            os.kill(os.getpid(), number)

    RoutingCallback.on_step_begin = on_step_begin
    try:
        with STOP.listening():
            pipeline.train(config, [])
    except Stopped as stopped:
        return stopped.signal, str(stopped)
    return None


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_the_step_and_resume_goes_on_bit_for_bit(parts, tmp_path, number):
    whole = on_ranks(pipeline.train, own_config(parts, tmp_path / "whole", trainer={"max_steps": 4}), [], world=1)[0]
    config = own_config(parts, tmp_path / "run", trainer={"max_steps": 4})
    got, said = on_ranks(told_to_stop, config, number, world=1)[0]
    assert got == number
    assert re.search(rf"stopped by {number.name} after step 3, with a checkpoint; to go on: routed-rl resume", said)
    assert RunFolder(tmp_path / "run").steps() == [2, 3]
    on_ranks(pipeline.resume, str(tmp_path / "run"), [], no_compose, world=1)
    assert_same(tmp_path / "run", whole)


def test_a_second_ctrl_c_ends_at_once_and_so_does_one_outside_of_steps(capfd):
    with STOP.listening():
        with STOP.stepping():
            os.kill(os.getpid(), signal.SIGINT)
            assert STOP.asked == signal.SIGINT and "Ctrl-C once more ends at once" in capfd.readouterr().err
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert STOP.asked is None, "the next training in this process is not stopped by what stopped this one"


def test_a_signal_while_the_last_checkpoint_is_written_stops_the_command_after_it(monkeypatch, tmp_path):
    trainer = SimpleNamespace(stopped=0, state=SimpleNamespace(global_step=4),
                              train=lambda **_: os.kill(os.getpid(), signal.SIGTERM))
    monkeypatch.setattr(steps, "build_trainer", lambda *_, **__: trainer)
    monkeypatch.setattr(steps, "fresh_from_step", lambda _: 0)
    parts, plan = SimpleNamespace(learner=None, tokenizer=None, trained=[]), SimpleNamespace(run=RunFolder(tmp_path / "run"))
    with STOP.listening(), pytest.raises(Stopped, match="stopped by SIGTERM after step 4, with a checkpoint; to go on: "):
        steps._train_here(parts, plan, None, None, None, None, None)


def start(parts: Path, out: Path) -> subprocess.Popen:
    """The command line, in two processes."""
    settings = typed(parts, out, "launch=ddp", "trainer.per_device_train_batch_size=16")
    return subprocess.Popen([sys.executable, "-m", "routed_rl.cli", "train", *settings], text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.getcwd()})


@pytest.fixture(scope="module")
def ended(parts, tmp_path_factory):
    """The same command, to its end."""
    out = tmp_path_factory.mktemp("runs") / "ended"
    process = start(parts, out)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    return out


def workers(out: Path) -> list[int]:
    """Processes of the run, in order."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes().split(b"\0")
            environment = (path / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"routed_rl.pipeline" in command and str(out).encode() in command:
            rank = next(entry for entry in environment if entry.startswith(b"RANK="))
            found.append((int(rank[5:]), int(path.name)))
    return [pid for _, pid in sorted(found)]


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


ENDS = {
    "a process is killed": (1, signal.SIGKILL, 2, "process 1 of 2 was killed by SIGKILL.*to go on from step-2: routed-rl resume"),
    "the launcher is killed": (None, signal.SIGKILL, -9, None),
    "the launcher is told to stop": (None, signal.SIGTERM, 143, "stopped by SIGTERM.*routed-rl resume"),
    "a process is told to stop": (1, signal.SIGUSR1, 138, "stopped by SIGUSR1 after step.*routed-rl resume"),
}


@pytest.mark.slow
@pytest.mark.timeout(1800)  # four launches, each of which imports everything three times
@pytest.mark.parametrize("end", ENDS)
def test_a_run_in_two_processes_ends_as_a_whole_and_resumes_bit_for_bit(parts, ended, tmp_path, end):
    rank, number, code, said = ENDS[end]
    out = tmp_path / "run"
    process, deadline = start(parts, out), time.monotonic() + 600
    while lines(out) < 3:
        assert process.poll() is None and time.monotonic() < deadline, "it ended before it could be ended"
        time.sleep(0.01)
    pids = workers(out)
    assert len(pids) == 2
    os.kill(process.pid if rank is None else pids[rank], number)
    begin = time.monotonic()
    _, errors = process.communicate(timeout=60)
    while any(running(pid) for pid in pids):
        assert time.monotonic() - begin < 60
        time.sleep(0.1)
    assert process.returncode == code
    if said:
        assert len(errors.strip().splitlines()) == 1 and re.search(said, errors)
    pipeline.resume(str(out), [], no_compose)
    assert_same(out, ended)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_halt_comes_through_with_its_exit_code_and_record(parts, tmp_path, capfd):
    from routed_rl.errors import Halted

    config = own_config(parts, tmp_path / "run", launch=DDP, trainer=HALF, evaluation={"samples": 0},
                        monitor={"gap": {"limit": 0.01, "action": "halt"}, "warmup": 0})
    with pytest.raises(Halted):
        pipeline.train(config, [])
    assert read_json(tmp_path / "run" / "HALTED.json")["step"] == RunFolder(tmp_path / "run").steps()[-1]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_number_that_is_not_finite_ends_all_processes_alike(parts, tmp_path):
    trainer = HALF | {"learning_rate": 2e9, "save_steps": 1}
    with pytest.raises(CheckFailed, match="step 1: a logit of the policy is not finite; nothing of this step was saved"):
        pipeline.train(own_config(parts, tmp_path / "run", launch=DDP, trainer=trainer), [])
    assert RunFolder(tmp_path / "run").steps() == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_a_user_did_wrong_comes_through_in_one_line(parts, tmp_path):
    from routed_rl.errors import RoutedRLError

    env = {"a": {"path": f"{parts}/environment.py:Add", "fails": 0.5, "returns": "raises"}}
    config = own_config(parts, tmp_path / "run", launch=DDP, trainer=HALF, env=env, evaluation={"samples": 0})
    with pytest.raises(RoutedRLError, match=r"environment a failed to score \d+ of its last \d+ completions") as caught:
        pipeline.train(config, [])
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_other_numbers_of_processes_go_on_from_the_same_checkpoint(parts, undisturbed, tmp_path):
    import shutil

    copied = tmp_path / "run"
    shutil.copytree(undisturbed, copied)
    config = own_config(parts, copied, trainer={"max_steps": 7})
    pipeline.resume(str(copied), ["anything"], lambda _: config)
    assert [row["step"] for row in metrics(copied)] == list(range(1, 8))
    old, new = (torch.load(RunFolder(each).require_checkpoint() / "optimizer.pt", weights_only=True)["state"][0]["step"]
                for each in (undisturbed, copied))
    assert (old, new) == (6, 7)
