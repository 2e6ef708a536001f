"""Halt, go on, roll back: nothing is lost, and what was not changed is the same, bit for bit."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import shutil

import pytest
import torch
from safetensors.torch import load_file

from routed_rl.artifacts import RunFolder
from routed_rl.config import Config, MonitorConfig, RuleConfig
from routed_rl.errors import CheckpointError, ConfigError, Halted
from routed_rl.monitor import RULES, Verdict
from routed_rl.multirun.job import train_or_resume
from routed_rl.pipeline.halting import checkpoint_before, commands, halt, ranked
from routed_rl.pipeline.summary import next_commands
from routed_rl.tracking import MetricsFile, Tracker
from tests import pipeline
from tests.parts import own_config
from tests.tiers import tiered

STEPS, HALT = 6, 3


def config(parts, out, monitor=None):
    wanted = own_config(parts, out, trainer={"max_steps": STEPS, "save_steps": 2})
    return dataclasses.replace(wanted, monitor=monitor or MonitorConfig())


def halting() -> MonitorConfig:
    """Halts at the first step that is judged, by a rule that always holds."""
    return MonitorConfig(warmup=HALT - 1, share=RuleConfig(limit=0.0, action="halt"))


@pytest.mark.parametrize("name", ["typo", "p"])
def test_a_limit_for_an_environment_that_is_not_trained_on_is_refused_before_anything_is_written(parts, tmp_path, name):
    pull = MonitorConfig(pull=RuleConfig(limits={"a": 1.0, name: 1.0}))
    with pytest.raises(ConfigError, match=rf"monitor\.pull\.limits has {name}, which is not trained on; choose from a, b"):
        pipeline.train(config(parts, tmp_path / "run", pull), [])
    assert not (tmp_path / "run").exists()


def test_a_limit_with_which_a_run_began_is_accepted_when_its_environment_was_dropped_and_a_new_one_is_not():
    began = MonitorConfig(pull=RuleConfig(limits={"dropped": 1.0}))
    began.check_names(["a"], began)
    began.check_names(["a", "dropped"])
    with pytest.raises(ConfigError, match=r"monitor\.push\.limits has dropped"):
        MonitorConfig(push=RuleConfig(limits={"dropped": 1.0})).check_names(["a"], began)
    assert MonitorConfig(push=RuleConfig(limits={"a": 1.0, "b": 2.0})).only_for(["b"]).push.limits == {"b": 2.0}


def test_a_rule_that_is_to_halt_without_a_limit_is_refused_before_anything_is_written(parts, tmp_path):
    with pytest.raises(ConfigError, match=r"monitor\.pull\.action=halt has no limit, so it would never halt"):
        pipeline.train(config(parts, tmp_path / "run", MonitorConfig(pull=RuleConfig(action="halt"))), [])
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def whole(parts, tmp_path_factory):
    """The run that nothing stopped."""
    return pipeline.train(config(parts, tmp_path_factory.mktemp("runs") / "whole"), [])


@pytest.fixture
def halted(parts, tmp_path):
    with pytest.raises(Halted) as caught:
        pipeline.train(config(parts, tmp_path / "halted", halting()), [])
    return RunFolder(caught.value.run)


def tensors(run, step=STEPS) -> dict[str, torch.Tensor]:
    folder = RunFolder(run).checkpoint(step)
    return load_file(folder / "model.safetensors") | load_file(folder / "quarantine.safetensors")


def same(ours, theirs) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def rows(run) -> list[dict]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if "time" not in key and "runtime" not in key} for row in found]


def test_a_halt_leaves_a_checkpoint_and_says_who_since_when_and_how_to_go_on(halted):
    record = json.loads(halted.halted.read_text())
    assert record["step"] == HALT and halted.steps()[-1] == HALT
    assert record["verdicts"][0]["rule"] == "share" and record["verdicts"][0]["limit"] == 0.0
    assert [each["environment"] for each in record["environments"]] and record["since"] == 1
    assert 0 < len(record["completions"]) <= 10 and {"prompt", "completion", "reward", "solve"} <= record["completions"][0].keys()
    assert any("rollback" in command and "--step 0" in command for command in record["commands"])
    assert record["checkpoint_before"] == 0 and checkpoint_before(halted, since=3) == 2, "strictly before what it halted for"
    assert not halted.summary.exists() and json.loads(halted.verdicts.read_text().splitlines()[-1])["step"] == HALT


def test_environments_are_ranked_by_what_they_pushed_since_it_began():
    def row(step, **pushes):
        return {"step": step} | {f"ledger/{name}/push": push for name, push in pushes.items()} | {
            f"ledger/{name}/shift/p": shift * step for name, shift in (("a", 0.1), ("b", 0.3), ("c", 0.2))}

    found = ranked([row(1, a=1.0, b=5.0, c=0.0), row(2, a=1.0, b=0.25, c=2.0)], 2, "p")
    assert [(each["environment"], each["push"], each["push_since"]) for each in found] == [
        ("c", 2.0, 2.0), ("a", 2.0, 1.0), ("b", 5.25, 0.25)]
    assert [each["shift_since"] for each in found] == pytest.approx([0.2, 0.1, 0.3])


def test_the_environment_that_a_halt_is_about_stands_first_whatever_it_pushed(tmp_path, capsys):
    """`c` pays for what is not true and pushes least of all."""
    run = RunFolder(tmp_path)
    run.config.write_text("seed: 0\n")
    for step in (1, 2, 3):
        MetricsFile(run.metrics).append(step, {f"ledger/{name}/{what}": value * step for what in ("push", "shift/p")
                                               for name, value in (("a", 0.3), ("b", 0.2), ("c", -0.1))})
    verdicts = [Verdict("gap", "c", 3, 0.7, 0.5, 2, "halt"), Verdict("change", "b", 3, 0.6, 0.5, 2, "halt")]
    with pytest.raises(Halted):
        halt(run, verdicts, Config(monitor=MonitorConfig(axis="p")), Tracker())
    assert [each["environment"] for each in json.loads(run.halted.read_text())["environments"]] == ["c", "b", "a"]
    said = capsys.readouterr().out
    assert re.search(r"│ c .* gap +│\n│ b .* change +│\n│ a [^a-z]*\n", said)


def test_what_a_halt_says_to_type_is_typed_as_it_stands(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/opt/my tools/routed-rl"])
    monkeypatch.setenv("PATH", "")
    run, program = RunFolder("/x/my runs/y"), ["/opt/my tools/routed-rl"]
    typed = [shlex.split(line, comments=True) for line in commands(run, "it's", 4)]
    back = [*program, "rollback", "/x/my runs/y", "--step", "4"]
    assert typed == [[*back, "--drop", "it's"], [*back, "env.it's.KEY=VALUE"], [*program, "resume", "/x/my runs/y"]]
    back, _ = commands(run, "", 0)
    assert back.endswith("--step 0 KEY=VALUE    # with a setting changed; without a change it would halt again")
    typed = [shlex.split(line, comments=True) for line in next_commands(run, Config(), [])]
    assert typed[0][1:3] == ["export", "/x/my runs/y"] and typed[1][-1] == "/x/my runs/y/again.json" and typed[2][:2] == [
        *program, "compare"]


def test_going_on_after_a_halt_is_the_run_that_never_halted(halted, whole):
    """Its rule holds at every step, but is never higher than where the run was told to go on."""
    pipeline.resume(str(halted.path), [], None)  # type: ignore[arg-type]
    assert same(tensors(halted.path), tensors(whole)) and rows(halted.path) == rows(whole)
    assert (halted.path / "halts" / f"step-{HALT}.json").exists() and not halted.halted.exists()


@pytest.mark.slow
def test_a_run_that_halts_again_names_the_checkpoint_before_the_first_harm(parts, tmp_path):
    """Its environments pay for nothing at every step."""
    monitor, found = MonitorConfig(warmup=0, gap=RuleConfig(limit=0.9, action="halt")), list[dict]()
    with pytest.raises(Halted):
        pipeline.train(config(parts, tmp_path / "run", monitor), [])
    for times in range(3):
        if times:
            with pytest.raises(Halted):
                pipeline.resume(str(tmp_path / "run"), [], None)  # type: ignore[arg-type]
        found.append(json.loads((tmp_path / "run" / "HALTED.json").read_text()))
    assert [(each["since"], each["checkpoint_before"]) for each in found] == [(1, 0)] * 3
    assert found[0]["step"] < found[1]["step"] < found[2]["step"]


@pytest.mark.slow
def test_what_every_rule_reads_does_not_depend_on_how_often_something_is_logged(parts, whole, tmp_path):
    """Step 4 is logged, with TRL's means over four steps beside ours."""
    monitor = MonitorConfig(warmup=STEPS - 1, collapse=RuleConfig(limit=-1.0, action="halt"))
    seldom = config(parts, tmp_path / "run", monitor)
    seldom.trainer["logging_steps"] = 4
    with pytest.raises(Halted, match="paid alike"):
        pipeline.train(seldom, [])
    often, found = rows(whole), rows(tmp_path / "run")
    for name, rule in RULES.items():
        readings = [[rule.read(row, {}, None) for row in each] for each in (often, found)]
        assert readings[0] == readings[1] and any(readings[0]), name
    assert len({row["train/frac_reward_zero_std"] for row in found}) > 1


def test_killed_between_the_checkpoint_of_a_halt_and_its_record_it_halts_after_all(halted):
    record = halted.halted.read_text()
    halted.halted.unlink()
    with pytest.raises(Halted):
        pipeline.resume(str(halted.path), [], None)  # type: ignore[arg-type]
    assert halted.halted.read_text() == record and halted.steps()[-1] == HALT


@pytest.mark.slow
def test_a_sweep_that_is_repeated_does_not_take_a_trial_past_its_halt(parts, halted):
    before = halted.halted.read_text()
    with pytest.raises(Halted, match="was halted by the monitor at step 3, and goes on only if you say so: .*resume"):
        train_or_resume(config(parts, halted.path, halting()), [])
    assert halted.halted.read_text() == before and halted.steps()[-1] == HALT


@pytest.mark.slow
def test_a_halt_at_a_step_that_is_trained_again_no_longer_counts(halted):
    """Else the step would count as one after which the user went on, and its second halt would be passed over."""
    shutil.rmtree(halted.checkpoint(HALT))
    for _ in range(2):  # the second time as if it had been killed before the record was written
        with pytest.raises(Halted):
            pipeline.resume(str(halted.path), [], None)  # type: ignore[arg-type]
        assert not list(halted.path.glob("halts/*")) and halted.steps()[-1] == HALT
        halted.halted.unlink()


def go_back(parts, whole, out, step, drop=(), forget=False, change=lambda wanted: None):
    def compose(_texts):
        wanted = config(parts, out)
        change(wanted)
        return wanted

    return pipeline.rollback(str(whole), step, list(drop), forget, [f"out={out}"], compose)


def test_a_rollback_that_changes_nothing_is_never_having_taken_the_steps(parts, whole, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file() and path.name != "manifest.json"}
    new = go_back(parts, whole, tmp_path / "new", 2)
    assert same(tensors(new), tensors(whole)) and rows(new) == rows(whole)
    assert before == {path: path.stat().st_mtime_ns for path in before}, "the old run stays as it is"
    assert json.loads((new / "manifest.json").read_text())["lineage"] | {"step": 2} == {
        "parent": str(whole), "step": 2, "drop": [], "forget_parts": False, "overrides": [f"out={new}"]}
    assert json.loads((whole / "manifest.json").read_text())["children"][-1] == {"run": str(new), "step": 2}


@pytest.mark.parametrize("forget", tiered([False, True], slow=[True]))
def test_a_dropped_environment_leaves_its_part_or_takes_it_along(parts, whole, tmp_path, forget):
    gone, *left = [name for name, settings in config(parts, tmp_path).env.items() if not settings.get("probe")]
    new = go_back(parts, whole, tmp_path / "new", 4, [gone], forget)
    old, at, end = tensors(whole, 4), tensors(new, 4), tensors(new)
    names = [name.removesuffix(".parts") for name in at if name.endswith(".parts")]
    assert names
    for name in names:
        for state in (at, end):
            assert torch.allclose(state[f"{name}.parts"].sum(0), state[f"{name}.coefficients"], atol=1e-6)
        assert len(at[f"{name}.parts"]) == len(left) + (not forget)
        if not forget:
            assert torch.equal(at[f"{name}.parts"][-1], old[f"{name}.parts"][0]), "its part is kept"
            assert not at[f"{name}.moment"][-1].any(), "without momentum"
            assert torch.equal(end[f"{name}.parts"][-1], at[f"{name}.parts"][-1]), "and nothing is added to it"
    names = {name.split("/")[1] for name in rows(new)[-1] if name.startswith("environment/")}
    assert names == set(left)


@pytest.mark.slow
def test_a_changed_mixture_starts_afresh_and_another_stop_changes_nothing(parts, whole, tmp_path):
    def heavier(wanted):
        next(iter(wanted.env.values()))["weight"] = 3.0

    new = go_back(parts, whole, tmp_path / "new", 2, change=heavier)
    again = go_back(parts, whole, tmp_path / "again", 2, change=heavier)
    shutil.rmtree(again / "checkpoints" / f"step-{STEPS}")
    pipeline.resume(str(again), [], None)  # type: ignore[arg-type]
    assert same(tensors(again), tensors(new)) and rows(again) == rows(new)
    assert not same(tensors(new), tensors(whole))


def test_what_no_checkpoint_can_follow_is_refused_and_nothing_is_written(parts, whole, tmp_path):
    def other_seed(wanted):
        wanted.seed += 1

    with pytest.raises(ConfigError, match="cannot change seed: 0 -> 1"):
        go_back(parts, whole, tmp_path / "new", 2, change=other_seed)
    with pytest.raises(ConfigError, match="--drop nobody"):
        go_back(parts, whole, tmp_path / "new", 2, ["nobody"])
    with pytest.raises(CheckpointError, match=r"--step 3: .* it has 2, 4, 6"):
        go_back(parts, whole, tmp_path / "new", 3)
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_going_back_in_a_run_that_went_back_is_the_same_run_too(parts, whole, tmp_path):
    def heavier(wanted):
        next(iter(wanted.env.values()))["weight"] = 3.0

    once = go_back(parts, whole, tmp_path / "once", 2, change=heavier)
    twice = go_back(parts, once, tmp_path / "twice", 4, change=heavier)
    assert same(tensors(twice), tensors(once)) and rows(twice) == rows(once)


@pytest.mark.slow
def test_from_the_base_model_there_is_no_part_to_inherit(parts, whole, tmp_path):
    gone = next(iter(config(parts, tmp_path).env))
    new = go_back(parts, whole, tmp_path / "new", 0, [gone])
    assert json.loads((new / "manifest.json").read_text())["inherited"] == []
    assert all(len(value) == 1 for name, value in tensors(new).items() if name.endswith(".parts"))


@pytest.mark.slow
def test_a_run_that_is_monitored_trains_to_the_same_bits_as_one_that_is_not(parts, tmp_path):
    """Nobody practises: who does is what the monitor says."""
    off = MonitorConfig(completions=0, **{name: RuleConfig() for name in RULES})
    weights = []
    for name, monitor in (("on", halting_nothing()), ("off", off)):
        wanted = config(parts, tmp_path / name, monitor)
        wanted.routing.practice.share = 0.0
        run = RunFolder(pipeline.train(wanted, []))
        weights.append([load_file(run.checkpoint(STEPS) / file) for file in ("model.safetensors", "quarantine.safetensors")])
        assert run.verdicts.exists() is (name == "on")
    for on, without in zip(*weights, strict=True):
        assert on.keys() == without.keys() and all(on[key].equal(without[key]) for key in on)


def halting_nothing() -> MonitorConfig:
    """Every rule speaks, and none halts."""
    return MonitorConfig(warmup=0, **{name: RuleConfig(limit=1e-9) for name in RULES})
