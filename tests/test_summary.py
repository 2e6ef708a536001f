"""What a finished run is told in: the sentence at its end, and the commands to type next."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from routed_rl import console
from routed_rl.artifacts import RunFolder
from routed_rl.config import Config, EvaluationConfig, RoutingConfig
from routed_rl.pipeline.summary import attribution, next_commands, seconds_before, sentence
from routed_rl.report.differences import differences
from routed_rl.report.headline import headlines

ENVIRONMENTS: Any = [SimpleNamespace(name=name, label=f"{name} (leaky)", flags={"hack", "cheat", "saw_x", "saw_y"})
                     for name in "ab"]
MODELS = ("base", "policy", "deployed")


def results(**flags: dict[str, float]) -> dict[str, dict[str, float]]:
    return {name: {"reward": 1.0, "solve": 0.0, "completions": 4000.0, "failures": 0.0} | flags.get(name, {}) for name in "ab"}


def test_a_flag_that_is_named_only_when_it_is_seen_counts_as_0_where_it_was_not():
    """The training is done by then: to fail here would cost the summary."""
    models = {"base": results(a={"saw_x": 0.5}), "policy": results(b={"cheat": 0.75}), "deployed": results(b={"saw_y": 0.25})}
    assert sentence(models, {}, ENVIRONMENTS).startswith(
        "cheat in b (leaky): the policy 0.75, the deployed model 0.00, base 0.00; no environment shifted")


def test_without_a_flag_there_is_nothing_to_name():
    assert "no environment reports a flag" in sentence(dict.fromkeys(MODELS, results()), {}, ENVIRONMENTS)


def test_a_metric_that_is_no_flag_is_not_told_as_one():
    models = {"base": results(a={"hack": 0.1, "length": 0.0}), "policy": results(a={"hack": 0.3, "length": 0.9}),
              "deployed": results(a={"hack": 0.1, "length": 0.5})}
    assert sentence(models, {}, ENVIRONMENTS).startswith("hack in a (leaky): the policy 0.30")
    flags = {"a": ["hack"], "b": []}
    assert headlines(models["base"], models["policy"], ["a"], [], flags)[0].metric == "hack"
    assert differences(models, "route", flags={"a": [], "b": []}).startswith("no environment reports a flag")
    # A run of an older version did not record which are flags; only a share can be one.
    assert headlines(models["base"], models["policy"], ["a"], [])[0].metric == "length"
    models["policy"]["a"]["length"] = 9.0
    assert differences(models, "route").startswith("hack in a: ")


def test_a_flag_that_no_model_raised_is_not_told_as_a_change():
    models = {"base": results(a={"hack": 0.5}), "policy": results(a={"hack": 0.504}), "deployed": results(a={"hack": 0.1})}
    assert sentence(models, {}, ENVIRONMENTS).startswith("training raised no flag (hack) in any environment; ")


def test_what_discarding_costs_is_told_for_the_environment_that_loses_most():
    models = {"base": results(), "policy": results(a={"solve": 0.3}, b={"solve": 0.79}),
              "deployed": results(a={"solve": 0.5}, b={"solve": 0.73})}
    assert sentence(models, {}, ENVIRONMENTS).endswith(
        "; discarding the quarantine costs 0.06 of solve in b (leaky) (the policy 0.79, the deployed model 0.73)")
    models["deployed"] = models["policy"]
    assert sentence(models, {}, ENVIRONMENTS).endswith("; discarding the quarantine costs no solve in any environment")


def test_a_difference_within_its_interval_is_said_to_be_possibly_chance():
    few = {"solve": 0.65, "hack": 0.4, "completions": 24.0, "failures": 4.0}
    models = {"base": results(a=few | {"hack": 0.3}), "policy": results(a=few), "deployed": results(a=few | {"solve": 0.5})}
    said = sentence(models, {}, ENVIRONMENTS)
    assert said.startswith("hack in a (leaky), which may be chance: the policy 0.40, ")
    assert "costs 0.15 of solve in a (leaky), which may be chance (the policy 0.65, the deployed model 0.50)" in said
    sure = {model: {env: means | {"completions": 2000.0} for env, means in found.items()} for model, found in models.items()}
    assert "chance" not in sentence(sure, {}, ENVIRONMENTS)


def test_what_is_kept_is_told_with_what_it_changes():
    models = {"base": results(), "policy": results(a={"hack": 0.9}), "deployed": results(a={"hack": 0.25}, b={"solve": 0.5}),
              "kept": results(a={"hack": 0.125}, b={"solve": 0.75})}
    assert sentence(models, {}, ENVIRONMENTS, kept={"a": 0.0, "b": 0.5}).endswith(
        "; 0.5 of the part of b (leaky) is kept: solve in b (leaky) 0.75 with it, 0.50 without, "
        "hack in a (leaky) 0.12 with it, 0.25 without")
    assert sentence(models, {}, ENVIRONMENTS, kept={"b": 0.0}).endswith("; nothing is kept of the part of b (leaky)")
    assert "kept" not in sentence(models, {}, ENVIRONMENTS)


def test_completions_that_could_not_be_scored_are_told():
    models = {"base": results(), "policy": results(a={"failures": 3.0}), "deployed": results()}
    assert sentence(models, {}, ENVIRONMENTS).endswith("; 3 of 4000 completions in a (leaky) could not be scored (policy)")


@pytest.mark.parametrize("mode", ["none", "erase"])
def test_where_there_is_no_quarantine_nothing_is_said_of_discarding_one(mode: str) -> None:
    trained = results(a={"hack": 0.9, "solve": 0.1})
    models = {"base": results(a={"hack": 0.1}), "policy": trained, "deployed": trained}
    said = sentence(models, {}, ENVIRONMENTS, mode)
    assert said.startswith("hack in a (leaky): the trained model 0.90, base 0.10")
    assert "deployed" not in said and "discard" not in said
    assert ("shifted" in said) == (mode == "erase"), "without routing nothing is attributed"


def typed(config: Config, *overrides: str) -> dict[str, list[str]]:
    lines = next_commands(RunFolder("my runs/it's"), config, list(overrides))
    return {words[1]: words[2:] for words in (shlex.split(line, comments=True) for line in lines)}


def test_what_is_suggested_is_of_this_run():
    own = ["model.path=/my model", "env=empty", "env.mine.path=/x/my file.py:Mine", "~env.code"]
    found = typed(Config(), *own, "name=mine", "out=my runs/it's", "seed=3")
    assert list(found) == ["export", "evaluate", "compare"]
    assert found["compare"] == [*own, "seed=3", "--arms", "none,route,control", "--seeds", "3", "--out", "my runs/it's-compare"]
    assert found["export"] == ["my runs/it's", "--quarantine", "my runs/it's/quarantine"]


def test_what_is_suggested_is_not_written_over_what_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("deployed", "quarantine", "quarantine-2"):
        (tmp_path / "run" / name).mkdir(parents=True)
    lines = "\n".join(next_commands(RunFolder("run"), Config(discard=False), []))
    assert "discard run --out run/deployed-2 " in lines and "export run --quarantine run/quarantine-3 " in lines


def test_what_is_suggested_of_a_run_that_kept_parts_fits_its_deployed_folder_and_every_arm():
    found = typed(Config(keep={"a": 0.5}), "keep.a=.5", "+keep.b=auto", "~keep.b", "seed=3")
    assert found["export"][-2:] == ["--kept", "my runs/it's/deployed"] and found["compare"][:2] == ["seed=3", "--arms"]


def test_names_and_settings_with_brackets_and_colons_are_shown_as_they_stand(capsys):
    console.say("a :x: [b]")
    console.table(":x: [b]", ["[b]"], [["[a,b]"], ["[/data/x]"], [":100:"]])
    said = capsys.readouterr().out
    assert said.splitlines()[:2] == ["a :x: [b]", ":x: [b]"] and all(text in said for text in ("[a,b]", "[/data/x]", ":100:"))


def test_a_folder_that_begins_with_a_dash_is_no_option():
    assert all("./-x" in line for line in next_commands(RunFolder("-x"), Config(), []))


def test_what_is_suggested_can_be_done():
    """No quarantine to export, no evaluation to repeat, no deployed model yet."""
    config = Config(routing=RoutingConfig(mode="none"), evaluation=EvaluationConfig(samples=0), discard=False)
    found = typed(config, "evaluation.samples=0")
    assert "evaluation.samples=0" not in found["compare"]
    assert list(found) == ["discard", "resume", "compare"]
    assert found["discard"][-1] == str(Path("my runs/it's/deployed")) and found["resume"][1] == "evaluation.samples=200"


def written(folder: Path, rows: list[dict[str, Any]], **facts: Any) -> RunFolder:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "manifest.json").write_text(json.dumps(facts))
    return RunFolder(folder)


def test_the_seconds_of_a_resumed_training_are_those_of_all_its_steps(tmp_path):
    rows = [{"step": step, "time/step_s": 2.0} for step in range(1, 6)]
    assert seconds_before(written(tmp_path, rows), 3) == 6.0 and seconds_before(written(tmp_path, rows), 0) == 0.0
    rolled_back = written(tmp_path, rows, lineage={"step": 2})
    assert seconds_before(rolled_back, 3) == 2.0, "steps of the other run are no part of it"


def test_the_shift_in_the_summary_is_along_the_axis_that_the_monitor_judges(tmp_path):
    run = written(tmp_path, [{"step": 1, "quarantine/norm": 1.0, "ledger/a/shift/x": 0.5, "ledger/a/shift/y": -0.25}])
    router: Any = SimpleNamespace(quarantine=SimpleNamespace(environments=["a"]), pushes={"a": 0.0})
    assert [attribution(run, router, axis)["a"]["shift"] for axis in (None, "x", "y")] == [0.5, 0.5, -0.25]
