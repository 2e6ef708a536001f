"""Whole runs whose environments live in processes of their own: the same run, bit for bit, whatever happens to a process."""

from __future__ import annotations

import json
import logging
import os
import signal

import pytest
import torch
from safetensors.torch import load_file

from routed_rl.artifacts import RunFolder
from routed_rl.training.tasks import RewardFunction
from tests import pipeline
from tests.parts import own_config

STEPS = 20


def config(parts, out, isolate):
    wanted = own_config(parts, out, trainer={"max_steps": STEPS, "save_steps": STEPS})
    for settings in wanted.env.values():
        settings["isolate"] = isolate
    return wanted


@pytest.fixture(scope="module")
def here(parts, tmp_path_factory):
    """The run with its environments in this process."""
    return pipeline.train(config(parts, tmp_path_factory.mktemp("runs") / "here", False), [])


def final_state(run) -> dict[str, torch.Tensor]:
    folder = RunFolder(run).require_checkpoint()
    return load_file(folder / "model.safetensors") | load_file(folder / "quarantine.safetensors")


def assert_same(run, other) -> None:
    ours, theirs = final_state(run), final_state(other)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert json.loads((run / "summary.json").read_text())["models"] == json.loads((other / "summary.json").read_text())["models"]


def metrics(run) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_in_processes_is_the_run_in_the_trainers_own(parts, here, tmp_path):
    there = pipeline.train(config(parts, tmp_path / "there", True), [])
    assert_same(there, here)
    names = {name for row in metrics(there) for name in row}
    assert names == {name for row in metrics(here) for name in row}, "a run without restarts reports none"


@pytest.mark.slow
def test_a_run_whose_environments_are_killed_twenty_times_ends_as_if_they_were_not(parts, here, tmp_path, monkeypatch, caplog):
    scored, killed = RewardFunction.__call__, []

    def kill_first(self, *args, **kwargs):
        environment = self.table.environments[len(killed) % 2].environment
        process = environment.child(0).process
        os.kill(process.pid, signal.SIGKILL)
        process.wait()  # on a busy machine it may take longer than a scoring
        killed.append(environment.name)
        return scored(self, *args, **kwargs)

    monkeypatch.setattr(RewardFunction, "__call__", kill_first)
    with caplog.at_level(logging.WARNING, "routed_rl.envs"):
        run = pipeline.train(config(parts, tmp_path / "run", True), [])
    assert len(killed) == STEPS
    assert_same(run, here)
    assert sum("was killed by SIGKILL" in record.message for record in caplog.records) == STEPS
    last = metrics(run)[-1]
    assert last["environment/a/restarts"] + last["environment/b/restarts"] == STEPS
    assert last["environment/a/failures"] == last["environment/b/failures"] == 0
