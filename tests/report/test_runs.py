"""A run leaves its report at its end and at a halt; one that cannot be made costs the run nothing."""

from __future__ import annotations

import pytest

from routed_rl import cli
from routed_rl.artifacts import RunFolder
from routed_rl.config import EvaluationConfig
from routed_rl.envs import Score
from routed_rl.errors import Halted
from routed_rl.evaluate import Answer
from routed_rl.pipeline.answers import keep_answers
from routed_rl.report.answers import read_answers
from tests import pipeline
from tests.parts import own_config, write_parts

QUICK = {"trainer": {"max_steps": 2, "per_device_train_batch_size": 16}, "tracking": {"report": True}}
ALWAYS = {"share": {"limit": 0.0, "action": "halt"}, "warmup": 0}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return write_parts(tmp_path_factory.mktemp("parts"))


def test_a_finished_run_has_its_report_with_layers_and_models(parts, tmp_path):
    run = pipeline.train(own_config(parts, tmp_path / "run", **QUICK), [])
    text = (run / "report.html").read_text()
    assert "This run finished its 2 steps." in text and "Map of 2 layers by 2 steps" in text and 'id="model-chart-title"' in text
    kept = read_answers(run / "answers.jsonl")
    assert [row["environment"] for row in kept] == ["a", "b", "p"] * 3 + ["a"], "all environments and probes in turn"
    assert all(list(row["answers"]) == ["base", "policy", "deployed"] for row in kept)
    assert text.count('<div class="answers">') == 10


def test_answers_of_a_model_are_put_beside_those_of_the_others_for_the_same_prompts(tmp_path):
    run, config = RunFolder(tmp_path), EvaluationConfig(answers=3)
    for model, prompts in (("base", "pq"), ("policy", "pq"), ("deployed", "pr")):
        found = {name: [Answer(f"{name}{prompt}", f"{model} says", Score(1.0, None, ["hack"])) for prompt in prompts]
                 for name in ("a", "b")}
        told = keep_answers(run, config, model)
        assert told is not None
        told(found)
    rows = read_answers(run.answers)
    assert [(row["environment"], row["prompt"]) for row in rows] == [("a", "ap"), ("b", "bp"), ("a", "ar")]
    assert [list(row["answers"]) for row in rows] == [["base", "policy", "deployed"]] * 2 + [["deployed"]]
    assert rows[0]["answers"]["base"] == {"completion": "base says", "reward": 1.0, "solve": None, "flags": {"hack": 1.0}}
    with open(run.answers, "a") as file:
        file.write('{"environment": "torn')
    assert read_answers(run.answers) == rows and keep_answers(run, EvaluationConfig(answers=0), "base") is None


@pytest.mark.slow
def test_a_halted_run_has_its_report(parts, tmp_path):
    with pytest.raises(Halted):
        pipeline.train(own_config(parts, tmp_path / "run", **QUICK, monitor=ALWAYS), [])
    text = (tmp_path / "run" / "report.html").read_text()
    assert "The monitor halted this run at step 1 of 2" in text and "--step 0" in text


def test_a_run_that_shall_leave_no_report_leaves_none_and_the_verb_writes_that_of_an_unrouted_one_too(parts, tmp_path):
    without = QUICK | {"tracking": {"report": False}}
    run = pipeline.train(own_config(parts, tmp_path / "none", **without, routing={"mode": "none"}), [])
    assert not (run / "report.html").exists() and (run / "summary.json").exists()
    assert cli.main(["report", str(run)]) == 0
    assert "without routing, so nothing was attributed" in (run / "report.html").read_text()


def test_a_report_that_fails_is_one_line_and_the_run_is_whole(parts, tmp_path, monkeypatch, capsys):
    def fails(_run):
        raise ValueError("no ink")

    monkeypatch.setattr("routed_rl.report.run_page.write_report", fails)
    run = pipeline.train(own_config(parts, tmp_path / "run", **QUICK), [])
    said = [line for line in capsys.readouterr().out.splitlines() if "no ink" in line]
    assert said == [f"the report was not written (ValueError: no ink); try again: routed-rl report {run}"]
    assert (run / "summary.json").exists() and (run / "deployed").exists()
