"""Settings as a user meets them: in a file of their own, in a list with meanings, and in files to begin with."""

from __future__ import annotations

import os
from argparse import Namespace
from contextlib import chdir
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import yaml

from routed_rl.cli import main, parser
from routed_rl.cli.compose import compose
from routed_rl.cli.overrides import parse_override
from routed_rl.cli.paths import from_anywhere
from routed_rl.cli.settings_file import overrides_of
from routed_rl.cli.verbs import VERBS
from routed_rl.inspection.settings import all_settings, sections

ROOT = Path(__file__).parent.parent


def write(folder: Path, text: str) -> str:
    (folder / "mine.yaml").write_text(text)
    return str(folder / "mine.yaml")


def test_a_file_means_what_the_same_words_on_a_command_line_mean(tmp_path):
    (tmp_path / "mine.py").write_text("class Mine: ...")
    file = write(tmp_path, """
defaults: [override /env: empty, routing: observe, model.adapter: lora]
name: mine
seed: 3
env: {mine: {path: "mine.py:Mine", weight: 0.5, note: "a, b = {c}"}}
trainer: {learning_rate: 1e-3, bf16: false, report_to: null}
subspace.rank: 2
monitor.evidence.limits: {mine: 4}
""")
    typed = ["env=empty", "routing=observe", "model.adapter=lora", "name=mine", "seed=3",
             f"env.mine.path={tmp_path}/mine.py:Mine", "env.mine.weight=0.5", "env.mine.note='a, b = {c}'",
             "trainer.learning_rate=0.001", "trainer.bf16=false",
             "trainer.report_to=null", "subspace.rank=2", "monitor.evidence.limits.mine=4"]
    with chdir(os.sep):
        assert compose(overrides_of(file)) == compose(typed)
        assert compose([*overrides_of(file), "seed=4"]).seed == 4, "a command line comes after the file"


TEXTS = ["two\nlines", r"a \d+ b", "C:\\dir\\", 'he said "\\"', "tab\there", "\u2028"]


def test_texts_in_a_file_are_the_texts_of_the_settings(tmp_path):
    file = write(tmp_path, yaml.safe_dump({"env": {"a": {"of": TEXTS, "by": dict(enumerate(TEXTS))}, "b": {"note": TEXTS[0]}}}))
    values = {text.partition("=")[0]: parse_override(text)[1].value() for text in overrides_of(file)}
    alone = {f"env.a.by.{place}": each for place, each in enumerate(TEXTS)}
    assert values == alone | {"env.a.of": TEXTS, "env.b.note": TEXTS[0]}
    assert parse_override(r"env.a.note=\d(")[1].value() == r"\d(", "what needs quotes gets them"


def test_files_of_pairs_and_prompts_and_the_target_are_relative_to_the_file_that_names_them(tmp_path):
    for name in ("pairs.jsonl", "plain.jsonl", "target"):
        (tmp_path / name).touch()
    file = write(tmp_path, "subspace: {pairs: pairs.jsonl, plain_prompts: plain.jsonl, target: target}")
    (tmp_path / "mean_difference").mkdir()  # a word of the target, and no folder
    assert [parse_override(text)[1].value() for text in overrides_of(file)] == [
        str(tmp_path / name) for name in ("pairs.jsonl", "plain.jsonl", "target")]
    (tmp_path / "mine.yaml").write_text("subspace.target: mean_difference")
    assert overrides_of(file) == ["subspace.target=mean_difference"]


def test_a_section_whose_settings_are_all_comments_sets_nothing(tmp_path):
    file = write(tmp_path, "defaults:\n  # - env: empty\ntrainer:\n  # max_steps: 60\nenv:\nkeep:\nrouting:\n  quarantine:\n"
                           "out:\nsubspace.rank:\nname: mine\n")
    assert overrides_of(file) == ["out=null", "subspace.rank=null", "name=mine"]


@pytest.mark.slow  # it composes two experiments
def test_the_tilde_is_the_home_folder_in_every_setting_and_option_that_names_a_place(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    keys = ["out", "model.path", "model.adapter.path", *(f"subspace.{key}" for key in (
        "path", "weights", "prompts", "plain_prompts", "answers", "pairs", "target", "roles_file", "traits_file",
        "questions_file"))]
    for there in (False, True):
        found: Any = compose([f"{key}=~/x" for key in keys] + ["model.adapter.kind=lora", 'subspace.parts=["~/x",pca]'])
        assert {key: attrgetter(key)(found) for key in keys} == dict.fromkeys(keys, f"{tmp_path}/x"), there
        assert found.subspace.parts == [f"{tmp_path}/x", "pca"]
        (tmp_path / "x").mkdir(exist_ok=True)
    seen: list[Namespace] = []
    monkeypatch.setattr(parser, "_act", lambda _name, given: seen.append(given))
    parser.run(["discard", "~/r", "--out=~/d"])
    parser.run(["calibrate", "--runs=~/a,b,~/c", "--config=~/c.yaml", "--out", "~~/d"])
    parser.run(["relearn", "~/m", "--env", "~", "--json=~/j", "--also=m=~/n"])
    assert [seen[0].run, seen[0].out, seen[1].config, seen[2].target, seen[2].json] == [
        f"{tmp_path}/{name}" for name in ("r", "d", "c.yaml", "m", "j")]
    assert (seen[1].runs, seen[2].also) == ([f"{tmp_path}/a,b,{tmp_path}/c"], [f"m={tmp_path}/n"])
    assert (seen[1].out, seen[2].env) == ("~~/d", "~"), "other words stay as they are"


def test_a_folder_with_a_comma_in_its_name_is_one_folder(tmp_path):
    (folder := tmp_path / "a,b  \\ c ").mkdir()
    (folder / "mine.py").touch()
    (folder / "p, .jsonl").touch()
    with chdir(folder):
        kept = from_anywhere(["env.mine.path=mine.py:Mine", "subspace.prompts='p, .jsonl'"])
    found = [parse_override(text)[1] for text in kept]
    assert [each.value() for each in found] == [f"{folder}/mine.py:Mine", f"{folder}/p, .jsonl"]
    assert not any(each.is_sweep_override() for each in found)


def test_numbers_of_a_file_that_are_not_finite_stay_numbers_so_that_they_are_refused(tmp_path):
    found = overrides_of(write(tmp_path, "env: {a: {x: .inf, y: -.inf, z: .nan, w: [.inf, 1.0e+22, 1.0e-7, 2, true]}}"))
    values = [parse_override(text)[1].value() for text in found]
    assert repr(values) == "[inf, -inf, nan, [inf, 1e+22, 1e-07, 2, True]]"


@pytest.mark.parametrize(("text", "problem"), [
    ("env: &a {b: *a}", "a value has itself as a part"), ("seed: !!int x", "is no YAML: "), ("discard: !!bool x", "is no YAML: "),
    ("seed: [1", "is no YAML: "), ("- 1", "must hold settings as KEY: VALUE, got list"),
    ("3", "must hold settings as KEY: VALUE, "),
    ("defaults: lora", "defaults must be a list"), ("defaults: [lora]", "defaults has 'lora'; write GROUP: CHOICE"),
    ("sede: 1", "unknown setting sede; did you mean seed?"),
    ("defaults: [model: nothing]", "model=nothing is not known")])
def test_a_file_that_cannot_be_used_is_refused_in_one_line(tmp_path, capsys, text, problem):
    assert main(["train", "--dry-run", "--config", write(tmp_path, text)]) == 2
    error = capsys.readouterr().err
    assert problem in error and len(error.strip().splitlines()) == 1


@pytest.mark.parametrize(("file", "problem"), [("", "--config is empty; give FILE.yaml, or leave it out"),
                                               (".", "--config .: it is a folder")])
def test_a_name_that_is_no_file_is_refused_also_if_it_is_empty(capsys, file, problem):
    assert main(["train", "--dry-run", "--config", file]) == 2 and problem in capsys.readouterr().err


def test_every_setting_has_a_default_and_a_meaning_in_the_reference():
    found = {each.name: each for each in all_settings()}
    assert [name for name, each in found.items() if not each.meaning] == [] and len(found) > 200
    assert [name for name, meaning in sections().items() if not meaning] == []
    assert (found["routing.mode"].default, found["monitor.shift.action"].type) == ("route", "str")
    config = compose([])
    assert str(config.routing.quarantine.learning_rate) == found["routing.quarantine.learning_rate"].default


def test_settings_are_found_by_a_word_of_name_or_meaning(capsys):
    assert main(["settings", "pace"]) == 0
    shown = capsys.readouterr().out
    assert "routing.quarantine.pace=evidence" in shown and "subspace" not in shown
    assert main(["settings", "paec"]) == 2 and "did you mean pace?" in capsys.readouterr().err


def test_every_command_and_option_says_what_it_is():
    assert [(name, option[0]) for name, verb in VERBS.items() for option in verb.options if not option[1].get("help")] == []


def test_what_new_writes_runs_as_it_is_and_nothing_is_written_over(tmp_path, capsys):
    with chdir(tmp_path):
        assert main(["new", "env", "first_one"]) == 0 and main(["new", "experiment", "mine"]) == 0
        assert "routed-rl env try first_one.py:FirstOne" in capsys.readouterr().out.replace("python -m ", "")
        before = (tmp_path / "first_one.py").read_text()
        assert main(["new", "env", "first_one"]) == 2 and (tmp_path / "first_one.py").read_text() == before
        assert main(["new", "env", "First"]) == 2 and "take a name of small letters" in capsys.readouterr().err
        # `class None`, a `class Task` beside the Task that is imported, and libraries that Python would not find behind the file
        for name in ("none", "task", "random", "numpy"):
            assert main(["new", "env", name]) == 2 and f"take another one, such as my_{name}" in capsys.readouterr().err
        assert main(["env", "check", "first_one.py:FirstOne", "--samples", "4"]) == 0
        assert compose(overrides_of("mine.yaml")).name == "mine"


@pytest.mark.slow
def test_an_experiment_in_a_file_trains_a_model_of_ones_own_with_one_command(tmp_path, capsys):
    from tests.chat import write_chat_model

    file = tmp_path / "own.yaml"
    file.write_text((ROOT / "examples" / "own_model.yaml").read_text())
    model = write_chat_model(tmp_path) / "model"  # it knows few words, so it has prompts of its own
    small = ["trainer.max_steps=1", "trainer.per_device_train_batch_size=8", "trainer.max_completion_length=8",
             "evaluation.samples=2", "trainer.bf16=false", "model.adapter.r=4", f"model.path={model}",
             f"subspace.prompts={tmp_path / 'prompts.jsonl'}", f"out={tmp_path / 'run'}"]
    assert main(["train", "--config", str(file), *small]) == 0
    assert (tmp_path / "run" / "deployed").is_dir()
