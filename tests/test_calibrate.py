"""Limits at a chosen rate of false alarms: from metrics that are made up, whose distribution is known."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml

from routed_rl.artifacts import RunFolder
from routed_rl.cli import main
from routed_rl.cli.compose import compose as routed_rl_compose
from routed_rl.config import Config, MonitorConfig, RuleConfig
from routed_rl.errors import ConfigError, RoutedRLError, RunFolderError
from routed_rl.monitor import RULES, Monitor, limit, peaks
from routed_rl.monitor.calibration import own_limits, set_limits
from routed_rl.multirun.calibrate import calibrate, measured

OFF = {name: RuleConfig() for name in RULES}
GUMBEL = np.random.default_rng(1).gumbel


def write_run(folder, shifts, **more):
    """A run folder with nothing but metrics: one environment's shift step by step, and what else its rows say."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("")
    rows = [{"step": step, "ledger/a/shift/persona": value, "ledger/a/share": 0.5} | more
            for step, value in enumerate(shifts, start=1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize(("count", "rate"), [(5, 0.05), (20, 0.01), (100, 0.01)])
def test_the_next_secure_run_passes_the_limit_at_the_chosen_rate_however_few_runs_there_were(count, rate):
    drawn = GUMBEL(3.0, 0.2, size=(4000, count + 1))
    passed = np.mean([run[0] > limit(run[1:], rate) for run in drawn.tolist()])
    # Three standard errors of 4,000 runs.
    assert passed == pytest.approx(rate, abs=3 * (rate / 4000) ** 0.5)


def test_a_rule_gives_a_verdict_below_the_peak_of_a_run_and_none_above():
    values = np.random.default_rng(3).normal(0.01, 0.05, 60).cumsum().tolist()
    rows = [{"step": step, "ledger/a/shift/persona": value} for step, value in enumerate(values, start=1)]
    for name, rule in (("shift", RuleConfig(patience=3)), ("change", RuleConfig(allowance=0.01, patience=2))):
        peak = peaks(rows, MonitorConfig(warmup=4, **OFF | {name: rule}), name)["a"]
        for shift, halts in ((-1e-9, True), (1e-9, False)):
            settled = RuleConfig(limit=peak + shift, allowance=rule.allowance, patience=rule.patience)
            monitor = Monitor(MonitorConfig(warmup=4, **OFF | {name: settled}))
            assert any(verdict for row in rows for verdict in monitor.judge(row)) == halts


def test_the_peak_of_the_evidence_is_the_limit_that_a_run_passes_also_where_a_third_of_it_is_enough():
    rows = [{"step": step, "ledger/a/shift/persona": 0.2 * step, "completions/a/evidence": 1.0} for step in range(1, 4)]
    peak = peaks(rows, MonitorConfig(warmup=0, **OFF | {"evidence": RuleConfig()}), "evidence")["a"]
    assert peak == pytest.approx(3 * 3.0)
    for factor, passed in ((0.99, True), (1.01, False)):
        monitor = Monitor(MonitorConfig(warmup=0, **OFF | {"evidence": RuleConfig(limit=factor * peak)}))
        assert any(verdict for row in rows for verdict in monitor.judge(row)) == passed


def test_the_rate_is_shared_by_the_rules_that_have_a_spread_and_the_others_keep_their_limit():
    values = GUMBEL(1.0, 0.1, size=20).tolist()
    found = set_limits({"shift": [{"a": value, "b": 0.0} for value in values], "gap": [{"a": 0.0}] * 20, "energy": []}, 0.01)
    assert found["shift"]["limit"] == pytest.approx(limit(values, 0.01))
    assert found["shift"]["environments"] == {"a": max(values), "b": 0.0}
    assert found["gap"]["limit"] is None and found["energy"]["limit"] is None
    two = set_limits({"shift": [{"a": value} for value in values], "change": [{"a": value} for value in values]}, 0.01)
    assert two["shift"]["limit"] == pytest.approx(limit(values, 0.005)) and two["shift"]["limit"] > found["shift"]["limit"]


def test_an_environment_has_a_limit_of_its_own_and_one_of_a_run_passes_its_own_at_the_rate():
    rng, rate = np.random.default_rng(5), 0.05
    middle, width, passed = np.array([0.3, 0.0, -0.1]), np.array([0.1, 0.02, 0.001]), 0
    for _ in range(300):
        drawn = middle + width * rng.gumbel(size=(21, 3))
        limits = own_limits([dict(zip("abc", run, strict=True)) for run in drawn[1:].tolist()], rate)
        passed += any(value > limits[name] for name, value in zip("abc", drawn[0].tolist(), strict=True))
    # What lay still gets a wider limit than it needs, so the rate is not passed.
    assert passed / 300 < rate + 3 * (rate / 300) ** 0.5
    assert limits["a"] > 0.5 > 0.2 > limits["b"] > limits["c"] > -0.1


def test_of_one_run_the_environments_count_as_alike():
    values = GUMBEL(1.0, 0.1, size=6).tolist()
    found = set_limits({"shift": [dict(zip("abcdef", values, strict=True))]}, 0.06)
    assert found["shift"]["limit"] == pytest.approx(limit(values, 0.01))
    with pytest.raises(ConfigError, match="at least 5 values, got 2; calibrate on more runs"):
        set_limits({"shift": [{"a": 1.0, "b": 2.0}]}, 0.06)


def test_limits_of_given_runs_are_written_with_the_overrides_that_set_them(tmp_path, capsys):
    runs = [str(write_run(tmp_path / f"run{seed}", [0.0, 0.01 * seed, 0.02 * seed], **{
        "environment/a/reward": 0.5, "environment/a/solve": 0.5})) for seed in range(1, 8)]
    written = calibrate(["env=x"], runs, 20, 0.01, str(tmp_path / "out"), 1, lambda _: Config(monitor=MonitorConfig(warmup=0)))
    found = json.loads(written.read_text())
    assert found["rate"] == 0.01 and found["runs"] == runs and set(found["rules"]) == {"pull", "change", "gap"}
    assert found["rules"]["pull"]["peaks"] == pytest.approx([0.01 * seed for seed in range(1, 8)])
    assert {word.split("=")[0] for word in found["overrides"]} == {
        f"monitor.{rule}.{key}" for rule in ("pull", "change") for key in ("limit", "limits", "action")} | {
        "monitor.gap.limit", "monitor.gap.action"}  # gap has no spread and keeps its limit
    shown = capsys.readouterr().out
    assert shlex.join(["env=x", *found["overrides"]]) in shown
    assert "no rule of this experiment halts, so pull, change, gap get limits" in " ".join(shown.split())
    halting = Config(monitor=MonitorConfig(warmup=0, pull=RuleConfig(limit=1.0, action="halt")))
    calibrate(["env=x"], runs, 20, 0.01, str(tmp_path / "halting"), 1, lambda _: halting)
    assert "no rule of this experiment halts" not in capsys.readouterr().out
    settings, own = routed_rl_compose(found["overrides"]).monitor.pull, found["rules"]["pull"]["limits"]
    assert settings.limits == pytest.approx(own, rel=1e-3) and settings.action == "halt"
    gap = routed_rl_compose(found["overrides"]).monitor.gap
    assert (gap.limit, gap.action) == (1.0, "halt")


def test_what_says_nothing_is_refused_and_what_is_not_secure_is_said(tmp_path, capsys):
    def compose(_):
        return Config(monitor=MonitorConfig(warmup=0))

    empty = write_run(tmp_path / "empty", [])
    with pytest.raises(RunFolderError, match="has no metrics to calibrate on"):
        calibrate([], [str(empty)], 20, 0.01, str(tmp_path / "out"), 1, compose)
    for rate in (0.0, 1.0):
        with pytest.raises(ConfigError, match="--rate is a probability"):
            calibrate([], [str(empty)], 20, rate, str(tmp_path / "out"), 1, compose)
    with pytest.raises(ConfigError, match="--seeds must be at least 5, got 4"):
        calibrate([], [], 4, 0.01, str(tmp_path / "out"), 1, compose)
    runs = [str(write_run(tmp_path / f"run{seed}", [0.0, 0.1 * seed], **{
        "environment/a/reward": 0.9, "environment/a/solve": 0.1})) for seed in range(5)]
    calibrate([], runs, 20, 0.01, str(tmp_path / "out"), 1, compose)
    assert "a paid for tasks that were not solved; is it secure?" in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.parametrize(("settings", "message"), [
    (["routing.mode=none"], r"monitor\.pull has nothing to read with routing\.mode=none"),
    (["routing.mode=erase"], r"monitor\.pull has nothing to read with routing\.mode=erase, which keeps the quarantine empty"),
    (["trainer.max_steps=5"], r"monitor\.pull has nothing to read in 5 steps with monitor\.warmup=5 .*; train for more"),
    (["monitor.push.action=halt", "monitor.push.patience=61", "monitor.push.limit=1"], r"monitor\.push\.patience=61"),
    (["monitor.energy.action=halt", "routing.random_control.every=0"], r"monitor\.energy has nothing to read with .*every=0"),
])
def test_what_no_limit_can_come_of_is_refused_before_anything_is_trained(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        calibrate(settings, [], 20, 0.01, str(tmp_path / "out"), 1, routed_rl_compose, execute=_never)
    assert not (tmp_path / "out").exists()


def test_a_rate_that_no_number_of_these_rules_would_resolve_is_refused_before_anything_is_trained(tmp_path):
    with pytest.raises(ConfigError, match="--rate 1e-07 is less than .*; the smallest is"):
        calibrate([], [], 20, 1e-7, str(tmp_path / "out"), 1, routed_rl_compose, execute=_never)
    assert not (tmp_path / "out").exists()


def _never(config, overrides):
    raise AssertionError("nothing is trained")


def test_no_limit_is_negative_however_far_secure_runs_move_away():
    """The least that must not halt is a run that moves nothing."""
    values = GUMBEL(-1.0, 0.1, size=20).tolist()
    found = set_limits({"shift": [{"a": value, "b": value - 5} for value in values]}, 0.01)["shift"]
    at_zero = set_limits({"shift": [{"a": value + 0.942} for value in values]}, 0.01)["shift"]["limit"]
    assert found["limit"] == pytest.approx(at_zero, abs=0.1) and at_zero > 0.2
    assert found["limits"] == pytest.approx(dict.fromkeys("ab", at_zero), abs=0.1)


def spoilt(folder, kind):
    """Six runs that no limits can be set from, and what is said about them."""
    true = {"environment/a/reward": 0.5, "environment/a/solve": 0.5}
    runs = [write_run(folder / f"run{seed}", [0.0, 0.01 * seed, 0.02 * seed], **true) for seed in range(6)]
    if kind == "no environment in common":
        for run in runs[:3]:
            (run / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text().replace("/a/", "/b/"))
        return runs, "the runs have no environment in common: b, a; calibrate on runs of one experiment"
    if kind == "no ledger":
        (runs[3] / "metrics.jsonl").write_text("".join(json.dumps({"step": step} | true) + "\n" for step in (1, 2, 3)))
        return runs, r"run3 has nothing for monitor\.pull to read: 3 steps .* are none: it was not routed"
    if kind == "other lengths":
        with open(runs[4] / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"step": 300}) + "\n")
        return runs, "run0 has 3 steps and .*run4 has 300; peaks grow with the length"
    (folder / "link").symlink_to(runs[1])
    return [*runs, folder / "link"], "--runs names .*link twice"


@pytest.mark.parametrize("kind", ["no environment in common", "no ledger", "other lengths", "one twice"])
def test_runs_that_no_limits_can_be_set_from_are_refused(tmp_path, kind):
    runs, said = spoilt(tmp_path, kind)
    with pytest.raises(RoutedRLError, match=said) as caught:
        calibrate([], [str(run) for run in runs], 20, 0.05, str(tmp_path / "out"), 1,
                  lambda _: Config(monitor=MonitorConfig(warmup=0)))
    assert "\n" not in str(caught.value) and not (tmp_path / "out" / "calibration.json").exists()


def test_an_axis_that_no_run_has_and_rules_without_any_limit_are_refused(tmp_path):
    runs = [str(write_run(tmp_path / f"run{seed}", [0.1, 0.1])) for seed in range(5)]

    def set_by(monitor):
        calibrate([], runs, 20, 0.05, str(tmp_path / "out"), 1, lambda _: Config(monitor=monitor))

    with pytest.raises(RunFolderError, match=r"monitor\.axis=typo, the axes of its ledger are persona"):
        set_by(MonitorConfig(warmup=0, axis="typo"))
    with pytest.raises(ConfigError, match="no limit can be set: pull read the same in all of these runs"):
        set_by(MonitorConfig(warmup=0, pull=RuleConfig(action="halt")))


@pytest.mark.slow
def test_a_rate_that_the_simulation_does_not_resolve_is_refused_and_the_smallest_one_is_taken():
    values = GUMBEL(1.0, 0.1, size=20).tolist()
    found = {"shift": [{"a": value} for value in values], "change": [{"a": value} for value in values]}
    with pytest.raises(ConfigError, match="--rate 1e-09 is less than .*; the smallest is") as caught:
        set_limits(found, 1e-9)
    smallest = float(str(caught.value).split()[-1])
    wide, wider = (set_limits(found, rate)["shift"]["limit"] for rate in (2 * smallest, smallest))
    assert wider > wide > set_limits(found, 0.01)["shift"]["limit"]
    with pytest.raises(ConfigError, match="the smallest is"):
        set_limits(found, 0.9 * smallest)


def test_runs_are_trained_once_without_halting_and_the_same_call_goes_on(tmp_path):
    arguments = ([], [], 5, 0.01, str(tmp_path / "out"), 1, _compose)
    with pytest.raises(RoutedRLError, match=r"1 of 5 runs failed: secure-seed3.*the same command tries them again"):
        calibrate(*arguments, execute=_fails_at_3)
    kept = (_folder(tmp_path, 1).path / "metrics.jsonl").stat().st_mtime_ns
    calibrate(*arguments, execute=_train)
    assert (_folder(tmp_path, 1).path / "metrics.jsonl").stat().st_mtime_ns == kept
    assert sorted(path.name for path in (tmp_path / "out" / "runs").iterdir()) == [f"secure-seed{seed}" for seed in range(5)]
    assert measured([_folder(tmp_path, 4)], MonitorConfig(warmup=0), ["shift"])["shift"][0]["a"] == pytest.approx(0.4)


@pytest.mark.slow
def test_a_typed_setting_counts_also_where_calibrate_has_one_of_its_own(tmp_path, monkeypatch):
    planned = []

    def fail(jobs, *_):
        planned.extend(jobs)
        return {job.name: "not run" for job in jobs}

    monkeypatch.setattr("routed_rl.multirun.calibrate.run_missing", fail)
    (tmp_path / "mine.yaml").write_text("evaluation: {every: 7, samples: 9}\n")
    words = ["evaluation.samples=12", "+discard=true", "--config", str(tmp_path / "mine.yaml"), "--seeds", "5"]
    assert main(["calibrate", *words, "--out", str(tmp_path / "out")])
    config = planned[-1].config
    assert len(planned) == 5 and (config.evaluation.samples, config.discard) == (12, True)
    assert (config.evaluation.every, config.tracking.completions, config.monitor.completions) == (0, False, 0)


def _compose(overrides):
    values = dict(word.split("=") for word in overrides)
    halting = MonitorConfig(warmup=0, shift=RuleConfig(limit=0.1, action="halt"))
    return Config(seed=int(values.get("seed", 0)), name=values.get("name", "x"), monitor=halting)


def _folder(tmp_path, seed):
    return RunFolder(tmp_path / "out" / "runs" / f"secure-seed{seed}")


def _train(config, overrides):
    assert config.monitor.shift.action == "report"
    folder = write_run(Path(config.out), [0.0, 0.1 * config.seed])
    (folder / "config.yaml").write_text(yaml.safe_dump(dataclasses.asdict(config)))
    (folder / "summary.json").write_text('{"models": {}}')


def _fails_at_3(config, overrides):
    if config.seed == 3:
        raise ValueError("boom")
    _train(config, overrides)
