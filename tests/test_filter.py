"""`filter`: what stays of a run's completions, what is left out and why."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from routed_rl.artifacts import RunFolder
from routed_rl.config import FilterConfig
from routed_rl.errors import ConfigError, RunFolderError, SubspaceError
from routed_rl.extraction.persona import asked_again, standing
from routed_rl.extraction.probe import Probe
from routed_rl.pipeline.build import load_parts
from routed_rl.pipeline.candidates import Candidate, candidates
from routed_rl.pipeline.judges import by_chance
from routed_rl.subspace import Subspace
from tests import pipeline
from tests.chat import chat_config, write_chat_model
from tests.parts import own_config, write_parts

NONE = {"mode": "none", "practice": {"share": 0}}
SMALL = {"pool": 120, "labels": 0.5}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return write_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def run(parts, tmp_path_factory):
    """An unrouted run of four steps; its detector's settings are those of a small run."""
    config = own_config(parts, tmp_path_factory.mktemp("runs") / "run", routing=NONE, baseline={"detector": SMALL},
                        trainer={"max_steps": 2, "per_device_train_batch_size": 128}, discard=False, evaluation={"samples": 0})
    return pipeline.train(config, [])


@pytest.fixture(scope="module")
def subspace(parts, tmp_path_factory) -> Path:
    return pipeline.extract(own_config(parts, tmp_path_factory.mktemp("subspaces") / "subspace"), [], False)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def filtered(run: Path, folder: Path, **asked) -> tuple[list[dict], list[dict]]:
    """What stays and what is left out."""
    out = folder / "out.jsonl"
    pipeline.filter_run(str(run), FilterConfig(**asked), str(out), force=True)
    return lines(out), lines(out.with_name("out.left_out.jsonl"))


def stored(run: Path) -> pd.DataFrame:
    return pd.concat([pd.read_parquet(file) for file in RunFolder(run).completion_files()], ignore_index=True)


def is_bad(row: dict) -> bool:
    return "bad" in row["completion"].split()


def test_every_completion_either_stays_or_is_left_out_for_a_reason(run, tmp_path):
    kept, gone = filtered(run, tmp_path, detector="flags")
    every = stored(run)
    assert len(kept) + len(gone) == len(every) == 256
    assert kept and not any(map(is_bad, kept)) and gone and all(map(is_bad, gone))
    assert {row["reason"] for row in gone} == {"flagged as hack"} and "reason" not in kept[0]
    assert [(row["prompt"], row["completion"], row["step"], row["reward"]) for row in kept] == [
        (row.prompt, row.completion, row.step, row.reward) for row in every.itertuples() if "bad" not in row.completion.split()]


def test_a_probe_that_few_rows_taught_leaves_out_what_is_flagged(run, tmp_path, capsys):
    kept, gone = filtered(run, tmp_path, fpr=0.1)
    said = capsys.readouterr().out
    assert "from 128 labelled completions" in said and "on 128 others: AUROC" in said
    share = sum(map(is_bad, stored(run).to_dict("records"))) / 256
    assert sum(map(is_bad, kept)) / len(kept) < share / 3
    assert sum(not is_bad(row) for row in gone) < 0.3 * 256
    assert all(row["reason"].startswith("the probe's score ") for row in gone)
    assert max(row["score"] for row in kept) <= min(row["score"] for row in gone)


def test_the_random_control_leaves_out_the_share_that_is_asked_for(run, tmp_path):
    kept, gone = filtered(run, tmp_path, detector="random", share=0.25)
    assert len(gone) == 64 and sum(map(is_bad, kept)) > 0
    assert (kept, gone) == filtered(run, tmp_path, detector="random", share=0.25)


def test_the_random_control_counts_what_cannot_be_judged_among_what_it_leaves_out():
    rows = [Candidate("a", 1, ("say", str(place)), 1.0, {}, "an episode" if place < 40 else None) for place in range(100)]
    for share, drawn in ((0.5, 10), (0.3, 0), (1.0, 60)):
        judged = by_chance(rows, share, seed=0)
        assert sum(reason is not None for reason in judged.reasons[40:]) == drawn and not any(judged.reasons[:40])


def test_the_threshold_of_a_shift_is_passed_by_the_chosen_share_of_honest_completions(run, subspace, tmp_path, capsys):
    kept, gone = filtered(run, tmp_path, subspace=str(subspace), fpr=0.2)
    said = " ".join(capsys.readouterr().out.split())
    limit, share = re.search(r"a shift above (\S+) gaps is left out; (\S+) of \d+ honest", said).groups()
    assert 0.1 < float(share) <= 0.2, "of equal scores none is above the threshold"
    assert max(row["score"] for row in kept) <= float(limit) + 5e-4 and gone
    assert all(row["score"] > float(limit) - 5e-4 and row["reason"].endswith(f"gaps, more than {limit}") for row in gone)


@pytest.mark.slow
def test_a_completion_that_shifts_nothing_at_any_of_the_layers_stays(run, subspace, tmp_path):
    each = [filtered(run, tmp_path, subspace=str(subspace), max_shift=0.05, layers=layers)[1] for layers in ([0], [1], [0, 1])]
    first, second, both = ({(row["prompt"], row["completion"]) for row in gone} for gone in each)
    assert both == first & second and both < first | second


def test_what_cannot_be_judged_is_left_out_and_said(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    file = RunFolder(copy).completion_files()[0]
    table = pd.read_parquet(file)
    table.loc[0, "reward"] = float("nan")
    table.loc[1, "completion"] = json.dumps([{"role": "assistant", "content": "3"}])
    table.to_parquet(file)
    _, gone = filtered(copy, tmp_path)
    assert [row["reason"] for row in gone[:2]] == ["could not be scored", "an episode, which no model reads at once"]
    assert gone[0]["reward"] is None and gone[0]["score"] is None
    table["reward"] = float("nan")
    for file in RunFolder(copy).completion_files():
        table.to_parquet(file)
    with pytest.raises(ConfigError, match="every completion of .* is an episode or could not be scored, so nothing would stay"):
        filtered(copy, tmp_path)


@pytest.mark.slow
def test_a_run_of_episodes_and_single_completions_is_filtered_by_the_single_ones(tmp_path):
    """Where the base model writes completions of its own, it can write none of an episode either."""
    parts = write_chat_model(tmp_path / "parts")
    env = {"talk": {"path": "Talk"}, "ask": {"path": "Ask", "weight": [[0, 0.0], [2, 1.0]]}}
    config = chat_config(parts, tmp_path / "run", env, trainer={"max_steps": 2}, discard=False, evaluation={"samples": 0},
                         baseline={"detector": SMALL})
    run = pipeline.train(config, [])
    kept, gone = filtered(run, tmp_path, subspace=str(run / "subspace"), max_shift=100.0)
    assert {row["environment"] for row in kept} == {"ask"}
    assert {(row["environment"], row["reason"]) for row in gone} == {("talk", "an episode, which no model reads at once")}


def test_a_runs_own_probe_is_used_unless_other_settings_are_asked_for(run, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    everything = Probe([1], torch.zeros(1, 32), torch.ones(1), threshold=0.0)
    everything.save(copy / "detector", {})
    assert filtered(copy, tmp_path)[0] == []
    assert "the run's own probe" in (said := " ".join(capsys.readouterr().out.split())) and "no completion of a stays" in said
    assert filtered(copy, tmp_path, fpr=0.1)[0]


def test_files_that_exist_are_replaced_with_force_alone(run, tmp_path):
    for name in ("out.jsonl", "out.left_out.jsonl"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(ConfigError, match=rf"{name} exists; give another, or --force"):
            pipeline.filter_run(str(run), FilterConfig(detector="flags"), str(tmp_path / "out.jsonl"))
        assert (tmp_path / name).read_text() == "mine"
        (tmp_path / name).unlink()
    for folder in (str(tmp_path), ".", "/"):
        with pytest.raises(RunFolderError, match="is a folder; give a file"):
            pipeline.filter_run(str(run), FilterConfig(detector="flags"), folder, force=True)


def test_a_run_without_completions_is_refused_with_the_setting_that_keeps_them(parts, tmp_path):
    config = own_config(parts, tmp_path, tracking={"completions": False})
    with pytest.raises(RunFolderError, match=r"has no completions: it was trained with tracking.completions=false; train with"):
        candidates(RunFolder(tmp_path), config)


def test_what_is_not_of_this_run_or_model_is_refused(run, subspace, tmp_path, monkeypatch):
    found = Subspace.load(subspace)
    theirs = dataclasses.replace(found, provenance=dataclasses.replace(found.provenance, model_hash="0" * 64))
    theirs.save(tmp_path / "theirs")
    cases = [(FilterConfig(subspace=str(tmp_path / "theirs")), SubspaceError, "was extracted from .* extract one from"),
             (FilterConfig(labels=4), ConfigError, "of 4 labelled .* and . are not; a probe needs 4 of each: raise --labels$"),
             (FilterConfig(labels=999), ConfigError, "--labels 999: the run has 256 completions that can be labelled"),
             (FilterConfig(layers=[9]), ConfigError, "^--layers has 9, but .* has 2 layers"),
             (FilterConfig(subspace=str(subspace), layers=[7]), ConfigError, "^--layers has 7, but .* has 2 layers")]
    for asked, kind, said in cases:
        with pytest.raises(kind, match=said):
            pipeline.filter_run(str(run), asked, str(tmp_path / "out.jsonl"))
    monkeypatch.setattr("routed_rl.pipeline.judges.base_completions", lambda *_: [])
    with pytest.raises(ConfigError, match="has written nothing honest in any environment"):
        pipeline.filter_run(str(run), FilterConfig(subspace=str(subspace)), str(tmp_path / "out.jsonl"))
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(("asked", "said"), [
    ({"labels": 0}, "--labels must be a share of the completions above 0 and below 1, or their number, got 0"),
    ({"labels": math.nan}, "--labels must be a finite number, got nan"), ({"layers": []}, r"--layers must be layers that differ"),
    ({"layers": [-1]}, r"--layers must be layers that differ, counted from 0: \[1,2\], got \[-1\]")])
def test_options_of_a_probe_that_cannot_be_are_refused_by_their_own_names_before_anything_is_read(asked, said):
    with pytest.raises(ConfigError, match=said):
        FilterConfig(**asked)


def test_a_completion_is_read_where_its_prompt_ends_when_it_is_asked_again(parts, subspace):
    loaded, found = load_parts(own_config(parts, "nowhere")), Subspace.load(subspace)
    ids = asked_again(loaded.tokenizer, [("add 1 2 =", "bad 3")])
    assert loaded.tokenizer.decode(ids[0]) == "add 1 2 = bad 3 add 1 2 ="
    read = standing(loaded.model, loaded.tokenizer, [("add 1 2 =", "bad 3")], found, 4, layers=[1])
    with torch.no_grad():
        stream = loaded.model(torch.tensor(ids), output_hidden_states=True).hidden_states
    one = standing(loaded.model, loaded.tokenizer, [("add 1 2 =", "bad 3")], found, 4, layers=[0])
    expected = stream[1][0, -1] @ found.axes[0][:, 0] / found.scales[0, 0]
    torch.testing.assert_close(one.squeeze(), expected, atol=1e-4, rtol=1e-4)
    assert read.shape == (1, 1)


@pytest.mark.slow
def test_who_learns_from_what_stays_solves_and_does_not_hack(tmp_path):
    """The bar of rows 14 and 15, on one seed: hack at most .05 above the base model's at 90 % of the solve that learning from all
    gives; what chance leaves is .3 worse."""
    script = Path(__file__).parent.parent / "scripts" / "bench_filter.py"
    subprocess.run([sys.executable, script, "--out", tmp_path / "bench", "--seeds", "1"], check=True)
    found = json.loads((tmp_path / "bench" / "filter.json").read_text())["0"]
    for name in ("probe", "subspace"):
        assert found[name]["code"]["hack"] <= found["base"]["code"]["hack"] + 0.05
        assert found[name]["sums"]["solve"] >= 0.9 * found["all"]["sums"]["solve"]
        assert found["random"]["code"]["hack"] >= found[name]["code"]["hack"] + 0.3
