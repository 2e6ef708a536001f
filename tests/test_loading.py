"""What whole verbs load, each in a process of its own: nothing that only training or drawing needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from routed_rl.cli.verbs import VERBS
from tests import pipeline
from tests.parts import own_config, typed, write_parts

LATE = {"trl", "vllm", "wandb", "matplotlib"}
PROGRAM = f"""
import sys
from routed_rl.cli import main
code = main(sys.argv[1:])
print(*sorted({LATE} & sys.modules.keys()))
sys.exit(code)
"""
TRAIN = {"train", "resume", "compare", "sweep", "calibrate", "relearn", "robustify"}
"""Verbs that train, in their own process or in others."""
SECRET = ["--password-file", "WORD"]
WORDS = {
    "rollback": ["RUN", "--step", "99"], "evaluate": ["RUN", "--scales", "0.5"], "discard": ["RUN", "--out", "OUT"],
    "export": ["RUN", "--quarantine", "OUT", "--policy", "OUT-policy"], "push": ["RUN", "me/model", "--dry-run"],
    "audit": ["RUN", "--samples", "4"], "filter": ["RUN", "--detector", "flags", "--out", "OUT.jsonl"],
    "share": ["RUN", "--out", "OUT", *SECRET], "unshare": ["SITE", "--out", "OUT", *SECRET],
    "report": ["RUN", "--out", "OUT.html"], "extract": ["SETTINGS"], "env": ["try", "lab"], "doctor": [], "settings": ["rank"],
    "new": ["env", "mine"], "completion": ["bash"]}
"""The words after each verb that does not train."""
REFUSED = {"rollback": 2, "push": 2}
"""Exit codes of the commands above that end otherwise than with 0: there is no such step, and no token for the hub."""
NEED = {"report": "matplotlib"}


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    folder = write_parts(tmp_path_factory.mktemp("parts"))
    (folder / "word").write_text("a password of many letters\n")
    return folder


@pytest.fixture(scope="module")
def run(parts, tmp_path_factory) -> Path:
    return pipeline.train(own_config(parts, tmp_path_factory.mktemp("runs") / "run", trainer={"max_steps": 2}), [])


def test_every_verb_that_does_not_train_is_here():
    assert {*WORDS, *TRAIN} == {*VERBS} and not {*WORDS} & TRAIN


def routed_rl(verb: str, words: list[str], folder: Path) -> tuple[int, str]:
    """The exit code of a command, and the slow libraries that it has loaded."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, verb, *words], cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("verb", WORDS)
def test_a_verb_that_does_not_train_loads_no_library_of_training(verb, run, parts, tmp_path):
    places = {"RUN": run, "WORD": parts / "word", "SITE": tmp_path / "site", "OUT": tmp_path / "out"}
    words = typed(parts, tmp_path / "out") if "SETTINGS" in WORDS[verb] else [
        str(places.get(word, word)).replace("OUT", str(tmp_path / "out")) for word in WORDS[verb]]
    if verb == "unshare":
        assert routed_rl("share", [str(run), "--out", str(tmp_path / "site"), *words[-2:]], tmp_path)[0] == 0
    assert routed_rl(verb, words, tmp_path) == (REFUSED.get(verb, 0), NEED.get(verb, ""))


@pytest.mark.slow
def test_training_loads_one_of_them(parts, tmp_path):
    """The test above would see it."""
    assert "trl" in routed_rl("train", [*typed(parts, tmp_path / "out"), "--dry-run"], tmp_path)[1]
