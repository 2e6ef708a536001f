"""Selective discard: which shares are refused, which one `auto` takes, and who is told of it."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from routed_rl.artifacts import RunFolder, broken_seal, sealed_folder
from routed_rl.cli import main
from routed_rl.config import from_mapping
from routed_rl.errors import ConfigError
from routed_rl.multirun.trials import check_objective
from routed_rl.pipeline import keeping
from routed_rl.pipeline.kept import Kept, check, decide, refuse, write_deployed
from routed_rl.report.answer import sentences
from routed_rl.report.data import read_run
from routed_rl.rollout import PolicyWeights, Served
from tests import pipeline
from tests.builders import Run, tiny
from tests.cards import loaded_by_card
from tests.parts import own_config, write_parts
from tests.rollout.engines import CopyEngine

QUICK = {"max_steps": 2, "save_steps": 1, "per_device_train_batch_size": 16}
LARGE = {"quarantine": {"max_shift": 20.0, "learning_rate": 10.0}}
IN_PROCESS = {"isolate": False}


# --- the rule -----------------------------------------------------------------------------------------------------------

def paid(*means: float, spread: float = 0.0, tasks: int = 100) -> keeping.Paid:
    """By share, in eighths: rewards of that mean; `spread`: how far each is from it, up or down, differently for each share."""
    return {share / 8: [mean + spread * (-1) ** (task // (share + 1)) for task in range(tasks)]
            for share, mean in enumerate(means)}


@pytest.mark.parametrize(("rewards", "share"), [
    (paid(0.5, 0.6, 0.7, 0.6), 2 / 8), (paid(0.7, 0.7, 0.7), 0.0), (paid(0.7, 0.6, 0.5), 0.0),
    (paid(0.5, 0.69, 0.7, spread=0.3), 1 / 8), (paid(0.5, 0.69, 0.7, spread=0.001), 2 / 8),
    (paid(0.695, 0.69, 0.7, spread=0.3), 0.0)])
def test_the_smallest_share_that_pays_as_much_as_the_best_is_taken(rewards, share):
    assert keeping.best_share(rewards) == share


def test_shares_are_compared_by_task():
    """Tasks differ far more than shares do: without pairs a tenth would be within the error."""
    worth = [float(task % 2 * 10) for task in range(100)]
    assert keeping.best_share({0.0: worth, 0.5: [each + 0.1 for each in worth]}) == 0.5


def test_no_share_is_taken_that_pays_less_than_nothing_kept():
    """Each could be as good as the best one; what is kept shall not cost."""
    unsure = {0.0: [0.5] * 100, 0.25: [0.48 + 3 * (-1) ** task for task in range(100)], 0.5: [0.52] * 100}
    assert keeping.best_share(unsure) == 0.5


def test_what_could_not_be_scored_is_in_no_pair_and_no_mean():
    rewards = {0.0: [0.0, None, 1.0, 1.0], 0.5: [None, 9.0, 1.0, 1.0]}
    assert keeping.best_share(rewards) == 0.0
    assert keeping.average_paid(rewards[0.0]) == pytest.approx(2 / 3)
    assert keeping.best_share({0.0: [1.0, None], 0.5: [None, 2.0]}) == 0.5, "without a pair nothing is known of the difference"


# --- what is refused ----------------------------------------------------------------------------------------------------

@pytest.fixture
def told(tmp_path) -> RunFolder:
    """What `decide` reads: step 2 is the last with a checkpoint; `a` turned to the positive persona after it."""
    run = RunFolder(tmp_path / "run")
    with sealed_folder(run.checkpoint(2)) as folder:
        (folder / "config.json").write_text("{}")
    rows = [{"step": step, "ledger/a/shift/evil": shift, "ledger/b/shift/evil": 0.25, "ledger/a/shift/lazy": 0.125,
             "ledger/gone/push": 1.0} for step, shift in ((1, 0.5), (2, -0.5), (3, 0.75))]
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in [*rows[:2], {"step": 2, "train/loss": 1.0}, rows[2]]))
    return run


def decided(run: RunFolder, axis: str | None = None, **asked):
    config = from_mapping({"monitor": {"axis": axis}})
    return decide(run, config, run.checkpoint(2), asked)


def test_a_part_is_judged_by_the_last_row_up_to_the_checkpoint_along_the_watched_axis(told):
    kept = decided(told, a=0.5, b=0.5)
    assert (kept["a"].share, kept["a"].shift, kept["a"].against) == (0.5, -0.5, "")
    with pytest.raises(ConfigError, match=r"--keep b=0\.5: at step 2 its part moves .*as a whole by 0\.250 of .*--force"):
        refuse(kept)
    with pytest.raises(ConfigError, match=r"--keep a=0\.5: at step 2 .* 0\.125"):
        refuse(decided(told, "lazy", a=0.5))
    refuse(decided(told, b=0.0))


def test_auto_keeps_nothing_of_what_moves_towards_the_persona_and_refuses_nothing(told):
    kept = decided(told, a="auto", b="auto")
    assert kept["a"].share is None and kept["b"].share == 0.0 and "positive persona" in kept["b"].against
    refuse(kept)


def test_where_nothing_says_how_a_part_moves_it_is_not_kept(told):
    told.metrics.write_text('{"step": 2, "train/loss": 1.0}\n{"step": 3, "ledger/a/shift/evil": -1.0}\n')
    with pytest.raises(ConfigError, match=r"--keep a=0\.5: metrics\.jsonl has no ledger/a/shift/AXIS up to step 2.*--force"):
        refuse(decided(told, a=0.5))
    assert decided(told, a="auto")["a"].share == 0.0


@pytest.mark.parametrize(("file", "content", "says"), [
    ("HALTED.json", {"environment": "a", "step": 9}, "the monitor halted for it at step 9"),
    ("halts/step-4.json", {"environment": "a", "step": 4}, "the monitor halted for it at step 4"),
    ("summary.json", {"attribution": {"a": {"shift": 0.1}, "b": {"shift": 0.0}}}, "summary.json names it as the cause"),
    ("HALTED.json", {"environment": None, "step": 9}, ""), ("summary.json", {"attribution": {"a": {"shift": -0.1}}}, ""),
    ("summary.json", {"attribution": {"a": {"shift": 0.1}, "b": {"shift": 0.2}}}, ""), ("halts/step-4.json", [], "")])
def test_auto_keeps_nothing_of_an_environment_that_the_run_found_to_be_the_cause(told, file, content, says):
    (told.path / "halts").mkdir()
    (told.path / file).write_text(json.dumps(content))
    kept = decided(told, a="auto")["a"]
    assert (kept.share, says in kept.against, bool(kept.against)) == (0.0 if says else None, True, bool(says))
    assert decided(told, a=0.5)["a"].against == "", "a share that was given is for whoever gives it"


@pytest.mark.parametrize(("pulled", "share"), [(9.0, 0.0), (3.0, 0.0), (0.1, None)])
def test_auto_goes_by_the_evidence_of_a_run_that_has_not_ended_too(told, pulled, share):
    rows = [json.loads(line) | {"completions/a/evidence": pulled, "completions/b/evidence": 0.0}
            for line in told.metrics.read_text().splitlines()]
    told.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert not told.summary.exists() and decided(told, a="auto")["a"].share == share


@pytest.mark.parametrize(("name", "mode", "says"), [
    ("typo", "route", "typo is no environment of this run; there is a, b"),
    ("p", "route", "only evaluated .a probe, or weight 0., so it has no part"),
    ("zero", "route", "so it has no part; there is a, b"), ("never", "route", "so it has no part; there is a, b"),
    ("old", "route", "no longer trained, so its part is kept out"), ("gone", "route", "and its part was forgotten"),
    ("a", "none", "routing.mode=none has no quarantine; leave --keep out"), ("a", "erase", "leaves the quarantine empty"),
    ("a", "observe", "parts that do not sum to the quarantine")])
def test_what_has_no_part_cannot_be_kept(told, name, mode, says):
    told.manifest.write_text('{"inherited": ["old"]}')
    config = from_mapping({"env": {"a": {"path": "x"}, "b": {"path": "x", "weight": [[0, 0], [9, 1]]},
                                   "p": {"path": "x", "probe": True}, "zero": {"path": "x", "weight": 0},
                                   "never": {"path": "x", "weight": [[0, 0.0], [5, 0.0]]}}, "routing": {"mode": mode}})
    with pytest.raises(ConfigError, match=f"--keep {name}: .*{says}"):
        check(config, {name: 0.5}, "--keep ", told)
    check(config, {}, "--keep ", told)


@pytest.mark.parametrize(("keep", "says"), [
    (["a=2"], "--keep a=2 is no share"), (["a=-.1"], "--keep a=-.1 is no share"), (["a=nan"], "--keep a=nan is no share"),
    (["a=half"], "--keep a=half is no share of a part; give a number from 0 to 1, or auto"), (["a="], "--keep a= is no share"),
    (["a"], "--keep a is no share of a part; write --keep NAME=SHARE"), (["=.5"], "--keep =.5 is no share"),
    (["a=.5", "a=.6"], "--keep a=.6 gives a a second time"), ([], "expected at least one argument")])
def test_a_share_that_is_none_is_refused_in_one_line(told, capsys, keep, says):
    told.config.write_text("")
    assert main(["discard", str(told.path), "--out", str(told.path / "out"), "--keep", *keep]) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1 and not (told.path / "out").exists()


def test_a_share_in_the_settings_is_checked_before_any_work(tmp_path):
    with pytest.raises(ConfigError, match=r"keep\.a=2 is no share of a part"):
        from_mapping({"keep": {"a": 2}})
    with pytest.raises(ConfigError, match=r"keep\.a=True is no share of a part"):
        from_mapping({"keep": {"a": True}})
    config = from_mapping({"keep": {"z": "auto"}, "out": str(tmp_path / "run"), "env": {"a": {"path": "nowhere.py:X"}}})
    with pytest.raises(ConfigError, match=r"keep\.z: z is no environment of this run; there is a"):
        pipeline.train(config, [])
    assert not (tmp_path / "run").exists()
    for config, known in ((from_mapping({"env": {"a": {}}, "keep": {"a": 1}}), True), (from_mapping({"env": {"a": {}}}), False)):
        with nullcontext() if known else pytest.raises(ConfigError, match="kept is none of base, policy, deployed"):
            check_objective("models.kept.a.solve", config)


# --- whole runs ---------------------------------------------------------------------------------------------------------

def shift(run: Path, **shifts: float) -> None:
    """Let the run's ledger say that parts moved so."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row |= {key: shifts[key.split("/")[1]] for key in row if "/shift/" in key}
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    parts = write_parts(tmp_path_factory.mktemp("parts"))
    settings = parts / "model" / "generation_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"do_sample": True, "temperature": 0.7, "top_k": 9}))
    return parts


@pytest.fixture(scope="module", autouse=True)
def few_tasks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keeping, "SAMPLES", 96)
        yield


def configured(parts: Path, out: Path, **changes):
    config = own_config(parts, out, trainer=QUICK, evaluation={"samples": 48}, routing=LARGE,
                        monitor={"axis": "component_2"}, **changes)
    for settings in config.env.values():
        settings |= IN_PROCESS
    return config


@pytest.fixture(scope="module")
def run(parts, tmp_path_factory):
    """A run that was to keep a share of both parts; what its ledger says then is made up: `a` is the leaky one."""
    run = pipeline.train(configured(parts, tmp_path_factory.mktemp("runs") / "run", keep={"a": 0.5, "b": 1}), [])
    ended = json.loads((run / "summary.json").read_text())
    shift(run, a=0.5, b=-0.5)
    return run, ended


@pytest.fixture
def copy(run, tmp_path) -> Path:
    (tmp_path / "copies").mkdir()
    copy = shutil.copytree(run[0], tmp_path / "copies" / "run")
    (copy / "summary.json").unlink()
    return copy


def test_a_run_ends_with_what_its_settings_keep_and_says_so(run):
    folder, ended = run
    moved = {name: entry["shifts"]["component_2"] for name, entry in ended["attribution"].items()}
    expected = {name: 0.0 if moved[name] > 0 else share for name, share in (("a", 0.5), ("b", 1.0))}
    assert any(expected.values()) and ended["models"]["kept"] != ended["models"]["deployed"]
    assert ended["kept"] == expected and set(ended["models"]["kept"]) == {"a", "b", "p"}
    told = json.loads((folder / "deployed" / "kept.json").read_text())["parts"]
    assert {name: part["share"] for name, part in told.items()} == expected
    assert {name: part["shift"] for name, part in told.items()} == moved
    assert json.loads((folder / "manifest.json").read_text())["kept"] == [{"out": str(folder / "deployed"), "shares": expected}]
    assert set(read_run(RunFolder(folder)).models) == {"base", "policy", "deployed", "kept"}


def test_each_folder_that_leaves_a_run_has_a_card_a_seal_and_the_generation_settings(run, copy, parts, monkeypatch):
    """The card of the end of the run and that of a later command tell the same figures."""
    folder, ended = run
    shutil.copy(folder / "summary.json", copy / "summary.json")
    out = copy.parent
    pipeline.export(str(copy), str(out / "rest"), None, str(out / "policy"), kept=str(copy / "deployed"))
    pipeline.export(str(copy), str(out / "part"), "b", None)
    for place in (copy / "deployed", out / "rest", out / "policy", out / "part"):
        name, text, hack = place.name, (place / "README.md").read_text(), ended["models"]["policy"]["a"]["hack"]
        assert f" {hack:.3f} |" in text and "| 48 |" in text and broken_seal(place) is None, name
        assert str(out) not in text and str(folder.parent) not in text and str(parts) not in text
        monkeypatch.chdir(place)
        assert loaded_by_card(place).num_parameters() > 0
        if name in ("deployed", "policy"):
            settings = json.loads((place / "generation_config.json").read_text())
            assert settings["temperature"] == 0.7 and settings["top_k"] == 9
    said = {name: share for name, share in ended["kept"].items() if share}
    words = " and ".join(f"{share:g} of the part of {name}" for name, share in said.items())
    assert f"The quarantine was discarded, except for {words}." in (copy / "deployed" / "README.md").read_text()
    assert "does not keep" in (out / "rest" / "README.md").read_text()
    assert "that b caused, alone" in (out / "part" / "README.md").read_text()


def test_a_folder_that_is_written_anew_without_parts_is_no_longer_told_of(copy):
    run, part = RunFolder(copy), Kept(0.5, 0.5, -0.5)
    for out, kept, told in (("one", {"b": part}, ["one"]), ("two", {"b": part}, ["one", "two"]), ("one", {}, ["two"])):
        shutil.rmtree(copy / out, ignore_errors=True)
        write_deployed(run, copy / out, None, kept)
        assert (copy / out / "kept.json").exists() == bool(kept)
        assert [Path(each["out"]).name for each in run.facts()["kept"] if each["out"].startswith(str(copy))] == told


def test_auto_writes_what_it_chose_from_and_the_report_tells_of_it(copy, capsys):
    assert main(["discard", str(copy), "--out", str(copy / "out"), "--keep", "b=auto", "--keep", "a=auto"]) == 0
    said, told = capsys.readouterr().out, json.loads((copy / "out" / "kept.json").read_text())
    (a, b), step = (told["parts"][name] for name in "ab"), told["step"]
    assert (a["share"], a["paid"], a["shift"]) == (0.0, {}, 0.5) and "keep a=0: at step 2 its part moves" in said
    assert [float(share) for share in b["paid"]] == list(keeping.SHARES) and len(set(b["paid"].values())) > 1
    assert b["share"] in keeping.SHARES and b["paid"][f"{b['share']:g}"] >= b["paid"]["0"] and step == 2
    assert "the mean reward of 96 tasks" in said and f"keep b={b['share']:g}" in said
    AutoModelForCausalLM.from_pretrained(copy / "out")
    shares = json.loads((copy / "manifest.json").read_text())["kept"][-1]
    assert shares == {"out": str(copy / "out"), "shares": {"a": 0.0, "b": b["share"]}}


def test_a_folder_that_is_taken_is_refused_before_a_share_is_looked_for(copy, capsys):
    assert main(["discard", str(copy), "--out", str(copy / "checkpoints"), "--keep", "b=auto"]) == 2
    assert "already holds something else" in (said := capsys.readouterr()).err and "keep b" not in said.out


def test_the_story_says_what_was_kept_where(copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["kept"] = [{"out": "/x", "shares": {"a": 0.0, "b": 0.5}}, {"out": "/y", "shares": {"a": 0.0}},
                        {"shares": {"b": 1.0}}]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert "The model in /x keeps 0.5 of the part of b." in " ".join(sentences(read_run(RunFolder(copy))))


def test_a_leaky_part_is_kept_by_force_alone(copy, capsys):
    typed = ["discard", str(copy), "--out", str(copy / "out"), "--keep", "a=.5", "b=.5"]
    assert main(typed) == 2 and "--keep a=0.5: at step 2" in capsys.readouterr().err and not (copy / "out").exists()
    assert main([*typed, "--force"]) == 0
    assert "keep a=0.5, although at step 2 its part moves" in capsys.readouterr().out
    assert json.loads((copy / "out" / "kept.json").read_text())["parts"]["a"]["share"] == 0.5
    assert main(["discard", str(copy), "--out", str(copy / "out"), "--force"]) == 2
    assert "--force keeps a part" in capsys.readouterr().err


@pytest.mark.parametrize("typed", [["evaluate"], ["discard", "--out", "OUT"]])
def test_the_verbs_refuse_what_has_no_part(copy, capsys, typed):
    out = str(copy / "out")
    assert main([typed[0], str(copy), *(out if word == "OUT" else word for word in typed[1:]), "--keep", "b=.5", "p=.5"]) == 2
    assert "--keep p: p is only evaluated" in capsys.readouterr().err and not Path(out).exists()


def test_evaluate_shows_the_model_that_discard_would_write(copy, parts):
    """To the rounding of one merged weight, so that both say the same; nothing is written, so nothing is refused."""
    file = copy / "again.json"
    assert main(["evaluate", str(copy), "--keep", "a=.5", "--keep", "b=.25", "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert found["kept"] == {"a": 0.5, "b": 0.25} and found["models"]["kept"] != found["models"]["deployed"]
    pipeline.discard(str(copy), str(copy / "out"), None, {"a": 0.5, "b": 0.25}, force=True)
    pipeline.evaluate(str(copy / "out"), None, str(file), configured(parts, copy))
    assert json.loads(file.read_text())["models"]["model"] == found["models"]["kept"]


def test_a_model_alone_has_no_part_to_keep(parts, capsys):
    assert main(["evaluate", str(parts / "model"), f"env.a.path={parts}/environment.py:Add", "--keep", "a=.5"]) == 2
    assert "--keep: " in (said := capsys.readouterr().err) and "is no run folder, so it has no parts to keep" in said


def test_an_engine_serves_what_is_kept_and_the_policy_again_after_it():
    run = Run(tiny("llama")).train(3)
    served, ids = Served(CopyEngine(run.model), PolicyWeights(run.model, run.targets)), [[3, 5, 7, 4]]
    served.sync()
    policy = served.logprobs(ids)
    with run.quarantine.kept({"env1": 0.5}):
        served.sync()
        kept = served.logprobs(ids)
        assert kept == [pytest.approx(row, abs=1e-5) for row in served_alone(run, ids)]
    served.sync()
    assert served.logprobs(ids) == policy != kept


def served_alone(run: Run, ids: list[list[int]]) -> list[list[float]]:
    with torch.no_grad():
        found = run.model(torch.tensor(ids)).logits.log_softmax(-1)
    return [[float(row[place, token]) for place, token in enumerate(tokens[1:])] for row, tokens in zip(found, ids, strict=True)]
