"""The README's own parts work as written: the environments, the prompts, and the commands, train and compare."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.parts import write_parts

README = Path(__file__).parent.parent / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), flags=re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model of the user's own, and the two files of the README beside it."""
    folder = write_parts(tmp_path_factory.mktemp("user"))
    (folder / "environment.py").write_text(blocks("python")[0])
    (folder / "prompts.jsonl").write_text(blocks("json")[0])
    return folder


def commands(block: int = 0) -> list[list[str]]:
    text = blocks("bash")[block].replace("\\\n", " ")
    return [shlex.split(line) for line in text.splitlines() if line.strip()]


def run(command: list[str], folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(README.parent), "OMP_NUM_THREADS": "1"}
    quick = ["trainer.max_steps=2", "trainer.per_device_train_batch_size=16", "evaluation.samples=8"]
    done = subprocess.run([sys.executable, "-m", "routed_rl.cli", *command[1:], *quick], cwd=folder, text=True,
                          capture_output=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_train_command_works_as_written(folder):
    output = run(commands()[0], folder)
    assert output.splitlines()[0].startswith("routed_rl: loading") and output.splitlines()[-1] == f"run: {folder / 'my-run'}"
    summary = json.loads((folder / "my-run" / "summary.json").read_text())
    assert set(summary["models"]) == {"base", "policy", "deployed"}
    assert set(summary["models"]["deployed"]["add"]) >= {"reward", "solve", "hack"}
    assert set(summary["attribution"]["add"]) >= {"norm", "share", "push", "shift"}


def test_the_compare_command_works_as_written(folder):
    run([*commands()[1], "--seeds", "2", "--ranks", ""], folder)
    found = json.loads((folder / "my-compare" / "compare.json").read_text())
    assert set(found["arms"]) == {"none", "route", "control"}
    assert set(found["arms"]["route"]["deployed"]["add"]["hack"]) >= {"mean", "low", "high", "seeds"}
    assert set(found["real_minus_random"]["add"]["hack"]) >= {"mean", "low", "high"}
    assert (folder / "my-compare" / "compare.png").exists()


def test_the_episode_works_as_written(tmp_path):
    from tests.chat import write_chat_model

    folder = write_chat_model(tmp_path)
    (folder / "guess.py").write_text(blocks("python")[1])
    output = run(commands(1)[0], folder)
    assert output.splitlines()[-1] == f"run: {folder / 'my-guesses'}"
    summary = json.loads((folder / "my-guesses" / "summary.json").read_text())
    assert set(summary["models"]["deployed"]["guess"]) >= {"reward", "solve", "turns"}
    assert 1 < summary["models"]["base"]["guess"]["turns"] <= 3


def test_the_adapters_the_readme_names_are_there():
    from routed_rl.envs.build import find_object

    named = set(re.findall(r"`(routed_rl[\w.]+:\w+|environments/\w+\.py:\w+)`", README.read_text()))
    assert len(named) == 4 and all(callable(find_object("path", path).tasks) for path in named)


def test_every_command_the_readme_names_is_a_command():
    from routed_rl.cli.verbs import VERBS

    named = set(re.findall(r"routed-rl ([a-z]+)", README.read_text()))
    assert named <= set(VERBS) and set(VERBS) <= named
