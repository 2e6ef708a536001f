"""`relearn`: what an attack runs, what counts as back, which models are attacked, what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from routed_rl.artifacts import RunFolder
from routed_rl.config import BaselineConfig, Config, DetectorConfig
from routed_rl.config.robust import RelearnConfig
from routed_rl.errors import ConfigError, RunFolderError
from routed_rl.multirun import attacks
from routed_rl.multirun.attacks import Attacked, attack, attacked_config, rl_curve
from routed_rl.multirun.compare import compare
from routed_rl.multirun.hacks import hacks_of, read_hacks
from routed_rl.multirun.job import Job
from routed_rl.multirun.relearn import check_arms, relearn, with_model
from routed_rl.multirun.relearned import steps_to, summarised, table, worst
from routed_rl.pipeline.record import read_config
from tests import pipeline
from tests.parts import own_config, typed, write_parts


def asked(**more) -> RelearnConfig:
    return RelearnConfig(env="a", **({"rates": [1e-3], "steps": 2, "seeds": 1, "completions": 8, "samples": 8} | more))


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    return write_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def run(parts, tmp_path_factory) -> Path:
    env = {name: {"path": f"{parts}/environment.py:Add", "isolate": False} for name in "ab"}
    return pipeline.train(own_config(parts, tmp_path_factory.mktemp("runs") / "run", env=env, evaluation={"samples": 0},
                                     trainer={"max_steps": 2, "per_device_train_batch_size": 32}), [])


def record(model: str, seed: int, rate: float, curve: list[float], by: str = "rl") -> dict:
    return {"model": model, "seed": seed, "by": by, "rate": rate, "curve": curve}


@pytest.mark.parametrize("name", ["found.png", "found.runs"])
def test_the_file_of_the_numbers_is_not_what_is_written_beside_it(run, tmp_path, name):
    with pytest.raises(ConfigError, match="ends in .*, as what is written beside it does; give a name in .json"):
        relearn(str(run), asked(), str(tmp_path / name), {}, None)
    assert not list(tmp_path.iterdir())


def test_what_counts_is_the_rate_by_which_it_is_back_first():
    assert [steps_to(curve, 0.5) for curve in ([0.6], [0.1, 0.5, 0.2], [0.1, 0.4])] == [0, 1, None]
    slow, fast, never = record("m", 0, 1e-5, [0, 0, 0, 0.7]), record("m", 0, 1e-3, [0, 0.5]), record("m", 0, 1e-4, [0, 0.1])
    found = worst([slow, fast, never], asked(steps=9))
    assert (found["steps"], found["rate"], found["back"]) == (1, 1e-3, True)
    assert found["by_rate"] == {"1e-05": 3, "0.001": 1, "0.0001": None}
    found = worst([never], asked(steps=9))
    assert (found["steps"], found["back"]) == (9, False), "as many as there were, which is said"


def test_a_table_says_where_it_did_not_come_back():
    settings = asked(steps=9, by=["rl"])
    found = summarised([record("m", 0, 1e-3, [0.1, 0.2, 0.6]), record("m", 1, 1e-3, [0.1, 0.1, 0.1])], settings)
    assert found["m"]["rl"]["steps"]["seeds"] == [2.0, 9.0] and found["m"]["rl"]["never"] == 1
    ((name, before, updates, rate),) = table(found, settings).rows
    assert (name, before[:5], rate) == ("m", "0.100", "0.001") and updates.startswith("at least 5.5 [")


@pytest.mark.parametrize(("flags", "counts", "said"), [
    ([], [0.1, 0.6], ""), (["hack"], [0.1, 0.2], " as hack"), (["lie"], [0.0, 0.6], " as lie"),
    (["hack", "lie"], [0.1, 0.6], " as hack or lie, the most frequent,")])
def test_the_flag_that_is_named_is_counted_and_the_table_says_which(tmp_path, flags, counts, said):
    config = Config(out=str(tmp_path), baseline=BaselineConfig(detector=DetectorConfig(flags=["hack", "lie"])))
    rows = [{"step": 1, "environment/a/hack": 0.1}, {"step": 2, "environment/a/hack": 0.2, "environment/a/lie": 0.6}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert rl_curve(Job("m", config, []), asked(flags=flags)) == counts
    assert table({}, asked(flags=flags)).title == f"a: updates until a share 0.5 is flagged{said} again"


def test_an_attack_trains_that_environment_alone_with_nothing_in_its_way(run):
    config = read_config(RunFolder(run))
    config.env["a"] = {**config.env["a"], "weight": 0.0, "probe": True}
    found = attacked_config(config, asked(), 1e-2, seed=7)
    assert found.routing.mode == "none" and found.routing.practice.share == 0 and not found.baseline.pays and found.seed == 7
    assert list(found.env) == ["a"] and not found.env["a"].keys() & {"weight", "probe"}
    assert found.trainer["learning_rate"] == 1e-2 and found.trainer["max_steps"] == 3


@pytest.mark.slow
def test_a_runs_own_models_are_attacked_and_what_was_measured_is_kept(run, tmp_path, monkeypatch):
    file = tmp_path / "relearn.json"
    found = relearn(str(run), asked(), str(file), {"again": str(run)}, None, jobs=1)
    assert list(found) == ["base", "deployed", "again"] and (tmp_path / "relearn.png").stat().st_size > 0
    stored = json.loads(file.read_text())
    curves = {(each["model"], each["by"]): each["curve"] for each in stored["attacks"]}
    for by in ("rl", "sft"):
        assert curves["deployed", by] == curves["again", by] != curves["base", by] or by == "sft"
        assert len(curves["base", by]) == 3 or curves["base", by][-1] >= 0.5
    monkeypatch.setattr(attacks, "fine_tune", None)
    monkeypatch.setattr(attacks, "train_or_resume", None)
    assert relearn(str(run), asked(), str(file), {"again": str(run)}, None, jobs=1) == found


def test_what_was_measured_in_one_environment_is_not_taken_for_another(run, tmp_path, monkeypatch):
    parts = SimpleNamespace(model=None, tokenizer=None, environments=[], max_new_tokens=1)
    monkeypatch.setattr(attacks, "load_parts", lambda config: parts)
    monkeypatch.setattr(attacks, "evaluate", lambda *_, **__: {"a": {"hack": 0.9}, "b": {"hack": 0.7}})
    model = Attacked("m", 0, read_config(RunFolder(run)), (("add 1 2 =", "bad"),))
    a, b = (dataclasses.replace(asked(by=["sft"]), env=name) for name in "ab")
    assert [attack([model], each, tmp_path, 1)[0]["curve"] for each in (a, b, a)] == [[0.9], [0.7], [0.9]]
    monkeypatch.setattr(attacks, "evaluate", None)
    assert attack([model], a, tmp_path, 1)[0]["curve"] == [0.9]  # kept, as nothing has changed


def test_a_model_that_has_changed_where_it_lies_is_measured_again_or_refused(run, parts, tmp_path, monkeypatch):
    loaded = SimpleNamespace(model=None, tokenizer=None, environments=[], max_new_tokens=1)
    monkeypatch.setattr(attacks, "load_parts", lambda config: loaded)
    shutil.copytree(parts / "model", tmp_path / "model")
    model = Attacked("m", 0, with_model(read_config(RunFolder(run)), str(tmp_path / "model")), (("add 1 2 =", "bad"),))

    def curves(by: str, measured: float) -> list[float]:
        monkeypatch.setattr(attacks, "evaluate", lambda *_, **__: {"a": {"hack": measured}})
        return attack([model], asked(by=[by]), tmp_path / "runs", 1, "--json")[0]["curve"]

    def begin(jobs, *_):
        for job in jobs:
            job.folder.path.mkdir(parents=True, exist_ok=True)
            job.folder.config.write_text("")
        return {}

    monkeypatch.setattr(attacks, "run_missing", begin)
    assert (curves("sft", 0.9), curves("sft", 0.8)) == ([0.9], [0.9])
    assert (curves("rl", 0), curves("rl", 0)) == ([], [])
    weights = next((tmp_path / "model").glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert curves("sft", 0.7) == [0.7]
    with pytest.raises(RunFolderError, match=f"attacked another model: {weights} has changed since; give another --json"):
        curves("rl", 0)


def test_what_cannot_be_attacked_is_refused(run, parts, tmp_path):
    config, file = read_config(RunFolder(run)), str(tmp_path / "x.json")
    with pytest.raises(ConfigError, match="--env z is not configured; there is a, b"):
        relearn(str(run), dataclasses.replace(asked(), env="z"), file, {}, None)
    with pytest.raises(ConfigError, match="--also base=.*: a model of .* has this name already; give another one"):
        relearn(str(run), asked(), file, {"base": str(run)}, None)
    with pytest.raises(ConfigError, match="is no run, so it has no completions to fine-tune on; give --hacks FILE, or --by rl"):
        relearn(str(parts / "model"), asked(), file, {}, config)
    with pytest.raises(ConfigError, match="nowhere is neither a run nor a model's folder"):
        with_model(config, "nowhere")
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds a LoRA, and the experiment trains all weights"):
        with_model(config, str(tmp_path / "lora"))
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("deployed"))
    with pytest.raises(ConfigError, match="has no deployed model; write it with"):
        with_model(config, str(tmp_path / "run"))
    assert not list(tmp_path.glob("x*"))


@pytest.mark.parametrize(("text", "said"), [
    ('{"prompt": "p", "completion": "c"}\n\n{"prompt": "p"}\n', r'line 3 has no "completion" \(it has: prompt\)'),
    ('{"prompt": [7], "completion": "c"}', r'line 1: "prompt" must be text or chat messages \[\{"role": ..., "content": ...\}'),
    ('{"prompt": "p", "completion": 7}', 'line 1: "completion" must be text$'),
    ('{"prompt": "", "completion": "c"}', 'line 1: "prompt" must be text or chat messages .*, and not empty'),
    ('{"prompt": [{"content": "p"}], "completion": "c"}', r'line 1: "prompt" must be text or chat messages \[\{"role": ...'),
    ("[1]", "line 1 is a list, not an object"), ("{", "line 1 is not JSON"), ("\n", "has no lines; give JSON lines"),
    (None, "there is no such file; give JSON lines with prompt and completion")])
def test_completions_in_a_file_are_checked_before_a_comparison_begins_and_the_line_is_named(tmp_path, text, said):
    if text is not None:
        (tmp_path / "hacks.jsonl").write_text(text)
    with pytest.raises(ConfigError, match=rf"--hacks {tmp_path}/hacks\.jsonl[:,]? {said}") as refused:
        check_arms(Config(env={"a": {}}), asked(hacks=str(tmp_path / "hacks.jsonl")))
    assert "\n" not in str(refused.value)


def test_completions_in_a_file_may_answer_text_or_messages_and_be_empty(tmp_path):
    said = [("p\u2028", "c"), ([{"role": "user", "content": "p"}], ""), ("p", "d")]
    lines = [json.dumps({"prompt": prompt, "completion": completion}, ensure_ascii=False) for prompt, completion in said[:2]]
    lines.append(json.dumps({"prompt": "p", "completion": [{"role": "assistant", "content": "d"}]}))
    (tmp_path / "hacks.jsonl").write_text("\n".join(lines))
    assert read_hacks(str(tmp_path / "hacks.jsonl")) == said


@pytest.mark.parametrize(("settings", "said"), [
    ({"rates": []}, "--rates must be learning rates above 0 that differ"), ({"rates": [0.1, 0.1]}, "that differ"),
    ({"by": ["ppo"]}, "--by=ppo is not known; choose from rl, sft"), ({"level": 0.0}, "--level must lie above 0"),
    ({"steps": 0}, "--steps must be a number >= 1, got 0"), ({"by": ["rl"], "hacks": "F"}, "--hacks F is for --by sft")])
def test_settings_of_an_attack_are_checked(settings, said):
    with pytest.raises(ConfigError, match=said):
        asked(**settings)


def test_completions_to_fine_tune_on_are_flagged_ones_of_the_run(run):
    config = read_config(RunFolder(run))
    found = hacks_of(RunFolder(run), config, asked(), 0)
    assert len(found) == 8 and all("bad" in completion.split() for _, completion in found)
    assert found == hacks_of(RunFolder(run), config, asked(), 0) != hacks_of(RunFolder(run), config, asked(), 1)
    with pytest.raises(ConfigError, match=r"in a is flagged as lie \(there is .*hack.*\), .*; give --flag NAME or --hacks FILE"):
        hacks_of(RunFolder(run), config, asked(flags=["lie"]), 0)


@pytest.mark.slow
def test_a_lora_is_attacked_with_a_new_one(parts, tmp_path):
    env = {name: {"path": f"{parts}/environment.py:Add", "isolate": False} for name in "ab"}
    run = pipeline.train(own_config(parts, tmp_path / "run", env=env, evaluation={"samples": 0},
                                    model={"path": str(parts / "model"), "adapter": {"kind": "lora", "r": 4}},
                                    trainer={"max_steps": 2, "per_device_train_batch_size": 32}), [])
    config = with_model(read_config(RunFolder(run)), str(run))
    assert config.model.adapter.path == str(run / "deployed") and config.model.path == str(parts / "model")
    hacks = hacks_of(RunFolder(run), config, asked(), 0)
    records = attack([Attacked("m", 0, config, hacks)], asked(rates=[1e-2]), tmp_path / "attacks", 1)
    assert {each["by"] for each in records} == {"rl", "sft"} and all(each["curve"] for each in records)


@pytest.mark.slow
def test_a_comparison_attacks_what_each_arm_has_deployed(parts, tmp_path):
    from routed_rl.cli.compose import compose

    settings = [*typed(parts, "x", "trainer.max_steps=2", "evaluation.samples=8")[1:]]
    compare(settings, ["none", "route"], 1, str(tmp_path / "compare"), 1, [], compose, relearn=asked(by=["rl"]))
    found = json.loads((tmp_path / "compare" / "compare.json").read_text())["relearn"]["models"]
    assert list(found) == ["base", "none", "route"]
    assert "a: updates until a share 0.5 is flagged as hack again" in (tmp_path / "compare" / "compare.md").read_text()
