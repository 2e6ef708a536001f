"""wandb, offline: what it was told is in its file, as another process reads it; and telling it changes nothing."""

from __future__ import annotations

import json

import pytest
import torch
import wandb
from safetensors.torch import load_file

from routed_rl.artifacts import RunFolder, read_json
from routed_rl.errors import Halted
from routed_rl.tracking import wandb_run
from tests import pipeline
from tests.parts import own_config, write_parts
from tests.tiers import tiered
from tests.tracking.offline import read_elsewhere

ALWAYS = {"monitor": {"share": {"limit": 0.0, "action": "halt"}, "warmup": 2}}
"""Halts after step 3."""


@pytest.fixture(scope="module", autouse=True)
def own_files(tmp_path_factory):
    """wandb's own folders, and no key."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("home")
        for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
            patch.setenv(name, str(home))
        for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
            patch.delenv(name, raising=False)
        patch.setenv("NETRC", str(home / "netrc"))
        yield


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return write_parts(tmp_path_factory.mktemp("parts"))


def settings(parts, out, report_to="wandb", **changes):
    return own_config(parts, out, trainer={"max_steps": 4, "per_device_train_batch_size": 16, "report_to": report_to},
                      tracking={"report": report_to == "wandb"}, **changes)


@pytest.fixture(scope="module")
def tracked(parts, tmp_path_factory):
    return pipeline.train(settings(parts, tmp_path_factory.mktemp("runs") / "tracked"), [])


@pytest.fixture(scope="module")
def untracked(parts, tmp_path_factory):
    return pipeline.train(settings(parts, tmp_path_factory.mktemp("runs") / "untracked", "none"), [])


@pytest.fixture(scope="module")
def found(tracked):
    return read_elsewhere(tracked)


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_every_row_arrives_under_its_own_names_and_steps(tracked, found):
    steps = [row for row in found["rows"] if "train/loss" in row]
    assert [row["step"] for row in steps] == [1, 2, 3, 4]
    for row, written in zip(steps, metrics(tracked), strict=True):
        assert {key: row[key] for key, value in written.items() if value is not None} == {
            key: value for key, value in written.items() if value is not None}
    assert ["*", "step"] in found["metrics"] and found["exit"] == 0
    assert found["config"]["seed"] == 0 and found["project"] == "routed_rl" and found["tags"] == ["route"]


def test_layers_are_a_histogram_a_step_which_wandb_draws_as_a_map(tracked, found):
    row, written = found["rows"][0], metrics(tracked)[0]
    assert row["quarantine/layers/values"] == [written["quarantine/layer/0/norm"], written["quarantine/layer/1/norm"]]
    assert row["quarantine/layers/bins"] == [0, 1, 2]


def test_subspace_checkpoints_and_quarantine_are_artifacts_with_hashes_and_lineage(tracked, found):
    last = {artifact["type"]: artifact for artifact in found["artifacts"]}
    subspace, checkpoint, quarantine = (last[kind] for kind in ("subspace", "checkpoint", "quarantine"))
    assert set(checkpoint["aliases"]) == set(quarantine["aliases"]) == {"latest", "step-4"}
    assert "subspace.safetensors" in subspace["files"]
    assert checkpoint["files"] == ["COMPLETE.json"] and quarantine["files"] == ["quarantine.safetensors"]
    assert checkpoint["metadata"]["sealed"] == read_json(tracked / "checkpoints" / "step-4" / "COMPLETE.json")
    assert checkpoint["metadata"]["step"] == 4 and checkpoint["metadata"]["group"] == found["group"]


def test_completions_are_a_table_that_grows_and_the_report_is_a_page(tracked, found):
    assert len([artifact for artifact in found["artifacts"] if artifact["type"] == "wandb-run-incremental-table"]) == 2
    tables = [json.loads(path.read_text()) for path in tracked.glob("wandb/offline-run-*/files/media/table/completions*.json")]
    rows = [row for table in tables for row in table["data"]]
    assert tables[0]["columns"] == wandb_run.COLUMNS and {row[0] for row in rows} == {1, 2, 3, 4}
    assert list(tracked.glob("wandb/offline-run-*/files/media/html/report*.html"))


def test_tracking_changes_no_bit_of_the_training(tracked, untracked):
    first, second = (RunFolder(run).checkpoint(4) for run in (tracked, untracked))
    for name in ("model.safetensors", "quarantine.safetensors"):
        ours, theirs = load_file(first / name), load_file(second / name)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    ours, theirs = (torch.load(folder / "rng_state.pth", weights_only=False) for folder in (first, second))
    assert ours["python"] == theirs["python"] and torch.equal(ours["cpu"], theirs["cpu"])
    timed = ("time", "runtime")
    for a, b in zip(metrics(tracked), metrics(untracked), strict=True):
        assert a.keys() == b.keys()
        assert all(a[key] == b[key] for key in a if not any(word in key for word in timed))


@pytest.mark.parametrize("moment", tiered(["init", "log"], slow=["init"]))
def test_a_tracker_that_fails_is_said_once_and_the_run_goes_on(parts, untracked, tmp_path, monkeypatch, capsys, moment):
    def fails(*_, **__):
        raise wandb.Error("the server is on fire\nand more")

    if moment == "init":
        monkeypatch.setattr(wandb_run.wandb, "init", fails)
    else:
        monkeypatch.setattr(wandb_run.wandb.Run, "log", fails)
    run = pipeline.train(settings(parts, tmp_path / "run"), [])
    said = [line for line in capsys.readouterr().out.splitlines() if "on fire" in line]
    assert said == ["tracking stopped, the run goes on: the server is on fire"]
    assert (run / "summary.json").exists() and len(metrics(run)) == 4
    if wandb.run is not None:
        wandb.run.finish()


@pytest.mark.slow
def test_a_halt_is_an_alert_a_tag_and_in_the_summary_and_what_follows_is_one_group(parts, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(Halted):
        pipeline.train(settings(parts, run, **ALWAYS), [])
    halted = read_elsewhere(run)
    record = read_json(run / "HALTED.json")
    (alert,) = halted["alerts"]
    assert alert["title"].startswith("halted: share") and record["commands"][-1] in alert["text"]
    assert halted["tags"] == ["route", "halted"] and halted["exit"] == 3
    assert halted["summary"]["halted/step"] == 3 and halted["summary"]["halted/rule"] == "share"

    pipeline.resume(str(run), [], None)  # type: ignore[arg-type]
    resumed = read_elsewhere(run, -1)
    new = tmp_path / "new"
    with pytest.raises(Halted):
        pipeline.rollback(str(run), 2, [], False, [f"out={new}"], lambda _: settings(parts, new, **ALWAYS))
    back = read_elsewhere(new)
    ours = read_json(run / "wandb.json")["id"]
    assert (halted["job"], resumed["job"], back["job"]) == ("train", "resume", "rollback")
    assert halted["group"] == resumed["group"] == back["group"] == ours
    assert resumed["config"]["went_on_from"] == f"{ours}-checkpoint:step-3"
    assert back["config"]["went_on_from"] == f"{ours}-checkpoint:step-2" and back["config"]["lineage"]["parent"] == str(run)
    assert {artifact["metadata"].get("parent") for artifact in back["artifacts"] if artifact["type"] == "checkpoint"} == {ours}


@pytest.mark.parametrize(("variables", "netrc", "mode"), [
    ({}, None, "offline"), ({"WANDB_MODE": "online"}, None, "offline"), ({"WANDB_MODE": "disabled"}, None, "disabled"),
    ({"WANDB_API_KEY": "k"}, None, "online"), ({"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, None, "offline"),
    ({}, "machine github.com login a password b", "offline"), ({}, "machine api.wandb.ai login user password k", "online"),
    ({"WANDB_BASE_URL": "http://own.host:8080"}, "machine api.wandb.ai login user password k", "offline"),
    ({}, "torn", "offline")])
def test_without_a_key_for_this_server_it_is_offline_and_never_asks(tmp_path, monkeypatch, variables, netrc, mode):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    if netrc:
        (tmp_path / "netrc").write_text(netrc + "\n")
        (tmp_path / "netrc").chmod(0o600)
    assert wandb_run.mode() == mode
