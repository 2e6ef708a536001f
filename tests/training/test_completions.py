"""The completions' files: what each completion pushed stands beside it, whatever shuffled, split, reused or stopped the run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from routed_rl.artifacts import RunFolder
from routed_rl.pipeline import halting
from routed_rl.pipeline.build import load_parts, make_router, make_subspace
from routed_rl.report.ranking import BY_GAP, BY_SHIFT, hardest
from routed_rl.routing import StepRows
from routed_rl.tracking import MetricsFile, encouraged
from routed_rl.training.build import build_trainer
from routed_rl.training.completions import CompletionFiles, forget_after
from routed_rl.training.plan import make_plan
from tests import pipeline
from tests.parts import own_config
from tests.tiers import tiered

REUSED = {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 2, "steps_per_generation": 4, "num_iterations": 2}
"""A generation is learned from in four steps, each of its completions in two of them."""


def config(parts, out, *, completions=64, **trainer):
    return own_config(parts, out, trainer={"max_steps": 5, "save_steps": 3} | trainer, evaluation={"samples": 0},
                      monitor={"completions": completions})


def tables(run: Path) -> dict[str, pd.DataFrame]:
    return {path.name: pd.read_parquet(path) for path in sorted((run / "completions").glob("*.parquet"))}


def final(run: Path) -> dict[str, torch.Tensor]:
    folder = RunFolder(run).require_checkpoint()
    return load_file(folder / "model.safetensors") | load_file(folder / "quarantine.safetensors")


@pytest.fixture(scope="module")
def runs(parts, tmp_path_factory):
    """The same run: each completion learned from once, and reused."""
    folder = tmp_path_factory.mktemp("runs")
    return {name: pipeline.train(config(parts, folder / name, **settings), [])
            for name, settings in (("once", {}), ("reused", REUSED | {"max_steps": 6}))}


@pytest.mark.parametrize("settings", tiered([{}, REUSED, {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4,
                                                          "steps_per_generation": 2}], quick=[REUSED]))
def test_rows_meet_the_completions_that_they_were(parts, tmp_path, settings):
    wanted = config(parts, tmp_path / "run", **settings)
    loaded = load_parts(wanted)
    router = make_router(loaded, make_subspace(loaded))
    (tmp_path / "run").mkdir()
    plan = make_plan(wanted, RunFolder(tmp_path / "run"))
    trainer = build_trainer(plan, loaded.model, loaded.tokenizer, loaded.trained, router)
    said: dict[int, tuple[str, str]] = {}
    booked: dict[int, list[float]] = {}
    compute, learned = trainer._compute_loss, trainer.reward.completions.learned

    def look(model, inputs):
        for place, number in enumerate(inputs["completion_index"].tolist()):
            texts = [loaded.tokenizer.decode(inputs[f"{part}_ids"][place][inputs[f"{part}_mask"][place].bool()],
                                             skip_special_tokens=True) for part in ("prompt", "completion")]
            assert said.setdefault(number, tuple(texts)) == tuple(texts), "a number is one completion for ever"
        return compute(model, inputs)

    def book(rows):
        for number, shift in zip(rows.completions_R.tolist(), rows.shift_R.nan_to_num().tolist(), strict=True):
            booked.setdefault(number, []).append(shift)
        learned(rows)

    trainer._compute_loss, trainer.reward.completions.learned = look, book
    trainer.train()
    files = pd.concat(tables(tmp_path / "run").values(), ignore_index=True)  # in the order in which they were made
    assert len(files) >= len(said) == len(booked) > 0
    assert {len(shifts) for shifts in booked.values()} <= ({1, 2} if settings is REUSED else {1})
    for number, texts in said.items():
        row = files.loc[number]
        assert (row["prompt"], row["completion"].strip()) == (texts[0], texts[1].strip())
        assert np.nan_to_num(row["shift"]) == pytest.approx(sum(booked[number]), abs=1e-12)
    assert files["shift"].abs().max() > 0 and files["push"].abs().max() > 0


def test_a_steps_completions_sum_to_its_metrics(runs):
    rows = {row["step"]: row for row in MetricsFile(runs["once"] / "metrics.jsonl").rows()}
    for name, table in tables(runs["once"]).items():
        step = int(name.split("-")[1])
        for environment in ("a", "b"):
            mine = table[table["environment"] == environment]
            if step == 1:
                assert mine[["push", "shift"]].isna().all(axis=None), "nothing to compare with yet"
                assert f"completions/{environment}/own_push" not in rows[1]
                continue
            assert mine["push"].sum() == pytest.approx(rows[step][f"completions/{environment}/own_push"], abs=1e-12)
            assert mine["shift"].sum() == pytest.approx(rows[step][f"completions/{environment}/own_shift"], abs=1e-12)


@pytest.mark.slow
def test_only_the_first_and_last_of_an_environment_are_kept(parts, runs, tmp_path):
    few = pipeline.train(config(parts, tmp_path / "few", completions=2), [])
    whole = tables(runs["once"])
    for name, table in tables(few).items():
        assert table["shift"].isna().all() == (name == "step-000001-0.parquet")
        for environment in ("a", "b"):
            mine, other = (each[each["environment"] == environment].reset_index() for each in (table, whole[name]))
            assert mine["push"].notna().sum() <= 2 * 2 * 2 + 2, "two at either end of either column, two of those encouraged"
            for column in ("push", "shift"):
                values = other[column].dropna().sort_values()
                ends = {*values.index[:2], *values.index[-2:]}
                assert ends <= set(mine.index[mine[column].notna()])
                kept = mine[column].dropna()
                assert (kept == other[column][kept.index]).all()


def test_those_that_were_paid_more_than_their_group_have_places_of_their_own(tmp_path):
    """Discouraged completions shift most, also towards the persona: away from what they did, which is not what is paid for."""
    rewards = [0.0] * 8 + [1.0] * 8
    shifts = [9.0 + place for place in range(8)] + [1.0 + place for place in range(8)]
    files = CompletionFiles(tmp_path, keep=3)
    files.write([{"environment": "a", "task": 0, "prompt": "p", "completion": f"c{place}", "reward": reward, "solve": 0.0,
                  "flags": "{}"} for place, reward in enumerate(rewards)], 1)
    files.learned(some(shifts))
    kept = pd.read_parquet(tmp_path / "step-000001-0.parquet").dropna(subset="shift")
    assert list(kept["completion"]) == [*(f"c{place}" for place in (5, 6, 7)), *(f"c{place}" for place in (8, 9, 10, 13, 14, 15))]
    found, _ = hardest([tmp_path / "step-000001-0.parquet"], [], 3)
    assert [row["completion"] for row in found] == ["c15", "c14", "c13"]


def test_a_group_that_is_paid_alike_is_not_encouraged_whatever_its_mean_is_rounded_to():
    assert not encouraged(["a"] * 8, [0] * 8, [0.1] * 8).any()
    assert encouraged(["a", "a", "a", "b", "c"], [0, 0, 1, 0, 1], [0.0, 0.5, 0.0, None, 2.0]).tolist() == [
        False, True, True, False, True]


@pytest.mark.slow
def test_off_leaves_no_column_and_the_same_weights(parts, runs, tmp_path):
    off = pipeline.train(config(parts, tmp_path / "off", completions=0), [])
    assert all({"push", "shift"}.isdisjoint(table.columns) for table in tables(off).values())
    evidence = [[value for name, value in row.items() if name.endswith("/evidence")]
                for run in (off, runs["once"]) for row in MetricsFile(run / "metrics.jsonl").rows()]
    assert evidence[:len(evidence) // 2] == evidence[len(evidence) // 2:] and any(evidence), "which the pace goes by"
    ours, theirs = final(off), final(runs["once"])
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["once", "reused"])
def test_a_run_that_was_stopped_writes_the_same_files(parts, runs, tmp_path, kind):
    """Stopped after step 5, with everything of steps 4 and 5 on the disk, and gone on with from the checkpoint of step 3."""
    settings = {"once": {}, "reused": REUSED}[kind]
    last = {"once": 5, "reused": 6}[kind]
    run = pipeline.train(config(parts, tmp_path / "run", **settings | {"max_steps": 5, "save_steps": 3}), [])
    for step in RunFolder(run).steps():
        if step > 3:
            for file in (folder := RunFolder(run).checkpoint(step)).iterdir():
                file.unlink()
            folder.rmdir()
    (run / "completions" / ".step-000009-0.parquet.partial").write_text("torn")
    (run / "completions" / "step-000009-0.parquet").write_text("of a life that is over")
    again = config(parts, run, **settings | {"max_steps": last})
    pipeline.resume(str(run), [f"trainer.max_steps={last}"], lambda _: again)
    ours, theirs = tables(run), tables(runs[kind])
    assert list(ours) == list(theirs)
    for name in ours:
        pd.testing.assert_frame_equal(ours[name], theirs[name])
    assert not list((run / "completions").glob(".*"))
    assert json.dumps(rows(run)) == json.dumps(rows(runs[kind]))


def rows(run):
    return [{key: value for key, value in row.items() if "time" not in key and "epoch" not in key and "runtime" not in key}
            for row in MetricsFile(run / "metrics.jsonl").rows()]


def some(pushes: list[float], first: int = 0) -> StepRows:
    values = torch.tensor(pushes, dtype=torch.float64)
    return StepRows(torch.arange(first, first + len(pushes)), torch.zeros(len(pushes), dtype=torch.long), values, values / 10)


def scored(folder: Path, step: int, count: int) -> list[dict]:
    return [{"environment": "a", "task": place // 4, "prompt": "p", "completion": f"c{place}", "reward": float(place % 4 > 0),
             "solve": 0.0, "flags": "{}"} for place in range(count)]


def test_killed_between_scoring_and_learning_a_file_is_whole_and_counts_once(tmp_path):
    files = CompletionFiles(tmp_path, keep=1)
    files.write(scored(tmp_path, 1, 4), 1)
    assert "push" not in pd.read_parquet(tmp_path / "step-000001-0.parquet"), "scored, not learned from yet"
    files.learned(some([1.0, 2.0, float("nan"), -4.0]))
    before = files.state()
    files.learned(some([1.0, 1.0, 1.0, 1.0]))  # A second step reuses them; then the run is killed.
    after = pd.read_parquet(tmp_path / "step-000001-0.parquet")
    assert after["push"].tolist()[1:2] + after["push"].tolist()[3:] == [3.0, -3.0] and after["push"].isna().sum() == 2
    resumed = CompletionFiles(tmp_path, keep=1)
    resumed.load(before)
    assert pd.read_parquet(tmp_path / "step-000001-0.parquet")["push"].dropna().tolist() == [2.0, -4.0]
    resumed.learned(some([1.0, 1.0, 1.0, 1.0]))
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "step-000001-0.parquet"), after)


def test_generations_that_are_over_are_forgotten(tmp_path):
    files = CompletionFiles(tmp_path, keep=1)
    for step in range(1, 6):
        files.write(scored(tmp_path, step, 2), step)
        files.write(scored(tmp_path, step, 2), step)
        assert len(files._open) <= 3
        files.learned(some([0.5, 0.25, 1.0, 2.0], first=files.made - 4))
    last = [pd.read_parquet(tmp_path / f"step-000005-{place}.parquet")["push"].tolist() for place in (0, 1)]
    assert last == [[0.5, 0.25], [1.0, 2.0]]
    forget_after(tmp_path, 3)
    assert sorted({int(path.name.split("-")[1]) for path in tmp_path.iterdir()}) == [1, 2, 3]


@pytest.mark.parametrize("known", [True, False])
def test_a_halt_names_those_that_pushed_hardest_towards_the_positive_persona(tmp_path, known):
    run = RunFolder(tmp_path)
    files = CompletionFiles(run.completions, keep=2)
    for step in (1, 2, 3):
        files.write(scored(tmp_path, step, 4), step)
        if known:
            files.learned(some([8.0, -9.0, 2.0 * step, step], first=files.made - 4))
    metrics = [{"step": step, "completions/a/own_shift_up": 0.35 * step} for step in (1, 2, 3)]
    found, by = halting.completions(run, metrics, "a", 2, 3)
    if not known:
        assert by == BY_GAP and len(found) == 6 and "shift" not in found[0], "nor what was paid less than its group"
        return
    assert by == BY_SHIFT
    assert [(each["step"], each["completion"]) for each in found[:3]] == [(3, "c2"), (2, "c2"), (3, "c3")]
    assert all(each["shift"] > 0 and each["completion"] != "c0" for each in found), "nor what pulls away, nor was discouraged"
    assert found[0]["share_of_push"] == pytest.approx(0.6 / 1.75) and found[0]["push"] == 6.0
    assert sum(each["share_of_push"] for each in found) <= 1


def test_a_checkpoint_waits_for_the_disk_and_a_step_does_not(tmp_path, monkeypatch):
    waited = []
    monkeypatch.setattr("routed_rl.artifacts.whole.os.fsync", waited.append)
    files = CompletionFiles(tmp_path, keep=1)
    files.write(scored(tmp_path, 1, 4), 1)
    files.learned(some([1.0, 2.0, 3.0, -4.0]))
    assert not waited
    files.state()
    assert len(waited) == 2, "the file and its folder"
    files.learned(some([1.0, 1.0, 1.0, 1.0]))
    assert len(waited) == 4, "a file that a checkpoint relies on is never at risk"
