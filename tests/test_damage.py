"""A file of a run that is not what was written is said in one line, whatever its shape: never a traceback, never silently."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import save_file

from routed_rl.artifacts import (
    SEAL,
    RunFolder,
    broken_seal,
    check_file,
    damage,
    data_root,
    read_json,
    read_object,
    replacing,
    require_seal,
    sealed_folder,
    write_json,
)
from routed_rl.audit import audit
from routed_rl.checkpoint import writing
from routed_rl.cli import main
from routed_rl.cli.compose import compose
from routed_rl.config import AuditConfig, Config, LaunchConfig, from_mapping
from routed_rl.errors import CheckFailed, CheckpointError, ConfigError, RoutedRLError, RunFolderError
from routed_rl.export.publish import publish
from routed_rl.model.load import load_model
from routed_rl.monitor import RULES
from routed_rl.multirun.calibrate import calibrate
from routed_rl.multirun.compare import compare
from routed_rl.multirun.job import Job, is_finished, train_or_resume, try_out
from routed_rl.multirun.labs import compare_labs
from routed_rl.multirun.sweep import sweep
from routed_rl.multirun.trials import Dimension
from routed_rl.pipeline import launched
from routed_rl.pipeline.record import moved, read_config, read_overrides, write_config
from routed_rl.pipeline.rollback import copy_until
from routed_rl.pipeline.steps import forget_deployed, forget_results
from routed_rl.report.answers import read_answers
from routed_rl.report.data import read_run
from routed_rl.tracking import MetricsFile
from tests import pipeline
from tests.families import tiny
from tests.parts import own_config
from tests.tiers import tiered

SHAPES = {"empty": b"", "list": b"[1]", "number": b"3", "null": b"null", "invalid UTF-8": b"\xff\xfe\x00", "torn": b'{"a": 1',
          "nested": b"[" * 200_000, "nothing": b"{}", "text for a record": b'{"model.safetensors": "x"}',
          "missing keys": b'{"model.safetensors": {}}', "no file name": b'{"a\\u0000b": {"bytes": 1, "sha256": ""}}',
          "long name": b'{"' + b"a" * 5000 + b'": {"bytes": 1, "sha256": ""}}', "folder": b'{".": {"bytes": 4096, "sha256": ""}}'}


@pytest.fixture
def run(tmp_path) -> RunFolder:
    """What is read before anything is loaded."""
    run = RunFolder(tmp_path / "run")
    for step in (2, 4):
        with sealed_folder(run.checkpoint(step)) as folder:
            (folder / "config.json").write_text("{}")
    run.config.write_text(yaml.safe_dump(json.loads(json.dumps(dataclasses.asdict(own_config(tmp_path, run.path))))))
    run.manifest.write_text("{}")
    (run.path / "overrides.txt").write_text("")
    return run


@pytest.mark.parametrize("shape", SHAPES)
def test_a_seal_of_any_shape_is_a_damaged_checkpoint(run, shape):
    (run.checkpoint(4) / SEAL).write_bytes(SHAPES[shape])
    assert damage(run.checkpoint(4)) is not None
    newest, (line,) = run.last_checkpoint()
    assert newest == run.checkpoint(2) and line.startswith("skipped checkpoint step-4: ")
    with pytest.raises(CheckpointError, match="--step 4: .* no whole checkpoint there .*; it has 2"):
        run.require_checkpoint(4)


def test_sealed_files_that_no_reader_takes_are_damage_too(run):
    with sealed_folder(run.checkpoint(6)) as folder:
        (folder / "model.safetensors").write_bytes(b"no tensors")
    assert "cannot be read" in (damage(run.checkpoint(6)) or "")


def test_weights_that_the_seal_does_not_name_are_damage_and_so_is_a_seal_of_gigabytes(run, monkeypatch):
    (run.checkpoint(4) / "model.safetensors").write_bytes(b"")
    assert damage(run.checkpoint(4)) == "model.safetensors is not sealed"
    monkeypatch.setattr("routed_rl.artifacts.whole.LARGEST", 3)
    assert damage(run.checkpoint(2)) == f"{SEAL} is torn"


VERBS = {"resume": lambda run: pipeline.resume(run, [], compose),
         "rollback": lambda run: pipeline.rollback(run, 2, [], False, [f"out={run}-new"], compose),
         "evaluate": lambda run: pipeline.evaluate(run, None, None, None),
         "audit": lambda run: audit(run, AuditConfig(), None, None), "job": pipeline.run_job}
RECORDS = {"manifest.json": [b"[1]", b"\xff", b"[" * 200_000, b"3", b'{"inherited": 3}',
                              b'{"fresh_from_step": "x"}', b'{"children": [1]}'],
           "HALTED.json": [b"[1]", b"\xff", b"{}", b'{"step": "x"}', b'{"step": 1.5}'],
           "config.yaml": [b"", b"[1]", b"\xff", b"{" * 1500, b"a: [", b"model: 3", b"trainer: x",
                           b"env: {a: 3}", b"seed: {a: 1}", b"1: 2",
                           b"evaluation: [1]", b"routing: {quarantine: 3}", b"monitor: {gap: {limit: x}}"]}


@pytest.mark.parametrize("verb", tiered(VERBS, quick=["resume", "evaluate"]))
def test_records_of_any_shape_are_refused_in_one_line_before_work_begins(run, verb):
    for name, contents in RECORDS.items():
        kept = (run.path / name).read_bytes() if (run.path / name).exists() else None
        for content in contents:
            (run.path / name).write_bytes(content)
            with pytest.raises(RoutedRLError) as caught:
                VERBS[verb](str(run.path))
            said = str(caught.value)
            assert "\n" not in said and (name in said or name == "config.yaml"), (content[:30], said)
        (run.path / name).unlink() if kept is None else (run.path / name).write_bytes(kept)
    assert not Path(f"{run.path}-new").exists()


def test_the_report_takes_a_damaged_record_as_not_there(run):
    for name in ("manifest.json", "HALTED.json", "summary.json", "evaluation-policy.json"):
        for content in [*SHAPES.values(), *RECORDS.get(name, []), b'{"models": 3}', b'{"results": {"a": [1]}}',
                        b'{"lineage": 3}']:
            (run.path / name).write_bytes(content)
            found = read_run(run)
            assert found.halted is None and found.lineage is None and not found.models


def test_a_launched_run_does_not_end_with_an_older_checkpoint_than_its_last_step(run, monkeypatch):
    """The processes have trained four steps, and the checkpoint of the last is damaged before it is read."""
    monkeypatch.setattr(launched, "run_processes", lambda *_: None)
    run.metrics.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(1, 5)))
    (run.checkpoint(4) / "config.json").write_text("{ }")
    parts = SimpleNamespace(model=tiny("llama"), config=SimpleNamespace(launch=LaunchConfig(strategy="ddp", processes=2)))
    with pytest.raises(CheckpointError, match="the last step, 4, was damaged after it was written; .* from step-2: routed"):
        launched.train(parts, run, None, None)  # type: ignore[arg-type]


def test_a_missing_manifest_is_said(run):
    run.manifest.unlink()
    with pytest.raises(RunFolderError, match="manifest.json is missing"):
        pipeline.resume(str(run.path), [], compose)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"models": 3}', b'{"models": {"base": {"a": {"solve": "x"}}}}'])
def test_a_summary_of_any_shape_is_no_result(run, content):
    run.summary.write_bytes(content)
    with pytest.raises(RunFolderError, match="summary.json is damaged"):
        run.results()


def test_lines_of_the_metrics_that_are_no_rows_are_left_out_and_no_rule_stumbles(tmp_path):
    lines = [b'{"step": 1, "train/loss": 0.5}', b"[1]", b"3", b"\xff", b'{"step": true}', b'{"step": "2"}', b"{}", b"[" * 200_000,
             b'{"step": 2, "quarantine/relative": [1]}', b'{"step": 2, "quarantine/relative": 1' + b"0" * 400 + b"}",
             b'{"step": 2']
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.path.write_bytes(b"\n".join(lines))
    assert file.rows() == [{"step": 1, "train/loss": 0.5}]
    text = dict.fromkeys(("ledger/a/shift/b", "ledger/a/push", "quarantine/relative", "train/frac_reward_zero_std"), "x")
    assert not any(rule.read({"step": 2, **text}, {}, None) for rule in RULES.values())


def test_a_model_folder_that_was_sealed_is_evaluated_as_it_was_written_or_not_at_all(tmp_path):
    with sealed_folder(tmp_path / "deployed") as folder:
        (folder / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "deployed" / "README.md").write_text("a note beside it")
    require_seal(tmp_path / "deployed")
    (tmp_path / "deployed" / "model.safetensors").write_bytes(b"wei")
    target = str(tmp_path / "deployed")
    for use in (lambda: pipeline.evaluate(target, None, None, compose([])), lambda: load_model(target),
                lambda: pipeline.train(compose([f"model.path={target}", f"out={tmp_path / 'run'}"]), [])):
        with pytest.raises(CheckpointError, match="deployed is damaged: model.safetensors is not what was written; .*discard"):
            use()
    assert not (tmp_path / "run").exists()


def test_records_say_none_for_a_folder_or_a_file_that_is_not_there(tmp_path):
    assert read_object(tmp_path, {}) is None and read_object(tmp_path / "none.json", {}) is None


@pytest.mark.parametrize("inside", ["", "file"])
def test_a_file_or_folder_that_is_replaced_stays_until_the_new_one_is_whole(tmp_path, inside):
    path = tmp_path / "it"

    def write(place: Path, text: str) -> None:
        if inside:
            place.mkdir()
        (place / inside).write_text(text)

    with replacing(path) as place:
        write(place, "old")
    with suppress(ZeroDivisionError), replacing(path) as place:
        write(place, "half")
        raise ZeroDivisionError
    assert (path / inside).read_text() == "old" and list(tmp_path.iterdir()) == [path]
    path.with_name(".it.partial").write_text("a killed process left it")
    with replacing(path) as place:
        write(place, "new")
        assert (path / inside).read_text() == "old"
    assert (path / inside).read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_names_the_file_that_was_to_be_written(tmp_path):
    def write() -> None:
        with replacing(tmp_path / "x") as partial:
            partial.symlink_to("/dev/full")
            partial.write_text("much")

    with pytest.raises(OSError, match="No space left") as refusal:
        write()
    assert refusal.value.filename == str(tmp_path / "x") and not list(tmp_path.iterdir())


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_weights_of_a_sealed_folder_are_readable_for_whom_the_umask_says(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        with sealed_folder(tmp_path / "model") as folder:
            save_file({"weight": torch.zeros(1)}, folder / "model.safetensors")
    finally:
        os.umask(before)
    assert {oct(path.stat().st_mode & 0o777) for path in (tmp_path / "model").iterdir()} == {oct(mode)}
    assert broken_seal(tmp_path / "model") is None


WRITING = [["report", "RUN", "--out"], ["audit", "RUN", "--json"], ["evaluate", "RUN", "--json"], ["filter", "RUN", "--out"],
           ["relearn", "RUN", "--env", "a", "--json"], ["env", "check", "empty", "--markdown"]]
"""Commands whose last argument is a file that they write."""
MODELS = [["discard", "RUN", "--out"], ["export", "RUN", "--policy"], ["robustify", "RUN", "--alpha", "1", "--out"]]
"""Commands whose last argument is a folder that they write."""


def refusal(words: list[str], run: RunFolder, last: Path, capsys) -> str:
    assert main([*(str(run.path) if word == "RUN" else word for word in words), str(last)]) == 2, words
    said = capsys.readouterr().err.strip()
    assert "\n" not in said
    return said


def test_a_file_is_never_written_in_place_of_a_folder(run, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis").write_text("years")
    for words in WRITING:
        assert f"{words[-1]} {tmp_path / 'mine'} is a folder; give a file" in refusal(words, run, tmp_path / "mine", capsys)
        assert (tmp_path / "mine" / "thesis").read_text() == "years"


def test_a_place_below_a_file_is_refused_in_one_line(run, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for words in [*WRITING, *MODELS]:
        said = refusal(words, run, tmp_path / "file" / "x", capsys)
        assert f"x cannot be made: {tmp_path / 'file'} is no folder that can be written to" in said


def test_two_exports_into_one_folder_are_refused_before_either_is_written(run, tmp_path, capsys):
    words = ["export", "RUN", "--quarantine", str(tmp_path / "out"), "--policy"]
    (tmp_path / "link").symlink_to(tmp_path / "out")
    for other in ("out", "out/inner", "x/../out", "link", "."):
        assert "are one folder, or one lies in the other; give two" in refusal(words, run, tmp_path / other, capsys)
    assert not (tmp_path / "out").exists() and not (tmp_path / "x").exists()


@pytest.mark.slow
def test_no_model_is_written_into_a_sealed_folder_whose_seal_it_would_break(run, tmp_path, capsys):
    (tmp_path / "link").symlink_to(run.checkpoint(4))
    extracting = compose([f"out={run.checkpoint(4)}/x"])
    with pytest.raises(RunFolderError, match="would lie inside .*step-4, which is complete and sealed"):
        pipeline.extract(extracting, [], False)
    for words in MODELS:
        for place in (run.checkpoint(4) / "x", run.checkpoint(4) / "x" / "y", tmp_path / "link" / "x"):
            said = refusal(words, run, place, capsys)
            assert f"would lie inside {run.checkpoint(4)}, which is complete and sealed (COMPLETE.json)" in said
    assert broken_seal(run.checkpoint(4)) is None


@pytest.mark.slow
def test_no_command_writes_over_what_a_run_has_written_for_itself(run, tmp_path, capsys):
    run.metrics.write_text("{}\n")
    (tmp_path / "link").symlink_to(run.path)
    for words in WRITING:
        for place in (run.metrics, run.config, tmp_path / "link" / "summary.json", run.completions / "step-000001.parquet",
                      run.path / "evaluation-base.json"):
            assert f"is a place in which the run {run.path} keeps its own files" in refusal(words, run, place, capsys)
    assert main(["filter", str(run.path), "--force", "--out", str(run.metrics)]) == 2 and run.metrics.read_text() == "{}\n"
    assert check_file(run.report, "--out") == run.report and check_file(run.path / "again.json", "--json")


def test_text_never_takes_the_place_of_a_folder(tmp_path):
    (tmp_path / "mine" / "inner").mkdir(parents=True)
    with pytest.raises(RunFolderError, match="mine is a folder; give a file"):
        write_json(tmp_path / "mine", {})
    assert (tmp_path / "mine" / "inner").is_dir()


def test_a_record_that_would_hold_nan_is_refused_by_its_place_and_the_old_one_stays(tmp_path):
    file = tmp_path / "summary.json"
    write_json(file, {"models": {"base": [1, 2.0, True, None]}})
    with pytest.raises(CheckFailed, match=r"summary\.json is not written, since models\.base\.1=nan is not finite; .*"):
        write_json(file, {"models": {"base": [1, math.nan]}, "other": -math.inf})
    assert read_json(file) == {"models": {"base": [1, 2.0, True, None]}}


def test_overrides_with_line_breaks_are_read_as_they_were_typed(run):
    typed = ['env.a.note="two\nlines"', "env.b.note=\u2028\x85", "seed=1"]
    write_config(run, own_config(run.path, run.path), typed)
    assert read_overrides(run) == typed and read_run(run).overrides == typed
    (run.path / "overrides.txt").write_text("seed=2\n")
    assert read_overrides(run) == ["seed=2"], "a file that its owner has changed counts"


@pytest.mark.slow
def test_a_run_goes_on_although_the_package_lies_at_another_place_since_it_began(run):
    config = dataclasses.replace(compose(["trainer.max_steps=4"]), out=str(run.path))
    old = yaml.safe_dump(dataclasses.asdict(config)).replace(str(data_root()), "/old/place")
    run.config.write_text(old)
    was = read_config(run)  # all that `resume` without settings, `evaluate` and others know
    assert (was.subspace, was.env, was.model.path) == (config.subspace, config.env, config.model.path)
    typed = ["env.a.path={}/environments/x.py:A", "subspace.parts=[{0}/a,'{0}/b']", "env.b.path=/of{0}/x.py:B", "seed=1"]
    (run.path / "overrides.txt").write_text("".join(f"{word.format('/old/place')}\n" for word in typed))
    assert read_overrides(run) == [word.format(data_root()) for word in typed[:2]] + ["env.b.path=/of/old/place/x.py:B", "seed=1"]
    now = moved(from_mapping(yaml.safe_load(old)), config)
    assert now.subspace == config.subspace and now.env == config.env and now.model.path == config.model.path
    assert not is_finished(Job("a", config, []), "--out")
    run.config.write_text(old.replace("/old/place/environments/personas/roles", "/old/place/other/roles"))
    with pytest.raises(RunFolderError, match="was run with other settings .subspace.roles_file: /old/place/other/ro"):
        is_finished(Job("a", config, []), "--out")
    (elsewhere := run.path / "of").mkdir()
    (elsewhere / "environments" / "personas").mkdir(parents=True)
    for file in (data_root() / "environments" / "personas").glob("*.jsonl"):
        (elsewhere / "environments" / "personas" / file.name).touch()
    run.config.write_text(old.replace("/old/place", str(elsewhere)))  # another checkout, which is still there
    assert str(read_config(run).subspace.roles_file).startswith(str(elsewhere))


def test_a_run_that_goes_on_with_other_settings_began_when_it_began(run):
    run.manifest.write_text('{"created": "2020-02-02T00:00:00+00:00"}')
    write_config(run, own_config(run.path, run.path), ["seed=1"])
    assert (run.facts()["created"], run.facts()["overrides"]) == ("2020-02-02T00:00:00+00:00", ["seed=1"])


def test_the_results_of_a_shorter_run_are_gone_while_it_goes_on_and_the_base_models_stay(run, tmp_path):
    said = {"completion": "x", "reward": 1.0, "solve": None, "flags": {}}
    row = {"environment": "a", "task": 0, "prompt": "p", "answers": {"base": said, "policy": said, "deployed": said}}
    run.answers.write_text(json.dumps(row) + "\n")
    for model in ("base", "policy", "deployed"):
        write_json(run.path / f"evaluation-{model}.json", {"results": {"a": {"solve": 0.5}}})
    new = RunFolder(tmp_path / "new")
    new.path.mkdir()
    copy_until(run, new, 0)
    forget_results(run)
    for each in (run, new):
        assert [list(answer["answers"]) for answer in read_answers(each.answers)] == [["base"]]
        assert [path.name for path in each.path.glob("evaluation-*")] == ["evaluation-base.json"]


def test_a_link_to_a_folder_stays_if_a_run_is_refused_and_nothing_behind_a_link_is_removed(tmp_path):
    (real := tmp_path / "disk").mkdir()
    (link := tmp_path / "run").symlink_to(real)
    (real / "config.yaml").touch()
    RunFolder(link).abandon_if_empty()
    assert link.is_symlink() and not [*real.iterdir()]
    (real / "mine").touch()
    for text in ("1", "2"):
        with replacing(link) as partial:
            partial.mkdir()
            (partial / "file").write_text(text)
    assert not link.is_symlink() and (link / "file").read_text() == "2" and (real / "mine").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "run"], "a link that was put aside is gone, too"


def test_a_checkpoint_that_was_moved_to_another_disk_and_linked_does_not_stop_the_run(tmp_path):
    run, disk = RunFolder(tmp_path / "run"), tmp_path / "disk"
    with writing(run, 1, keep=1) as partial:
        (partial / "file").touch()
    run.checkpoint(1).rename(disk)
    run.checkpoint(1).symlink_to(disk)
    with writing(run, 2, keep=1) as partial:
        (partial / "file").touch()
    assert run.steps() == [2] and (disk / "file").exists()


@pytest.mark.parametrize("there", [True, False])
def test_a_model_is_written_to_where_a_link_leads_and_a_site_takes_the_place_of_a_link(tmp_path, there):
    if there:
        (tmp_path / "disk" / "model").mkdir(parents=True)
    (tmp_path / "model").symlink_to(tmp_path / "disk" / "model")
    (tmp_path / "site").symlink_to(tmp_path / "nowhere")
    for _ in range(2):
        assert publish(tmp_path / "model", lambda folder: (folder / "x").touch()) == tmp_path / "model"
    assert (tmp_path / "model").is_symlink() and not broken_seal(tmp_path / "disk" / "model")
    with pytest.raises(RunFolderError, match="already holds something else"):
        publish(tmp_path / "model", lambda folder: (folder / "y").touch())
    with replacing(tmp_path / "site") as partial:
        partial.mkdir()
    assert (tmp_path / "site").is_dir() and not (tmp_path / "site").is_symlink()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["COMPLETE.json", "disk", "model", "model", "site", "x"]


@pytest.mark.parametrize("discard", [True, False])
def test_the_deployed_model_of_a_shorter_run_is_gone_while_it_goes_on_unless_the_user_wrote_it(run, discard, capsys):
    run.deployed.mkdir()
    forget_deployed(run, discard=discard)
    assert run.deployed.exists() != discard
    assert ("removing" if discard else "stays as it is") in capsys.readouterr().out


def test_a_run_without_an_evaluation_says_how_to_evaluate_it(run, tmp_path):
    write_config(run, own_config(tmp_path, run.path, evaluation={"samples": 0}), [])
    with pytest.raises(ConfigError, match=r"evaluation\.samples=0.*resume .* evaluation\.samples=200` evaluates"):
        pipeline.evaluate(str(run.path), None, None, None)


def test_a_subspace_in_place_of_the_present_folder_is_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"out=\. exists already"):
        pipeline.extract(Config(out="."), [], False)


def test_a_run_of_many_takes_nothing_away_that_no_run_has_begun(run, tmp_path):
    run.config.unlink()  # a damaged copy: its checkpoints are there
    with pytest.raises(RunFolderError, match="already holds files"):
        train_or_resume(own_config(tmp_path, run.path), [])
    assert run.steps() == [2, 4]


@pytest.mark.slow
def test_many_runs_are_not_written_into_the_folder_of_one(run):
    given, before = str(run.path), {path.name for path in run.path.iterdir()}
    many = {"--out": (lambda: compare([], ["none"], 1, given, 1, [], compose),
                      lambda: calibrate([], [], 20, 0.01, given, 1, compose),
                      lambda: compare_labs(["shipped"], [], ["none"], 1, given, 1, [], compose)),
            "out=": (lambda: sweep([f"out={given}"], [Dimension("seed", ["0", "1"])], compose),)}
    for option, calls in many.items():
        for call in calls:
            with pytest.raises(RunFolderError, match=f"{option}.*run is the folder of one run, and many runs are to be written"):
                call()
    assert {path.name for path in run.path.iterdir()} == before


def test_runs_are_tried_out_where_they_will_lie_whatever_the_present_folder_is(tmp_path, monkeypatch):
    monkeypatch.setattr("routed_rl.pipeline.train.prepared", lambda _config, run, account: (print(run.path), None))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").touch()  # nothing can be made below it
    (tmp_path / "model").mkdir()
    monkeypatch.setattr("routed_rl.pipeline.train.has_weights", lambda _: True)
    try_out(own_config(tmp_path, tmp_path / "out"), [])
    assert not (tmp_path / "out").exists()
