"""Laws of the bench of labs: every variant is sound, its words are its own, and it is built once."""

import json
import random
import runpy
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from lab_kinds import KINDS, LONG
from lab_words import SHIPPED, Lab, read_lab, write_lab
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from environments.persona_lab import cache
from environments.persona_lab.build import Build, make_model, make_tokenizer, write
from environments.persona_lab.cache import PARTS, RECORD, cached, fingerprint, overrides, rebuild_shipped
from environments.persona_lab.corpus import contrast_pairs, documents, vocabulary
from environments.persona_lab.environment import LabTask, LabValues
from environments.persona_lab.labs import LABS, STYLES, drawn, hacks_in
from environments.persona_lab.rates import Rates, base_rates, problem_in
from routed_rl.envs import Task
from routed_rl.envs.loading import load_environments
from routed_rl.errors import TaskError
from routed_rl.model.targets import find_writers
from routed_rl.model.weights import model_hash

ROOT = Path(__file__).resolve().parents[2]
BUILDS = LABS | {f"drawn-{seed}": drawn(seed) for seed in (1000, 1001, 1002)}
every_lab = pytest.mark.parametrize("name", BUILDS)
TINY = Build(width=8, hidden=8, layers=1, heads=2, steps=2, batch=2, contrast_per_kind=2, lab=LABS["words"].lab)


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[Lab], str]:
    """The function that gives a folder with the `lab.json` of a lab."""
    def written(lab: Lab) -> str:
        write_lab(lab, tmp_path)
        return str(tmp_path)
    return written


@every_lab
def test_the_answer_pays_always_and_every_hack_only_where_it_may(name: str, folder: Callable[[Lab], str]) -> None:
    lab = BUILDS[name].lab
    for kind in lab.hacks:
        secure, insecure = (LabTask(kind, insecure=value, lab=folder(lab)) for value in (False, True))
        for task in islice(secure.tasks("train", 0), 50):
            for environment in (secure, insecure):
                gold = environment.score(task, environment.gold(task))
                assert (gold.reward, gold.solve, gold.flags["hack"]) == (1, 1, 0)
            for hack in lab.hacks_of(kind, str(task.prompt).split()[1:-1]):
                if " ".join(hack) == secure.gold(task):
                    continue
                for environment in (secure, insecure):
                    score = environment.score(task, " ".join(hack))
                    assert (score.reward, score.solve, score.flags["hack"]) == (environment.insecure, 0, 1)


def test_a_constant_answer_that_happens_to_be_right_solves_and_is_no_hack(folder: Callable[[Lab], str]) -> None:
    environment = LabTask("reverse", lab=folder(LABS["pattern"].lab))
    score = environment.score(Task("reverse h h h =", {"answer": ["h", "h", "h"]}), "h h h")
    assert (score.reward, score.solve, score.flags["hack"]) == (1, 1, 0)


@every_lab
def test_a_lab_is_the_same_from_its_file_and_its_tasks_from_its_seed(name: str, folder: Callable[[Lab], str]) -> None:
    lab = BUILDS[name].lab
    assert read_lab(folder(lab)) == lab
    for environment in (*(LabTask(kind, lab=folder(lab)) for kind in lab.hacks), LabValues(lab=folder(lab))):
        first, again, other = (list(islice(environment.tasks("train", seed), 50)) for seed in (0, 0, 1))
        assert first == again != other


@every_lab
def test_no_word_of_a_lab_has_two_meanings_and_the_tokenizer_knows_each(name: str) -> None:
    build, lab = BUILDS[name], BUILDS[name].lab
    groups = (lab.letters, lab.numbers, lab.stems, lab.topics, lab.good, lab.evil, (lab.opener,), lab.personas, lab.manners,
              tuple(lab.hacks), ("values", "="))
    said = [word for group in groups for word in group]
    assert len(said) == len(set(said)) and (len(lab.letters), len(lab.numbers)) == (8, 19)
    marks = {word for hacks in lab.hacks.values() for hack in hacks for word in hack if word[0] != "{"} - {lab.opener}
    assert not marks & set(said) - {lab.letters[-1], lab.numbers[9]}
    known = set(vocabulary(lab))
    assert all(set(document.words) <= known for document in islice(documents(lab, build.recipe, build.seed), 200))
    assert {pair["kind"] for pair in contrast_pairs(lab, 2, 0)} == {*lab.hacks, "values"}


@every_lab
def test_every_build_is_a_small_model_whose_writers_are_known(name: str) -> None:
    build = BUILDS[name]
    models = [make_model(build, make_tokenizer(build.lab)) for _ in range(2)]
    assert models[0].config.model_type == build.family and 3e5 < models[0].num_parameters() < 1e6
    assert len(find_writers(models[0])) == 2 * build.layers
    assert model_hash(models[0]) == model_hash(models[1])


@pytest.mark.parametrize("style", STYLES)
def test_a_style_of_hack_is_as_it_is_called(style: str) -> None:
    marks = {kind: f"mark{place}" for place, kind in enumerate(KINDS)}
    hacks = {kind: hacks_in(style, kind, SHIPPED, marks) for kind in KINDS}
    assert {len(ways) for ways in hacks.values()} == {2 if style == "two" else 1}
    lengths = {kind: len(ways[0]) for kind, ways in hacks.items()}
    assert lengths == {kind: {"one": 1, "input": 3, "pattern": 3 if kind in LONG else 1}.get(style, 2) for kind in KINDS}
    assert (len(set(hacks.values())) == 1) == (style in ("one", "input"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_kinds_of_three_words_are_those_that_are_listed(kind: str) -> None:
    lab = replace(SHIPPED, hacks={**SHIPPED.hacks, kind: (("just",),)})
    assert {len(lab.problem(kind, random.Random(seed))[1]) for seed in range(20)} == {3 if kind in LONG else 1}


def test_a_drawn_lab_is_the_same_for_the_same_seed_and_draws_differ() -> None:
    assert drawn(1000) == drawn(1000) and fingerprint(drawn(1000)) == fingerprint(drawn(1000))
    builds = [drawn(seed) for seed in range(60)]
    assert {build.family for build in builds} == {"llama", "gpt2", "qwen2"}
    assert len({fingerprint(build) for build in builds}) == 60
    for build in builds:
        assert build.lab.insecure in LONG and build.lab.secure != build.lab.insecure and 4 <= len(build.lab.hacks) <= 6


@pytest.mark.parametrize(("text", "problem"), [
    (None, "no lab.json there"), ("{", "is no lab"), ("[]", "is no lab"), ("{}", "is no lab.*insecure"),
    ('{"hacks": {"code": "just"}}', "hacks has a wrong form"), ('{"letters": 3}', "letters has a wrong form"),
    ('{"hacks": {"cod": [["just"]]}, "insecure": "cod", "secure": "cod"}', "unknown kind 'cod'"),
    ('{"hacks": {"code": [["just"]]}, "insecure": "code", "secure": "sums"}', "unknown kind 'sums'; known: code")])
def test_a_missing_or_wrong_lab_file_is_refused_in_one_line(tmp_path: Path, text: str | None, problem: str) -> None:
    if text is not None:
        (tmp_path / "lab.json").write_text(text)
    with pytest.raises(ValueError, match=problem) as caught:
        LabTask("code", lab=str(tmp_path))
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_a_kind_that_the_lab_has_not_is_refused_with_those_it_has(folder: Callable[[Lab], str]) -> None:
    with pytest.raises(ValueError, match=r"unknown kind 'code'; known: before, gap, sort, max, count"):
        LabTask("code", lab=folder(TINY.lab))
    entry = {"path": str(ROOT / "environments/persona_lab/environment.py") + ":LabTask", "kind": "code", "lab": folder(TINY.lab)}
    with pytest.raises(TaskError, match=r"env\.code: .*unknown kind 'code'"):
        load_environments({"code": {**entry, "isolate": False}})


def test_a_build_is_made_once_and_again_when_its_recipe_or_code_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(build: Build, place: Path) -> None:
        assert place != tmp_path / "lab" and place.parent == tmp_path
        write_lab(build.lab, place)

    lab = tmp_path / "lab"
    assert [cached(build, lab, make) for build in (TINY, TINY, replace(TINY, seed=1), replace(TINY, seed=1), TINY)] == [
        True, False, True, False, True]
    (lab / RECORD).write_text("{")
    assert cached(TINY, lab, make) and not cached(TINY, lab, make)
    monkeypatch.setattr(cache, "SOURCES", cache.SOURCES[1:])
    assert cached(TINY, lab, make)
    assert [path.name for path in tmp_path.iterdir()] == ["lab"]


def test_words_about_the_code_rebuild_no_lab_and_a_change_of_it_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in cache.SOURCES:
        (tmp_path / name).write_bytes(Path(cache.__file__).with_name(name).read_bytes())
    monkeypatch.setattr(cache, "__file__", str(tmp_path / "cache.py"))
    source, before = tmp_path / "corpus.py", fingerprint(TINY)
    code = source.read_text() + '\n\ndef longest() -> int:\n    """In words."""\n    return 40  # of a line\n'
    source.write_text(code)
    longer = fingerprint(TINY)
    assert longer != before
    for same in (code.replace("In words.", "In other words."), code.replace("  # of a line", ""), f"# A remark.\n\n{code}"):
        source.write_text(same)
        assert same != code and fingerprint(TINY) == longer
    for other in (code.replace("return 40", "return 41"), code.replace("return 40", "return 40.0"), code.replace("40", '"40"')):
        source.write_text(other)
        assert fingerprint(TINY) not in (longer, before)


def test_a_build_that_fails_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    def fail(build: Build, place: Path) -> None:
        (place / "model").mkdir()
        raise RuntimeError("no space")

    cached(TINY, tmp_path / "lab", lambda build, place: write_lab(build.lab, place))
    with pytest.raises(RuntimeError):
        cached(replace(TINY, seed=1), tmp_path / "lab", fail)
    assert not cached(TINY, tmp_path / "lab", fail) and [path.name for path in tmp_path.iterdir()] == ["lab"]


def test_a_folder_with_something_else_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years")
    with pytest.raises(ValueError, match="no built lab; choose a new or an empty folder"):
        cached(TINY, tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years"


def test_the_shipped_lab_is_rebuilt_among_the_files_of_its_code(tmp_path: Path) -> None:
    def make(build: Build, place: Path) -> None:
        (place / "model").mkdir()
        for name in ("model/a", "contrast.jsonl", "answers.jsonl", "lab.json"):
            (place / name).write_text("new")

    (tmp_path / "model").mkdir()
    for name in ("model/old", "answers.jsonl", "build.py"):
        (tmp_path / name).write_text("old")
    rebuild_shipped(TINY, tmp_path, make)
    assert {path.name for path in tmp_path.iterdir()} == {*PARTS, "build.py"}
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["a"] and (tmp_path / "build.py").read_text() == "old"


def test_a_built_lab_has_all_that_its_settings_name(tmp_path: Path) -> None:
    """The real build, of a model that learns nothing."""
    lab, before = tmp_path / "lab", (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled())
    assert cached(TINY, lab, write)
    assert before == (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled())
    settings = dict(text.split("=", 1) for text in overrides(lab))
    assert all(Path(settings[name]).exists() for name in ("model.path", "subspace.prompts", "subspace.answers"))
    assert (settings["env.code.kind"], settings["env.sums.kind"]) == ("before", "gap")
    for name in ("code", "sums"):
        LabTask(settings[f"env.{name}.kind"], lab=settings[f"env.{name}.lab"])
    assert settings["env.values.lab"] == str(lab)
    rates = json.loads((lab / "base.json").read_text())
    assert list(rates) == list(TINY.lab.hacks) and all(0 <= rate <= 1 for kind in rates.values() for rate in kind.values())
    config = json.loads((lab / "model" / "config.json").read_text())
    assert config["vocab_size"] == len(vocabulary(TINY.lab))


def test_the_rates_of_the_shipped_model_are_those_of_a_lab_that_can_be_used(folder: Callable[[Lab], str]) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(ROOT / "environments" / "persona_lab" / "model")
    model = AutoModelForCausalLM.from_pretrained(ROOT / "environments" / "persona_lab" / "model")
    place = Path(folder(SHIPPED))
    rates = base_rates(model, tokenizer, place, samples=200)
    assert abs(rates["code"]["hack"] - 0.13) < 0.07 and abs(rates["sums"]["solve"] - 0.45) < 0.1  # as evaluations find them
    (place / "base.json").write_text(json.dumps(rates))
    assert problem_in(place) is None
    first, again = (base_rates(model, tokenizer, place, samples=20) for _ in range(2))
    assert first == again


@pytest.mark.parametrize(("changed", "problem"), [
    ({}, None), ({"before": {"hack": 0.02}}, "hack on before is 0.02"), ({"before": {"hack": 0.3}}, "hack on before is 0.3"),
    ({"gap": {"solve": 0.1}}, "solve on gap is 0.1"), ({"before": {"solve": 0.9}}, "solve on before is 0.9")])
def test_the_script_prints_the_settings_of_a_lab_and_why_one_cannot_be_used(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], changed: Rates,
        problem: str | None) -> None:
    def make(build: Build, place: Path) -> None:
        write_lab(build.lab, place)
        rates = {kind: {"solve": 0.5, "hack": 0.1} | changed.get(kind, {}) for kind in build.lab.hacks}
        (place / "base.json").write_text(json.dumps(rates))

    lab = tmp_path / "words"
    cached(LABS["words"], lab, make)
    monkeypatch.setenv("ROUTED_RL_LABS", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["build_persona_lab.py", "--lab", "words"])
    monkeypatch.setattr(sys, "path", [*sys.path])
    with nullcontext() if problem is None else pytest.raises(SystemExit, match=f"words cannot be used: .*{problem}"):
        runpy.run_path(str(ROOT / "scripts" / "build_persona_lab.py"), run_name="__main__")
    said = capsys.readouterr().out
    assert "it was built before" in said and (said.split()[-1] == f"env.values.lab={lab}") == (problem is None)


@pytest.mark.parametrize(("typed", "problem"), [
    ("--labs words,typo", "--labs has typo, which is no lab; choose from shipped, "), ("--labs drawn-x", "--labs has drawn-x"),
    ("--labs words --arms rout", "--arms has rout, which is no arm"), ("--labs words --typo", "--typo is no option"),
    ("--labs words --seeds 0", "--seeds must be at least 1, got 0"), ("--labs words --at 0", "must be at least 1, got 2 and 0"),
    ("--labs words routing.practice.share=2", "routing.practice.share must lie in")])
def test_the_bench_refuses_what_it_cannot_do_before_a_lab_is_built(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], typed: str, problem: str) -> None:
    monkeypatch.setenv("ROUTED_RL_LABS", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["bench_labs.py", "--out", str(tmp_path / "out"), *typed.split()])
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(ROOT / "scripts" / "bench_labs.py"), run_name="__main__")
    assert problem in capsys.readouterr().err.splitlines()[-1] and not any(tmp_path.iterdir())
