"""`robustify` on short runs: what is written, from whom it is learned, a kill in between, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from routed_rl.artifacts import RunFolder, sealed_folder
from routed_rl.artifacts.whole import sha256
from routed_rl.cli import main
from routed_rl.config.robust import RobustifyConfig
from routed_rl.distillation import robustify
from routed_rl.distillation.loop import Distillation
from routed_rl.distillation.texts import read_texts
from routed_rl.errors import CheckpointError, ConfigError
from routed_rl.export.models import discard_but, merged_policy
from routed_rl.report.card import STUDENT, Leaving, write_card
from tests import pipeline
from tests.cards import loaded_by_card
from tests.library import load
from tests.parts import own_config, write_parts
from tests.test_hub import Hub

SMALL = {"samples": 12, "steps": 6, "batch": 8, "within": 0, "save_steps": 2}


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    return write_parts(tmp_path_factory.mktemp("parts"))


def trained(parts: Path, out: Path, **changes) -> Path:
    env = {name: {"path": f"{parts}/environment.py:Add", "isolate": False} for name in "ab"}
    return pipeline.train(own_config(parts, out, env=env, evaluation={"samples": 0}, trainer={
        "max_steps": 2, "per_device_train_batch_size": 16, "learning_rate": 1e-2}, **changes), [])


@pytest.fixture(scope="module")
def run(parts, tmp_path_factory) -> Path:
    return trained(parts, tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def student(run, tmp_path_factory) -> Path:
    return made(run, tmp_path_factory.mktemp("students") / "student")


def made(run: Path, out: Path, alpha: float = 0.4, **more) -> Path:
    asked = {name: more.pop(name) for name in ("envs", "teacher", "step") if name in more}
    return robustify(str(run), RobustifyConfig(alpha=alpha, **(SMALL | more)), str(out), **asked)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters())


def test_what_is_written_is_a_plain_model_with_a_record_of_how_it_came_about(run, student):
    deployed, found = weights(run / "deployed"), weights(student)
    assert found.keys() == deployed.keys() and all(not torch.equal(found[name], deployed[name]) for name in found)
    record = json.loads((student / "robustified.json").read_text())
    assert record["teacher"]["sha256"] == {"model.safetensors": sha256(run / "deployed" / "model.safetensors")}
    assert record["settings"]["alpha"] == 0.4 and record["seed"] == 0 and record["texts"] == {"a": 12, "b": 12}
    assert [each["step"] for each in record["curve"]] == [0, 6] and record["ended_by"] == "steps"
    assert record["curve"][1]["loss"] < record["curve"][0]["loss"], "it learns from the teacher"
    assert list(student.parent.iterdir()) == [student], "nothing else is left"


def test_a_student_has_a_card_that_tells_how_it_came_about_and_can_be_pushed_without_paths(run, student, monkeypatch):
    card = (student / "README.md").read_text()
    assert "# run: the robustified model" in card and "- robustified\n" in card
    assert "| alpha, beta | 0.4, 0.1 |" in card and "| learned from | 12 completions of a by the teacher<br>12 " in card
    assert f"`{sha256(run / 'deployed' / 'model.safetensors')}`" in card and "as they were after step 2 of 2" in card
    assert "the gate" not in card and "| gate | none, so every token was taught |" in card
    assert "Whether it is harder to turn back than the deployed model." in card and str(run.parent) not in card
    monkeypatch.chdir(student)
    assert torch.equal(next(loaded_by_card(student).parameters()), next(iter(weights(student).values())))
    hub = Hub()
    monkeypatch.setattr("routed_rl.pipeline.hub.HfApi", lambda: hub)
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    assert main(["push", str(student), "me/robust"]) == 0 and hub.files["README.md"].decode() == card
    assert not [name for name, content in hub.files.items() if str(run.parent).encode() in content]
    assert json.loads(hub.files["robustified.json"])["run"] == "run"


def test_a_card_of_a_student_tells_its_gate_and_what_its_teacher_keeps(run, student, tmp_path):
    place = tmp_path / "student"
    shutil.copytree(student, place)
    record = json.loads((place / "robustified.json").read_text())
    record["teacher"]["kept"] = {"a": 0.5}
    record["settings"] |= {"gate": "models", "unlearned": "/home/me/other", "text": "/home/me/words.txt"}
    record |= {"texts": {"a": 12, "text": 3}, "gate": {
        "gate": "models", "thresholds": {"skip": 1.0}, "tokens": {"a": {"keep": 0.25, "skip": 0.75, "noise": 0.0}},
        "against_flags": {"completions": 12, "marked": 5, "auroc": 0.75, "false_positive_rate": None, "recall": None}}}
    (place / "robustified.json").write_text(json.dumps(record))
    card = write_card(RunFolder(run), place, Leaving(STUDENT, 2), record["evaluation"]).read_text()
    assert "except for 0.5 of the part of a. The deployed model, which this leaves, taught this one." in card
    assert "| gate | `models`, compared with `other`; a token is skipped above 1 |" in card and "3 texts of `words.txt`" in card
    assert "| tokens | a: 0.250 kept, 0.750 skipped, 0.000 taught as noise |" in card
    assert "| gate against flags | AUROC 0.750, 5 of 12 completions have a flag |" in card and "/home" not in card


def test_a_teacher_that_keeps_parts_is_of_its_own_step(run, tmp_path):
    keeping = discard_but(RunFolder(run), tmp_path / "keeping", {"a": {"share": 0.5}})
    with pytest.raises(ConfigError, match=r"--step 1: .* is the deployed model of step 2, with the parts that it keeps"):
        made(run, tmp_path / "student", teacher=str(keeping), step=1)
    assert not (tmp_path / "student").exists()


def test_a_student_that_was_killed_is_to_the_bit_the_one_that_was_not(run, student, tmp_path, monkeypatch):
    whole = Distillation.gradient

    def killed(self, places):
        if self.step == 3:
            raise KeyboardInterrupt
        return whole(self, places)

    monkeypatch.setattr(Distillation, "gradient", killed)
    with pytest.raises(KeyboardInterrupt):
        made(run, tmp_path / "again")
    assert not (tmp_path / "again").exists()
    monkeypatch.setattr(Distillation, "gradient", whole)
    with pytest.raises(ConfigError, match="is of an earlier robustify with other settings"):
        made(run, tmp_path / "again", alpha=0.5)
    steps = []
    monkeypatch.setattr(Distillation, "gradient", lambda self, places: steps.append(self.step) or whole(self, places))
    again = made(run, tmp_path / "again")
    assert steps == [2, 3, 4, 5]
    assert sha256(again / "model.safetensors") == sha256(student / "model.safetensors")


def test_only_the_writers_change_where_they_alone_are_noised(run, tmp_path):
    found, deployed = weights(made(run, tmp_path / "student", parts="targets")), weights(run / "deployed")
    changed = {name for name in found if not torch.equal(found[name], deployed[name])}
    assert changed == {name for name in found if name.endswith(("o_proj.weight", "down_proj.weight"))}


def test_the_teacher_is_the_deployed_model_and_no_other(run, tmp_path):
    policy = merged_policy(RunFolder(run), tmp_path / "policy")
    for other, said in ((policy, "its weights are .*, those of that model are"), (run / "subspace", "is no deployed model of")):
        with pytest.raises(CheckpointError, match=said) as refusal:
            made(run, tmp_path / "student", teacher=str(other))
        assert "routed-rl discard" in str(refusal.value) and "\n" not in str(refusal.value)
    with pytest.raises(ConfigError, match="there is no such folder; write it with"):
        made(run, tmp_path / "student", teacher="nowhere")
    shutil.copytree(run / "deployed", tmp_path / "copy")
    made(run, tmp_path / "student", teacher=str(tmp_path / "copy"), steps=0)


def test_an_unrouted_run_has_no_teacher_without_a_gate(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    file = tmp_path / "run" / "config.yaml"
    file.write_text(file.read_text().replace("mode: route", "mode: none"))
    with pytest.raises(ConfigError, match="was not routed, so its deployed model is its policy"):
        made(tmp_path / "run", tmp_path / "student")


def test_what_is_wrong_is_said_in_one_line_and_nothing_is_written(run, student, tmp_path, capsys):
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "torn.jsonl").write_text('{"txt": "add 1 2"}\n')
    (tmp_path / "rows.json").write_text('["add 1 2"]')
    cases = [([], "--out", str(student), "exists already; give another folder"),
             (["--text", str(tmp_path / "empty.txt")], "--out", str(tmp_path / "x"), "has no text of two tokens"),
             (["--text", str(tmp_path / "torn.jsonl")], "--out", str(tmp_path / "x"), 'torn.jsonl, line 1 has no "text"'),
             (["--text", str(tmp_path / "rows.json")], "--out", str(tmp_path / "x"), "whose lines are not texts"),
             (["--env", "c"], "--out", str(tmp_path / "x"), "--env c is no environment of this run; it has a, b"),
             (["--skip", "much", "--gate", "models"], "--out", str(tmp_path / "x"), "--skip much is no number")]
    for more, *out, said in cases:
        assert main(["robustify", str(run), "--alpha", ".4", *out, *more]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and said in lines[0], lines
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.txt", "rows.json", "torn.jsonl"]


def test_a_text_is_the_same_with_other_line_ends_and_marks_and_fits_the_model(parts, tmp_path):
    tokenizer, (plain, other) = load(parts)[1], (tmp_path / "plain.txt", tmp_path / "other.txt")
    plain.write_text("add 1 2 = 3\ngood bad good\n")
    other.write_bytes(b"\xef\xbb\xbf" + plain.read_bytes().replace(b"\n", b"\r\n"))
    assert read_texts(str(other), tokenizer) == read_texts(str(plain), tokenizer)
    assert [len(row.ids) for row in read_texts(str(plain), tokenizer, 3)] == [3, 2, 3]


def test_generic_text_is_learned_from_too(run, tmp_path):
    (tmp_path / "text.txt").write_text("add 1 2 = 3\ngood bad good\n")
    record = json.loads((made(run, tmp_path / "student", text=str(tmp_path / "text.txt"), envs=["a"])
                         / "robustified.json").read_text())
    assert record["texts"] == {"a": 12, "text": 2}


@pytest.mark.slow
def test_of_a_run_that_trained_a_lora_the_lora_is_noised_and_written(parts, tmp_path, monkeypatch):
    run = trained(parts, tmp_path / "run", model={"path": str(parts / "model"), "adapter": {"kind": "lora", "r": 4}})
    student = made(run, tmp_path / "student", alpha=0.5)
    assert not (student / "model.safetensors").exists()
    ids = torch.tensor([[6, 8, 9, 5]])
    base, deployed, found = (AutoModelForCausalLM.from_pretrained(parts / "model") for _ in range(3))
    plain = base(ids).logits
    taught = PeftModel.from_pretrained(found, str(student)).eval()(ids).logits
    teacher = PeftModel.from_pretrained(deployed, str(run / "deployed")).eval()(ids).logits
    assert not torch.allclose(taught, plain) and not torch.allclose(taught, teacher)
    monkeypatch.chdir(student)
    loaded = loaded_by_card(student).eval()(ids).logits
    torch.testing.assert_close(loaded, taught)
    record = json.loads((student / "robustified.json").read_text())
    assert list(record["teacher"]["sha256"]) == ["adapter_model.safetensors"]
    writers = json.loads((made(run, tmp_path / "writers", parts="targets") / "robustified.json").read_text())["noised"]
    assert 0 < writers["tensors"] < record["noised"]["tensors"]


@pytest.mark.slow
def test_every_gate_works_on_a_run(run, tmp_path):
    for more in ({"gate": "models", "skip": 0.01, "noise": 0.1}, {"gate": "detector", "noise": "auto", "labels": 16},
                 {"gate": "random"}):
        record = json.loads((made(run, tmp_path / more["gate"], **more) / "robustified.json").read_text())
        assert set(record["gate"]["tokens"]) == {"a", "b"} and record["gate"]["against_flags"]["completions"] == 24


def test_a_gate_that_keeps_nothing_is_refused_and_leaves_nothing(run, tmp_path):
    with pytest.raises(ConfigError, match="--gate random skips every token: all scores are above 0, so the student would learn"):
        made(run, tmp_path / "student", gate="random", skip=0.0)
    assert not list(tmp_path.iterdir())


def test_a_folder_with_files_of_its_own_is_no_teacher(run, tmp_path):
    with sealed_folder(tmp_path / "other") as folder:
        (folder / "x").write_text("x")
    with pytest.raises(CheckpointError, match="its weights are none"):
        made(run, tmp_path / "student", teacher=str(tmp_path / "other"))
