"""`rollback` and what follows it, as they are typed: what was changed stays changed, what is refused leaves no trace."""

from __future__ import annotations

import json
import shutil
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from routed_rl.artifacts import RunFolder
from routed_rl.audit import audit
from routed_rl.cli.compose import compose
from routed_rl.cli.paths import from_anywhere
from routed_rl.config import AuditConfig, FilterConfig
from routed_rl.errors import ConfigError, Halted, RunFolderError
from tests import pipeline
from tests.parts import typed
from tests.tiers import tiered

QUICK = ["evaluation.samples=0", "discard=false"]


def go_back(run: Path, out: Path, step: int, *overrides: str, drop: tuple[str, ...] = (), forget: bool = False) -> Path:
    return pipeline.rollback(str(run), step, list(drop), forget, [f"out={out}", *overrides], compose)


def train(overrides: list[str]) -> Path:
    return pipeline.train(compose(overrides), from_anywhere(overrides))


def rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def trained(run: Path, step: int) -> set[str]:
    return {name.split("/")[1] for name in rows(run)[step - 1] if name.startswith("environment/")}


def tensors(run: Path, step: int) -> dict[str, torch.Tensor]:
    folder = RunFolder(run).checkpoint(step)
    return load_file(folder / "model.safetensors") | load_file(folder / "quarantine.safetensors")


def told(run: Path) -> dict:
    return json.loads((run / "manifest.json").read_text())


@pytest.fixture(scope="module")
def old(parts, tmp_path_factory):
    """A run that was typed in the folder of its parts, with their names alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(parts)
        return train(typed(".", tmp_path_factory.mktemp("runs") / "old", *QUICK, "keep.a=auto"))


@pytest.mark.slow
def test_what_was_dropped_stays_so_however_one_goes_on_and_from_wherever(old, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    once = go_back(old, tmp_path / "once", 2, drop=("a",))
    assert [trained(once, step) for step in (2, 3, 6)] == [{"a", "b"}, {"b"}, {"b"}]
    before = tensors(once, 6)
    pipeline.resume(str(once), ["trainer.max_steps=8"], compose)
    assert trained(once, 8) == {"b"} and told(once)["inherited"] == ["a"] and told(once)["fresh_from_step"] == 2
    name = next(name for name in before if name.endswith(".parts"))
    assert torch.equal(tensors(once, 8)[name][-1], before[name][-1]), "its part is as it was left"
    twice = go_back(once, tmp_path / "twice", 4, "trainer.max_steps=6", forget=True)
    assert trained(twice, 6) == {"b"} and told(twice)["inherited"] == [], "what was dropped before is forgotten too"
    with pytest.raises(ConfigError, match="--drop a: the run has no such environment; it has b, p"):
        go_back(once, tmp_path / "again", 4, drop=("a",))
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(("step", "drop", "said"), [
    (4, (), r"every environment with a part \(a, b\) is trained on further; leave it out, or add --drop ENV"),
    pytest.param(4, ("p",), r"every environment with a part \(a, b\)", marks=pytest.mark.slow),
    pytest.param(0, ("a",), "step 0 has no parts; leave it out", marks=pytest.mark.slow)])
def test_forgetting_parts_where_none_would_be_forgotten_is_refused(old, tmp_path, step, drop, said):
    with pytest.raises(ConfigError, match=f"--forget-parts does nothing, because {said}"):
        go_back(old, tmp_path / "new", step, drop=drop, forget=True)
    assert not (tmp_path / "new").exists()


@pytest.fixture(scope="module")
def fewer(old, tmp_path_factory) -> Path:
    """It went back to step 4 and goes on without `a`, whose part stays in the quarantine."""
    return go_back(old, tmp_path_factory.mktemp("fewer") / "run", 4, "baseline.detector.pool=100", drop=("a",))


@pytest.mark.slow
def test_a_run_that_dropped_an_environment_is_audited_with_the_part_that_stayed(fewer):
    found = audit(str(fewer), AuditConfig(samples=2, prompts=2, blocks=1), None, None)["models"]
    assert found["policy"]["shift"] != found["deployed"]["shift"]


@pytest.mark.slow
def test_completions_of_an_environment_that_was_dropped_are_left_out_by_a_subspace_and_said(fewer, tmp_path):
    """The base model answers the present environments alone, so nothing says where an honest completion of `a` stands."""
    pipeline.filter_run(str(fewer), FilterConfig(subspace=str(fewer / "subspace")), str(tmp_path / "out.jsonl"))
    kept, gone = ([json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
                  for name in ("out.jsonl", "out.left_out.jsonl"))
    assert kept and {row["environment"] for row in kept} == {"b"}
    reasons = {row["reason"] for row in gone if row["environment"] == "a"}
    assert reasons == {"the run no longer trains on a, so nothing says where its honest completions stand"}


@pytest.mark.slow
def test_a_run_that_goes_on_saves_as_often_as_it_is_told_now(old, tmp_path):
    """transformers would go on saving as the checkpoint's state says, without a word."""
    once = go_back(old, tmp_path / "once", 4, "trainer.save_steps=1")
    assert RunFolder(once).steps() == [4, 5, 6]
    pipeline.resume(str(once), ["trainer.max_steps=10", "trainer.save_steps=3"], compose)
    assert RunFolder(once).steps() == [4, 5, 6, 9, 10]


@pytest.mark.slow
def test_another_mix_takes_nothing_over_from_what_was_dropped_of_the_old_one(old, tmp_path):
    """There, `~env.a` would name what is not there."""
    once = go_back(old, tmp_path / "once", 4, drop=("a",))
    path = f"{old}/environment.py:Add"
    assert "~env.a" in (once / "overrides.txt").read_text().splitlines()
    config = yaml.safe_load((once / "config.yaml").read_text())
    assert list(config["env"]) == ["b", "p"] and config["env"]["b"]["path"] != path
    new = go_back(once, tmp_path / "new", 4, "env=empty")
    assert trained(new, 6) == {"a", "b"}


@pytest.mark.parametrize(("override", "said"), [("trainer.learning_ratee=1", "trainer.learning_ratee"),
                                                ("monitor.axis=typo", "monitor.axis=typo is no axis of the subspace"),
                                                ("trainer.max_steps=3", "--step 4 is after the last step, trainer.max_steps=3")])
def test_a_refused_rollback_or_resume_leaves_both_runs_as_they_were(old, tmp_path, override, said):
    before = {path: path.read_bytes() for path in old.iterdir() if path.is_file()}
    with pytest.raises(ConfigError, match=said):
        go_back(old, tmp_path / "new", 4, override)
    if "max_steps" not in override:
        with pytest.raises(ConfigError, match=said):
            pipeline.resume(str(old), [override], compose)
    assert not list(tmp_path.iterdir()) and before == {path: path.read_bytes() for path in before}


@pytest.mark.slow
@pytest.mark.parametrize("word", ["out={}", "+out={}", "out='{}'"])
def test_a_rollback_takes_its_folder_as_train_does(old, word):
    with pytest.raises(RunFolderError, match="already holds a run"):
        pipeline.rollback(str(old), 2, [], False, [word.format(old)], compose)


def test_an_axis_that_is_not_there_is_refused_before_anything_is_extracted(parts, tmp_path):
    with pytest.raises(ConfigError, match=r"monitor.axis=typo is no axis of the subspace; it has persona, component_1"):
        train(typed(parts, tmp_path / "run", *QUICK, "monitor.axis=typo", "monitor.completions=0"))
    assert not (tmp_path / "run").exists()


def test_an_interrupted_rollback_leaves_no_run_and_a_killed_one_does_not_stand_in_the_way(old, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["routed_rl.pipeline.rollback"], "copy_checkpoint", interrupted)
        with pytest.raises(KeyboardInterrupt):
            go_back(old, tmp_path / "new", 4)
    assert not list(tmp_path.iterdir())
    shutil.copytree(old / "subspace", tmp_path / ".new.partial" / "subspace")  # killed while it copied
    new = go_back(old, tmp_path / "new", 4)
    assert rows(new)[-1]["step"] == 6 and [path.name for path in tmp_path.iterdir()] == ["new"]


@pytest.mark.parametrize("how", tiered(["rollback", "resume"], slow=["resume"]))
def test_another_learning_rate_and_weight_decay_hold_from_there_on(old, tmp_path, how):
    settings = ["trainer.learning_rate=2e-4", "trainer.weight_decay=0.5"]
    if how == "rollback":
        run = go_back(old, tmp_path / "run", 4, *settings)
    else:
        shutil.copytree(old, run := tmp_path / "run")
        shutil.rmtree(run / "checkpoints" / "step-6")
        pipeline.resume(str(run), settings, compose)
    rates = [row["train/learning_rate"] for row in rows(run)]
    assert rates[:4] == [1e-3] * 4 and rates[4:] == pytest.approx([2e-4] * 2)
    groups = torch.load(RunFolder(run).checkpoint(6) / "optimizer.pt", weights_only=True)["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0], "weights decay, gains never do"


@pytest.mark.slow
def test_where_the_rate_falls_another_one_falls_from_the_same_place(parts, tmp_path):
    falling = train(typed(parts, tmp_path / "falling", *QUICK, "trainer.lr_scheduler_type=linear"))
    new = go_back(falling, tmp_path / "new", 2, "trainer.learning_rate=1e-4")
    ratio = [ours["train/learning_rate"] / theirs["train/learning_rate"]
             for ours, theirs in zip(rows(new), rows(falling), strict=True)]
    assert ratio == pytest.approx([1, 1, 0.1, 0.1, 0.1, 0.1])


@pytest.mark.slow
def test_in_the_middle_of_a_generation_the_new_mixture_begins_with_that_generation(parts, tmp_path):
    reused = ["trainer.num_iterations=2", "trainer.gradient_accumulation_steps=2", "trainer.per_device_train_batch_size=16",
              "trainer.save_steps=1", "trainer.max_steps=4"]
    run = train(typed(parts, tmp_path / "run", *QUICK, *reused))
    for step in (1, 2, 3):
        new = go_back(run, tmp_path / f"new-{step}", step, drop=("a",))
        assert trained(new, step + 1) == {"b"} and all(trained(new, each) <= {"b"} for each in range(step + 1, 5))


def test_a_probe_more_or_less_changes_nothing_of_the_training(old, tmp_path):
    new = go_back(old, tmp_path / "new", 2, drop=("p",))
    ours, theirs = tensors(new, 6), tensors(old, 6)
    assert told(new)["fresh_from_step"] == 0 and all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
def test_a_halt_that_was_gone_on_from_is_no_news_after_a_rollback(parts, tmp_path):
    halting = ["monitor.share.limit=0", "monitor.share.action=halt", "monitor.warmup=1"]
    with pytest.raises(Halted):
        train(typed(parts, tmp_path / "run", *QUICK, *halting))
    run = RunFolder(tmp_path / "run")
    at = json.loads(run.halted.read_text())["step"]
    assert at == 2
    with suppress(Halted):
        go_back(run.path, tmp_path / "new", at)
    new = tmp_path / "new"
    assert rows(new)[-1]["step"] > at and (new / "halts" / f"step-{at}.json").exists()
