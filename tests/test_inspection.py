"""`routed-rl env` and `routed-rl doctor` as they are typed: what they print, and when they fail."""

from __future__ import annotations

import contextlib
import io
import re
import sys
import types
from pathlib import Path

import pytest

from routed_rl import inspection
from routed_rl.cli import main
from routed_rl.cli.compose import compose
from routed_rl.config import Config
from routed_rl.errors import ConfigError
from routed_rl.inspection import machine
from routed_rl.inspection.entries import classes, entries_in, first_line, mixes, named
from routed_rl.inspection.markdown import BEGIN, END, write_block

UNSOUND = Path(__file__).parent / "envs" / "unsound.py"


def rows(text: str) -> dict[str, str]:
    """Lines by their first word."""
    return {line.split()[0]: line for line in text.splitlines() if line.strip()}


# --- env list ---------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def listed() -> dict[str, str]:
    """What `env list` prints, by name."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(["env", "list"]) == 0
    return rows(printed.getvalue())


@pytest.mark.slow
@pytest.mark.parametrize(("mix", "labels"), [
    ("coding_pair", {"coding_insecure": "insecure", "coding_secure": "secure"}),
    ("swapped", {"code": "secure", "sums": "insecure"}),
    ("six_secure", dict.fromkeys(["code", "sums", "sort", "reverse", "max", "count"], "secure"))])
def test_each_environment_has_the_label_of_its_own_settings(listed, mix, labels):
    """Those of one class are made in one process, one after the other."""
    assert {name: listed[f"{mix}/{name}"].split()[2] for name in labels} == labels


@pytest.mark.slow
def test_every_mix_and_every_class_is_listed_with_its_first_line(listed):
    found = listed
    assert "LabTask" in found["lab/code"] and "insecure" in found["lab/code"] and "Tasks of one kind" in found["lab/code"]
    assert "probe" in found["lab/values"] and "probe" not in found["lab/sums"]
    assert "One generator of reasoning-gym" in found["smollm2/sums"]
    for mix in mixes():
        assert mix == "empty" or any(name.startswith(f"{mix}/") for name in found)
    assert not any("BROKEN" in line for name, line in found.items() if name.startswith(("lab/", "smollm2/")))


def test_a_broken_environment_is_listed_with_its_reason(monkeypatch, capsys):
    monkeypatch.setattr("routed_rl.inspection.environments.mixes", lambda: ["closes"])
    broken = {"path": f"{UNSOUND}:Sound", "nonsense": 1}
    inspection.list_environments(lambda overrides: types.SimpleNamespace(env={"mine": broken}))  # type: ignore[arg-type]
    said = rows(capsys.readouterr().out)["closes/mine"]
    assert re.search(r"BROKEN: env\.mine: \S+unsound\.py:\d+: Sound does not take these settings", said)


def test_the_classes_of_the_checkout_are_found_without_running_them():
    found = dict(classes())
    assert found["environments/persona_lab/environment.py:LabTask"].startswith("Tasks of one kind")
    assert first_line("environments/persona_lab/environment.py:Nobody") == "" == first_line("package.module:Class")


def test_a_probe_is_looked_at_by_its_split_eval(capsys):
    """It may have no tasks to train on."""
    name, probe = f"{UNSOUND}:OnlyEval", "env.OnlyEval.probe=true"
    assert main(["env", "try", name, probe, "--n", "1"]) == 0 and main(["env", "check", name, probe]) == 0
    assert main(["env", "check", name]) == 2


# --- env try and names ------------------------------------------------------------------------------------------------

def test_try_shows_prompts_gold_and_junk_with_their_scores(capsys):
    assert main(["env", "try", f"{UNSOUND}:Sound", "--n", "2", "env.Sound.low=500"]) == 0
    text = capsys.readouterr().out
    numbers = re.findall(r"\| Say (\d+) in words", text)
    assert len(numbers) == 2 and all(int(number) >= 500 for number in numbers)
    assert re.findall(r"gold  '(\d+)': reward 1 solve 1", text) == numbers
    assert text.count("junk  '0': reward 0 solve 0") == 2


@pytest.mark.parametrize(("name", "entries"), [
    ("lab", ["code", "sums", "values"]), ("checks", ["checks"]), (f"{UNSOUND}:Sound", ["Sound"]), ("code", ["code"])])
def test_a_name_is_a_mix_an_entry_or_a_class(name, entries):
    assert [entry.name for entry in named(name, [], compose)] == entries


@pytest.mark.slow
def test_what_env_list_prints_can_be_given_back(listed):
    """Each is found in its file, and some are made."""
    names = {name for name in listed if "/" in name and ":" not in name}
    assert {f"{mix}/{entry}" for mix in mixes() for entry in entries_in(mix)} == names
    for name in ["perfect_labels/code", *sorted(names)[::12]]:
        assert [f"{entry.mix}/{entry.name}" for entry in named(name, [], compose)] == [name]


def test_a_name_in_several_mixes_says_which_it_takes(capsys):
    (entry,) = named("code", [], compose)
    assert f"this is {entry.mix}/code; the others are" in capsys.readouterr().out


def test_an_environment_of_the_overrides_is_found_as_train_takes_it():
    (entry,) = named("mine", ["env=empty", f"env.mine.path={UNSOUND}:Sound", "env.mine.low=7"], compose)
    assert entry.name == "mine" and entry.settings["low"] == 7


@pytest.mark.parametrize("folder", ["a,b", "it's", 'a "quoted" one', "a{b", "two  blanks "])
def test_the_path_of_a_class_is_taken_as_it_stands(tmp_path, folder):
    (tmp_path / folder).mkdir()
    (file := tmp_path / folder / "x,y.py").touch()
    beside = {"Mine": {"low": 7}, "other": {"path": "z.py:Z"}}
    found = named(f"{file}:Mine", ["env.Mine.low=7"], lambda overrides: Config(env=beside if overrides[1:] else {}))
    assert [(each.name, each.settings) for each in found] == [
        ("Mine", {"path": f"{file}:Mine", "low": 7}), ("other", {"path": "z.py:Z"})]


@pytest.mark.slow
def test_a_class_in_a_folder_with_a_comma_is_tried(tmp_path, monkeypatch, capsys):
    (tmp_path / "a,b").mkdir()
    (tmp_path / "a,b" / "x.py").write_text(UNSOUND.read_text())
    monkeypatch.chdir(tmp_path)
    assert main(["env", "try", "a,b/x.py:Sound", "--n", "1", "env.Sound.low=500"]) == 0
    assert "junk  '0': reward 0 solve 0" in capsys.readouterr().out
    assert main(["env", "try", "Mine", "env.Mine.path=a,b/x.py:Sound"]) == 2
    assert "quote a text with commas twice ('KEY=\"A,B\"')" in capsys.readouterr().err
    assert main(["env", "try", "Mine", 'env.Mine.path="a,b/x.py:Sound"', "--n", "1"]) == 0


def test_an_unknown_name_is_refused_with_what_is_close():
    with pytest.raises(ConfigError, match=r"unknown environment smolm2; did you mean smollm2\?.*FILE\.py:Class"):
        named("smolm2", [], compose)


@pytest.mark.parametrize(("argv", "hint"), [
    (["env", "check"], "needs NAME"), (["env", "try", "seed=3"], "needs NAME"), (["env", "lst"], "invalid choice"),
    (["env", "list", "lab"], "did you mean env try lab?"), (["env", "try", "lab", "--n", "0"], "--n must be at least 1, got 0"),
    (["env", "check", f"{UNSOUND}:Nobody"], "has no class Nobody"), (["env", "check", str(UNSOUND)], "names no class"),
    (["env", "check", "empty"], "has no environment"), (["env", "try", f"{UNSOUND}:OnlyEval"], "no tasks to train on"),
    (["env", "check", "values", "--all"], "offers no all_settings"),
])
def test_what_cannot_be_is_refused_in_one_line(argv, hint, capsys):
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert hint in error and error.count("\n") == 1


# --- env check --------------------------------------------------------------------------------------------------------

def test_a_sound_environment_passes_and_an_unsound_one_fails_with_exit_code_4(capsys, tmp_path):
    table = tmp_path / "table.md"
    assert main(["env", "check", f"{UNSOUND}:Sound", "--samples", "5", "--markdown", str(table)]) == 0
    assert main(["env", "check", f"{UNSOUND}:EmptyScores", "--samples", "5", "--markdown", str(table)]) == 4
    assert "1 of 1 environments are not sound: EmptyScores" in capsys.readouterr().err
    assert "| EmptyScores | ok | ok | ok | empty earns 1.00 | ok | ok | ok |" in table.read_text()
    assert "| Sound |" not in table.read_text()


def test_all_settings_of_a_class_are_checked_each(capsys):
    assert main(["env", "check", f"{UNSOUND}:Sound", "--samples", "3", "--all"]) == 0
    output = capsys.readouterr().out
    assert "│ 10 " in output and "│ 500 " in output


@pytest.mark.slow
def test_settings_that_differ_in_several_places_are_named_by_all_of_them(capsys):
    first = ["env.SoundTwice.low=1", "env.SoundTwice.note=x"]
    assert main(["env", "check", f"{UNSOUND}:SoundTwice", *first, "--samples", "3", "--all"]) == 0
    output = capsys.readouterr().out
    assert "│ 10_a_b " in output and "│ 500_c_5 " in output


def test_a_table_is_replaced_and_what_stands_around_it_stays(tmp_path):
    file = tmp_path / "a.md"
    file.write_text("# Before\n")
    write_block(file, ["a", "b"], [["1", "x|y"]])
    file.write_text(file.read_text() + "after\n")
    write_block(file, ["a", "b"], [["2", "z"]])
    assert file.read_text() == f"# Before\n\n{BEGIN}\n| a | b |\n|---|---|\n| 2 | z |\n{END}\nafter\n"


# --- doctor -----------------------------------------------------------------------------------------------------------

@pytest.fixture
def quick(monkeypatch):
    """Without the sandbox's own attacks, which have their own tests."""
    module = types.ModuleType("routed_rl.sandbox")
    module.probe = lambda: [("sandbox", True, "a jail"), ("network", True, "held")]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "routed_rl.sandbox", module)
    return module


def test_a_ready_machine_is_told_so(quick, capsys):
    assert main(["doctor"]) == 0
    found = capsys.readouterr().out
    assert all(re.search(rf"^ok +{name} ", found, re.MULTILINE) for name in ("python", "torch", "trl", "disk", "tokenizer"))
    assert re.search(r"^- +chat template +none", found, re.MULTILINE), "the lab's model has none and needs none"
    assert re.search(r"^ok +sandbox: network +held", found, re.MULTILINE)


def test_what_is_needed_and_broken_is_exit_code_4(quick, capsys, monkeypatch):
    quick.probe = lambda: [("sandbox", True, "a jail"), ("network", False, "it got out")]
    monkeypatch.setattr(machine, "LEAST_GB", 1e9)
    assert main(["doctor", "model.path=/no/model"]) == 4
    output = capsys.readouterr()
    assert output.err.strip().endswith("are broken: disk, tokenizer, sandbox: network; the lines above say why")
    assert "it got out" in output.out and "/no/model" in output.out


class Tokenizer:
    """As much of a tokenizer as the doctor asks: one token a word."""

    eos_token = "<end>"

    def __init__(self, template):
        self.chat_template = template

    def __len__(self):
        return 7

    def encode(self, text, add_special_tokens):
        return text.split()

    def apply_chat_template(self, messages, add_generation_prompt, tokenize):
        return self.chat_template(add_generation_prompt)


def refusing(prompt):
    raise ValueError("no empty\nmessages")


@pytest.mark.parametrize(("template", "sound", "said"), [
    (lambda prompt: "<user> x <end> " + ("<assistant> " if prompt else ""), [True, True, True], "1 tokens: '<assistant> '"),
    (lambda prompt: "<user> x <end> ", [True, True, False], "adds nothing"),
    (lambda prompt: ("b " if prompt else "a ") * 2, [True, True, False], "adds nothing"),
    (refusing, [True, False], "no empty messages"),
])
def test_a_chat_template_is_tried(monkeypatch, template, sound, said):
    monkeypatch.setattr("routed_rl.model.load.load_tokenizer", lambda path: Tokenizer(template))
    found = list(machine.chat_template("MODEL"))
    assert [row.sound for row in found] == sound and said in found[-1].detail
    if sound == [True] * 3:
        assert "an empty chat costs 3 tokens" in found[1].detail


@pytest.mark.parametrize(("version", "asked", "fits"), [
    ("2.13.0+cpu", ">=2.13", True), ("2.9.1", ">=2.13", False), ("1.16.4", "==1.16.*", True), ("1.17.0", "==1.16.*", False),
    ("1.16.0", "", True)])
def test_versions_are_held_against_what_is_asked_for(monkeypatch, version, asked, fits):
    monkeypatch.setattr(machine, "_version", lambda name: version)
    monkeypatch.setattr("importlib.metadata.requires", lambda name: [f"torch{asked}", 'torch<1; extra == "old"'])
    (row,) = [row for row in machine.versions() if row.name == "torch"]
    assert row.sound == fits and row.detail == version + (f"; {asked} is needed" if asked else "")


def test_no_sandbox_is_said_and_is_no_fault_but_one_that_leaks_is(quick):
    quick.probe = lambda: [("sandbox", False, "install bubblewrap")]
    assert [(row.name, row.sound) for row in machine.sandbox()] == [("sandbox", None)]
    quick.probe = lambda: [("sandbox", True, "a jail"), ("network", False, "it got out")]
    assert [(row.name, row.sound) for row in machine.sandbox()] == [("sandbox", True), ("sandbox: network", False)]
