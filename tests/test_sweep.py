"""Sweeps: what is varied, what is refused, book-keeping with trainings that take no time, and one real sweep that is killed."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from routed_rl.artifacts import data_root, read_json, write_json
from routed_rl.cli.compose import compose
from routed_rl.cli.space import split
from routed_rl.config import Config, SweepConfig
from routed_rl.errors import ConfigError, RoutedRLError, RunFolderError
from routed_rl.multirun import sweep_page
from routed_rl.multirun.ranking import notes
from routed_rl.multirun.study import Study
from routed_rl.multirun.sweep import sweep
from routed_rl.multirun.sweep_page import write_sweep
from routed_rl.multirun.trials import Dimension, Outcome, Plan, best, outcome

GRID = ["routing.quarantine.learning_rate=1e-3,1e-2", "seed=0,1,2"]
PRUNED = ["sweep=optuna", "sweep.objective=models.deployed.sums.solve"]
RATE = "routing.quarantine.learning_rate=tag(log,interval(1e-3,1e-1))"


def pretend(config: Config, overrides: list[str]) -> None:
    """Leaves what `pipeline.train` leaves; `started` counts how often. A file FAIL beside the trials has one fail."""
    assert config.out is not None
    folder = Path(config.out)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "started", "a") as file:
        file.write(f"{os.getpid()}\n")
    (folder / "config.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(dataclasses.asdict(config)))))
    if (folder.parent / "FAIL").exists() and (folder.parent / "FAIL").read_text() == folder.name:
        raise ValueError("the reward is nan")
    rate = config.routing.quarantine.learning_rate
    if (folder.parent / "SLOW").exists():
        for step in range(1, 60):
            with open(folder / "metrics.jsonl", "a") as file:
                file.write(json.dumps({"step": step, "train/reward": -rate}) + "\n")
            # Whoever is worse than the median takes long, so that pruning has the time.
            time.sleep(0.2 if config.name > "trial-001" else 0)
    write_json(folder / "summary.json", {"models": {"deployed": {"sums": {"solve": 1 - rate, "hack": config.seed / 10}},
                                                    "policy": {"sums": {"solve": 0.5, "hack": 0.9, "completions": 8}}}})


def run(out: Path, *overrides: str, **options: Any) -> Any:
    fixed, dimensions = split([*overrides, f"out={out}", "sweep.jobs=2"])
    written = sweep(fixed, dimensions, compose, execute=options.pop("execute", pretend), **options)
    return None if written is None else read_json(written)


def started(out: Path) -> dict[str, int]:
    return {path.parent.name: len(path.read_text().split()) for path in sorted(out.glob("trial-*/started"))}


@pytest.mark.parametrize(("text", "expected"), [
    ("seed=0,1", Dimension("seed", ["0", "1"])), ("seed=range(1,4)", Dimension("seed", ["1", "2", "3"])),
    ("trainer=ppo,grpo", Dimension("trainer", ["ppo", "grpo"])),
    ("model.freeze=[a,b],[]", Dimension("model.freeze", ["[a,b]", "[]"])),
    ("subspace.rank=null,3", Dimension("subspace.rank", ["null", "3"])),
    (RATE, Dimension("routing.quarantine.learning_rate", [1e-3, 1e-1], interval=True, log=True)),
    ("subspace.rank=int(interval(1,8))", Dimension("subspace.rank", [1, 8], interval=True))])
def test_hydras_syntax_says_what_is_varied(text, expected):
    assert split(["env=empty", text]) == (["env=empty"], [expected])


def test_a_list_in_brackets_is_one_value():
    assert split(["model.freeze=[embedding,final_norm]"]) == (["model.freeze=[embedding,final_norm]"], [])


@pytest.mark.parametrize(("overrides", "message"), [
    (["seed=0"], "a sweep needs a setting with several values"), (["sed=0,1"], "unknown setting sed; did you mean seed"),
    (["seed=0,x"], "seed must be int, got 'x'"), (["seed=0,1", "seed=2,3"], "cannot be varied twice"),
    (["sweep.jobs=1,2"], "give it one value"), (["seed=glob(*)"], "cannot be varied; write"),
    (["subspace.rank=choice(null,3)"], "cannot be read"), (["seed=interval(1)"], "cannot be read"),
    (["seed=interval(3,1)"], "smaller one"), ([RATE], "list values .* or set sweep=optuna"),
    (["seed=0,1", "sweep=optuna"], "sweep=optuna|needs an objective"), (["seed=0,1", "sweep.direction=up"], "sweep.direction=up"),
    (["seed=0,1", "sweep.objective=[a,b]"], "one direction for each"),
    (["seed=0,1", "sweep.objective=models.deployed.sum.solve"], "sum is none of code, sums, values"),
    (["seed=0,1", "sweep.objective=model.x"], "model is none of models, att"),
    pytest.param(["baseline.detector.recall=.5,1"], "baseline.detector.recall=0.5,1: no trial reads it; set baseline=screen or",
                 marks=pytest.mark.slow),
    (["evaluation.samples=0,8", "sweep.objective=models.base.sums.solve"], "needs an evaluation"),
    (["seed=0,1", "routing.mode=rout"], "choose from"),
    (["seed=0,1", "sweep.prune.metric=x"], "sweep.prune.metric needs sweep=optuna"),
    (["seed=0,1", *PRUNED, "sweep.prune.metric=environment/sum/reward"], "ENV/reward with ENV one of code, sums, values"),
    (["seed=0,1", *PRUNED, "sweep.prune.metric=quarantine/size"], "prune.metric=quarantine/size is no metric of these trials")])
def test_what_cannot_be_swept_is_refused_before_any_trial_begins(tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=message) as caught:
        run(tmp_path / "sweep", *overrides)
    assert "\n" not in str(caught.value) and not (tmp_path / "sweep").exists()


def test_the_trainers_settings_are_checked_too(tmp_path):
    fixed, dimensions = split(["trainer.lerning_rate=1,2", f"out={tmp_path / 'sweep'}"])
    with pytest.raises(ConfigError, match=r"did you mean trainer\.learning_rate"):
        sweep(fixed, dimensions, compose, execute=pretend)
    assert not (tmp_path / "sweep").exists()


def test_a_grid_runs_every_combination_once_and_knows_the_best(tmp_path, capsys):
    found = run(tmp_path, *GRID, "sweep.objective=models.deployed.sums.solve")
    assert started(tmp_path) == {f"trial-{number:03d}": 1 for number in range(6)}
    assert [tuple(each["params"].values()) for each in found["trials"]] == [
        (rate, seed) for rate in ("0.001", "0.01") for seed in "012"]
    assert {each["trial"] for each in found["best"]} == {"trial-000", "trial-001", "trial-002"}
    assert found["trials"][0]["overrides"] == ["routing.quarantine.learning_rate=0.001", "seed=0"]
    said = capsys.readouterr().out
    assert "routed-rl train routing.quarantine.learning_rate=0.001 seed=0" in said
    sentence = found["verdict"][0]
    assert sentence.startswith("The best of 6 trials are trial-000 (routing.quarantine.learning_rate=0.001 seed=0) with ")
    assert said.index(sentence) < said.index("sweep of 6 trials") and sentence in (tmp_path / "sweep.html").read_text()
    assert (tmp_path / "sweep.png").exists() and (tmp_path / "sweep.svg").exists()
    assert yaml.safe_load((tmp_path / "trial-004" / "config.yaml").read_text())["seed"] == 1
    (tmp_path / "trial-003" / "summary.json").unlink()
    assert run(tmp_path, *GRID, "sweep.objective=models.deployed.sums.solve", "sweep.jobs=1")["best"] == found["best"]
    assert started(tmp_path)["trial-003"] == 2 and sum(started(tmp_path).values()) == 7
    with pytest.raises(RunFolderError, match=r"seed: 0 -> 5.*give another out="):
        run(tmp_path, GRID[0], "seed=5,6", "env=empty")


@pytest.mark.slow
@pytest.mark.parametrize("source", [[], ["sweep=optuna", "sweep.trials=3"]])
def test_a_failed_trial_is_a_failure_and_not_the_end(tmp_path, source):
    (tmp_path / "FAIL").write_text("trial-001")
    with pytest.raises(RoutedRLError, match="1 of 3 trials failed: trial-001"):
        run(tmp_path, "seed=0,1,2", *source, "sweep.objective=models.deployed.sums.solve")
    found = read_json(tmp_path / "sweep.json")
    assert [each["state"] for each in found["trials"]] == ["done", "failed", "done"]
    assert "the reward is nan" in found["trials"][1]["problem"] and found["trials"][1]["values"] is None


@pytest.mark.slow
@pytest.mark.parametrize("source", [[], ["sweep=optuna", "sweep.trials=3"]])
def test_an_unknown_objective_lists_those_there_are_and_costs_no_finished_trial(tmp_path, source):
    known = r"models\.deployed\.sums\.evil is no number.*models\.deployed\.sums\.hack, models\.deployed\.sums\.solve"
    with pytest.raises(ConfigError, match=known):
        run(tmp_path, "seed=0,1,2", *source, "sweep.objective=models.deployed.sums.evil")
    before = [name for name in started(tmp_path) if (tmp_path / name / "summary.json").exists()]
    found = run(tmp_path, "seed=0,1,2", *source, "sweep.objective=models.deployed.sums.solve")
    assert before and len(found["trials"]) == 3 and all(started(tmp_path)[name] == 1 for name in before)


@pytest.mark.slow
def test_optuna_goes_on_in_its_study_and_refuses_another(tmp_path):
    ours = [RATE, "sweep=optuna", "sweep.objective=models.deployed.sums.solve"]
    run(tmp_path, *ours, "sweep.trials=2")
    found = run(tmp_path, *ours, "sweep.trials=4")
    assert len(found["trials"]) == 4 and started(tmp_path) == {f"trial-{number:03d}": 1 for number in range(4)}
    rates = [float(each["params"]["routing.quarantine.learning_rate"]) for each in found["trials"]]
    assert len(set(rates)) == 4 and all(1e-3 <= rate <= 1e-1 for rate in rates)
    assert found["best"][0]["values"] == [pytest.approx(1 - min(rates))]
    with pytest.raises(RunFolderError, match=r"holds a sweep of other settings \(seed: None -> 7\); set another out=FOLDER$"):
        run(tmp_path, *ours, "seed=7")
    with pytest.raises(RunFolderError, match=r"sweep\.direction=\['maximize'\], not \['minimize'\]"):
        run(tmp_path, *ours, "sweep.direction=minimize")


@pytest.mark.slow
def test_a_study_of_other_settings_is_refused_with_the_setting_that_differs_alone(tmp_path):
    def study(fixed: list[str], *dimensions: Dimension) -> Study:
        return Study(Plan(fixed, tmp_path, compose), [*dimensions], SweepConfig(method="optuna", objective="x"), 0)

    fixed = ["env=empty", "trainer.max_steps=4", "name=x"]
    space = [Dimension("seed", ["0", "1"]), Dimension("discard", ["a", "b"])]
    study(fixed, *space)
    study(fixed[::-1], *space)
    for texts, dimensions, said in (([*fixed[:1], "trainer.max_steps=5", *fixed[2:]], space, "trainer.max_steps: 4 -> 5"),
                                    (fixed[:2], space, "name: x -> None"), (fixed, space[:1], "discard: a,b -> None")):
        with pytest.raises(RunFolderError) as caught:
            study(texts, *dimensions)
        assert str(caught.value) == f"{tmp_path} holds a sweep of other settings ({said}); set another out=FOLDER"


@pytest.mark.slow
def test_a_study_goes_on_although_the_package_lies_at_another_place_since_it_began(tmp_path):
    """Words of the command line have absolute paths."""
    def study(*fixed: str) -> Study:
        settings = SweepConfig(method="optuna", objective="models.deployed.sums.solve", direction="maximize")
        return Study(Plan([*fixed], tmp_path, compose), [], settings, 0)

    words = ("env.a.path={}/environments/x.py:A", "subspace.parts=[{0}/configs/a,{0}/configs/b]", "model.path=/mine/configs/a")
    study(*(word.format("/old/place") for word in words))
    study(*(word.format(data_root()) for word in words))
    with pytest.raises(RunFolderError, match=r"other settings \(model.path: /mine/configs/a -> /moved/configs/a\); set another"):
        study(*(word.format(data_root()) for word in words[:2]), "model.path=/moved/configs/a")
    with pytest.raises(RunFolderError, match=r"other settings \(env.a.path: .* -> /old/place/environments/x.py:A\); set another"):
        study("env.a.path=/old/place/environments/x.py:A", *(word.format(data_root()) for word in words[1:]))


@pytest.mark.slow
def test_a_trial_that_is_worse_than_the_median_is_pruned_and_counts(tmp_path):
    (tmp_path / "SLOW").touch()
    found = run(tmp_path, "routing.quarantine.learning_rate=0.1,0.01,0.001", "sweep=optuna", "sweep.trials=8", "seed=1",
                "sweep.objective=models.deployed.sums.solve", "sweep.prune.metric=train/reward", "sweep.prune.after_trials=2",
                "sweep.prune.after_steps=1")
    states = [each["state"] for each in found["trials"]]
    assert len(states) == 8 and "pruned" in states and "done" in states
    assert all("is worse than the median" in each["problem"] for each in found["trials"] if each["state"] == "pruned")


def outcomes(*values: tuple[float, ...]) -> list[Outcome]:
    plan = Plan([], Path("sweep"), lambda _: Config())
    return [Outcome(plan.trial(number, {}), list(value) or None, "done") for number, value in enumerate(values)]


def test_several_objectives_give_the_pareto_front():
    found = outcomes((0.1, 0.5), (0.3, 0.9), (0.2, 0.4), (0.3, 0.8), ())  # hack, solve
    front = best(found, ["minimize", "maximize"])
    assert [each.values for each in front] == [[0.1, 0.5], [0.3, 0.9]]
    assert [each.values for each in best(found, ["maximize", "maximize"])] == [[0.3, 0.9]]


def test_the_page_shows_the_trials_that_are_best_by_each_objective(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_page, "write_page", lambda page, _: page)
    found = outcomes(*((number / 20, 0.5 + abs(number - 10) / 20, number) for number in range(20)), ())
    objectives = [f"models.deployed.sums.{name}" for name in ("solve", "hack", "steps")]
    settings = SweepConfig(objective=objectives, direction=["maximize", "minimize", "maximize"])
    page: Any = write_sweep(tmp_path / "sweep.html", found, settings)
    assert [(panel.title, panel.words) for panel in page.panels] == [
        (objectives[0], "maximize; the best 12 of 20 trials"), (objectives[1], "minimize; the best 12 of 20 trials")]
    solve, hack = ([bar.value for bar in panel.bars] for panel in page.panels)
    assert solve == [number / 20 for number in range(19, 7, -1)]
    assert hack == [0.5, *(0.5 + away / 20 for away in range(1, 6) for _ in "+-"), 0.8]


def test_the_page_of_a_sweep_without_objectives_has_no_panel(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_page, "write_page", lambda page, _: page)
    page: Any = write_sweep(tmp_path / "sweep.html", outcomes((), ()), SweepConfig())
    assert page.panels == []


def test_a_flag_that_a_trial_never_showed_is_an_objective_of_0(tmp_path):
    trial = Plan([], tmp_path, lambda _: Config()).trial(0, {})
    trial.folder.path.mkdir()
    write_json(trial.folder.summary, {"models": {"policy": {"code": {"hack": 0.5}}, "deployed": {"code": {"solve": 1.0}}},
                                      "flags": {"code": ["hack"]}})
    assert outcome(trial, None, ["models.policy.code.hack", "models.deployed.code.hack"]).values == [0.5, 0.0]


@pytest.mark.slow
def test_without_an_objective_each_trial_says_what_it_trained(tmp_path, capsys):
    found = run(tmp_path, "seed=0,1")
    assert found["best"] == []
    said = capsys.readouterr().out
    assert re.search(r"│ trial-000 │ 0 +│ sums +│ 0\.50 / 0\.97 │ 0\.90 / 0\.00 │", said)
    assert re.search(r"│ trial-001 │ 1 +│ sums +│ 0\.50 / 0\.97 │ 0\.90 / 0\.10 │", said)
    assert "no objective is set" in said


@pytest.mark.slow
def test_where_nothing_was_evaluated_a_sweep_says_so(tmp_path, capsys):
    run(tmp_path, "seed=0,1", execute=unevaluated)
    assert "no trial was evaluated" in capsys.readouterr().out


def unevaluated(config: Config, overrides: list[str]) -> None:
    pretend(config, overrides)
    write_json(Path(str(config.out)) / "summary.json", {"models": {"base": {}, "policy": {}, "deployed": {}}})


def test_a_dry_run_lists_the_trials_and_writes_nothing(tmp_path, capsys):
    assert run(tmp_path / "sweep", *GRID, dry_run=True) is None
    said = capsys.readouterr().out
    assert "trial-005  routing.quarantine.learning_rate=0.01 seed=2" in said and "6 trials, 2 at a time" in said
    assert not (tmp_path / "sweep").exists()


def test_a_trial_has_no_trace_of_the_sweep_in_its_settings():
    trial = Plan([], Path("sweep"), compose).trial(3, {"seed": "2"})
    assert (trial.config.sweep, trial.config.name, trial.config.seed) == (SweepConfig(), "trial-003", 2)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_sweep_of_12_killed_at_the_5th_has_12_results_and_ran_none_twice(tmp_path):
    """Real trainings, kill -9 of the whole command, the same command again."""
    from tests.parts import write_parts  # Here, so that the processes of the other tests need no torch.

    parts, out = write_parts(tmp_path / "parts"), tmp_path / "sweep"
    command = [sys.executable, "-m", "routed_rl.cli", "sweep", f"model.path={parts}/model", "env=empty",
               f"env.a.path={parts}/environment.py:Add", "env.a.isolate=false", f"subspace.prompts={parts}/prompts.jsonl",
               "subspace.rank=2", "trainer.max_steps=2", "trainer.per_device_train_batch_size=8", "trainer.num_generations=4",
               "trainer.max_completion_length=4", "trainer.save_steps=1", "evaluation.samples=0", "discard=false", "sweep=optuna",
               "sweep.trials=12", "sweep.objective=routing.quarantine_norm", RATE, f"out={out}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while len(done := sorted(out.glob("trial-*/summary.json"))) < 5:
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    time.sleep(3)  # Its workers notice within a second.
    before = {path: path.stat().st_mtime_ns for path in done}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    found = read_json(out / "sweep.json")
    assert [each["state"] for each in found["trials"]] == ["done"] * 12
    assert len({json.dumps(each["params"]) for each in found["trials"]}) == 12, "a trial was run again under another number"
    assert len(list(out.glob("trial-*"))) == 12 and all(path.stat().st_mtime_ns == when for path, when in before.items())


def test_what_could_not_be_scored_is_told_with_and_without_an_objective():
    found = outcomes((0.5,))
    found[0].summary["models"] = {"policy": {"sums": {"failures": 2.0, "completions": 8.0}}}
    told = "trial-000: 2 of 8 completions in sums could not be scored (policy)"
    assert notes(found, SweepConfig(objective="models.policy.sums.solve")) == [told]
    assert notes(found, SweepConfig())[0] == told
