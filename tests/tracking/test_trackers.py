"""`trainer.report_to`: each tracker works, or is refused in one line that names what to install."""

from __future__ import annotations

import importlib.util

import pytest

from routed_rl.errors import ConfigError
from routed_rl.tracking import split_report_to
from tests import pipeline
from tests.parts import own_config, write_parts


@pytest.mark.parametrize(("report_to", "split"), [
    (None, (False, [])), ("none", (False, [])), ([], (False, [])), ("wandb", (True, [])),
    (["wandb", "tensorboard"], (True, ["tensorboard"]))])
def test_wandb_is_ours_and_the_others_are_transformers_own(report_to, split):
    assert split_report_to(report_to) == split


@pytest.mark.parametrize(("tracker", "package"), [("wandb", "wandb"), ("trackio", "trackio"), ("tensorboard", "tensorboardX")])
def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_written(tmp_path, monkeypatch, tracker, package):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    config = own_config(write_parts(tmp_path), tmp_path / "run", trainer={"report_to": tracker})
    with pytest.raises(ConfigError, match=rf"^trainer.report_to={tracker} needs a package .*: pip install {package}$"):
        pipeline.train(config, [])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("tracker", ["all", "mlflow", "weights"])
def test_any_other_tracker_is_refused_with_those_that_there_are(tracker):
    with pytest.raises(ConfigError, match=rf"^trainer.report_to={tracker} is not supported; choose from none, wandb, trackio"):
        split_report_to([tracker])


def test_tensorboard_gets_every_metric_of_a_step(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    config = own_config(write_parts(tmp_path), tmp_path / "run", trainer={"max_steps": 2, "report_to": "tensorboard"})
    run = pipeline.train(config, [])
    data, names = next((run / "runs").rglob("events*")).read_bytes(), set()
    while data:  # Length, its checksum, the event, its checksum.
        length = int.from_bytes(data[:8], "little")
        names |= {value.tag for value in Event.FromString(data[12:12 + length]).summary.value}
        data = data[16 + length:]
    assert {"train/quarantine/norm", "train/ledger/a/push", "train/loss"} <= names
