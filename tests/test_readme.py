"""What README and docs show works as written: environments, prompts, commands, and the lines of Python; links lead somewhere."""

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
DOCS = README.parent / "docs"
PAGES = [README, *sorted(DOCS.glob("*.md"))]
OWN = DOCS / "own_environment.md"


def blocks(language: str, page: Path = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model of the user's own, and the two files of the README beside it."""
    folder = write_parts(tmp_path_factory.mktemp("user"))
    (folder / "environment.py").write_text(blocks("python")[0])
    (folder / "prompts.jsonl").write_text(blocks("json")[0])
    return folder


def commands(page: Path = README) -> list[list[str]]:
    text = blocks("bash", page)[0].replace("\\\n", " ")
    return [shlex.split(line) for line in text.splitlines() if line.strip()]


def run(command: list[str], folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(README.parent), "OMP_NUM_THREADS": "1"}
    quick = ["trainer.max_steps=2", "trainer.per_device_train_batch_size=16", "evaluation.samples=8"]
    done = subprocess.run([sys.executable, "-m", "routed_rl.cli", *command[1:], *quick], cwd=folder, text=True,
                          capture_output=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_train_command_works_as_written(folder):
    output = run(commands()[0], folder)
    assert output.splitlines()[0].startswith("routed_rl: loading") and output.splitlines()[-1] == f"run: {folder / 'my-run'}"
    summary = json.loads((folder / "my-run" / "summary.json").read_text())
    assert set(summary["models"]) == {"base", "policy", "deployed"}
    assert set(summary["models"]["deployed"]["add"]) >= {"reward", "solve", "hack"}
    assert set(summary["attribution"]["add"]) >= {"norm", "share", "push", "shift"}


@pytest.mark.slow
def test_the_compare_command_works_as_written(folder):
    words = list(commands()[1])
    words[words.index("--seeds") + 1] = "2"
    run([*words, "--ranks", ""], folder)
    found = json.loads((folder / "my-compare" / "compare.json").read_text())
    assert set(found["arms"]) == {"none", "route", "control"}
    assert set(found["arms"]["route"]["deployed"]["add"]["hack"]) >= {"mean", "low", "high", "seeds"}
    assert set(found["real_minus_random"]["add"]["hack"]) >= {"mean", "low", "high"}
    assert (folder / "my-compare" / "compare.png").exists()


@pytest.mark.slow
def test_the_episode_works_as_written(tmp_path):
    from tests.chat import write_chat_model

    folder = write_chat_model(tmp_path)
    (folder / "guess.py").write_text(blocks("python", OWN)[0])
    output = run(commands(OWN)[0], folder)
    assert output.splitlines()[-1] == f"run: {folder / 'my-guesses'}"
    summary = json.loads((folder / "my-guesses" / "summary.json").read_text())
    assert set(summary["models"]["deployed"]["guess"]) >= {"reward", "solve", "turns"}
    assert 1 < summary["models"]["base"]["guess"]["turns"] <= 3


def test_the_adapters_that_the_docs_name_are_there():
    from routed_rl.envs.build import find_object

    named = set(re.findall(r"`(routed_rl[\w.]+:\w+|environments/\w+\.py:\w+)`", OWN.read_text()))
    assert len(named) == 4 and all(callable(find_object("path", path).tasks) for path in named)


def test_the_readme_and_the_docs_name_every_command_and_no_other():
    from routed_rl.cli.verbs import VERBS

    named = {page.name: set(re.findall(r"routed-rl ([a-z]+)", page.read_text())) for page in PAGES}
    assert {name: words - set(VERBS) for name, words in named.items() if words - set(VERBS)} == {}
    table = README.read_text().partition("## The commands")[2].partition("## ")[0]
    assert {word for word in re.findall(r"[a-z]+", " ".join(re.findall(r"`([^`]*)`", table))) if word in VERBS} == set(VERBS)


def test_the_readme_is_short_and_has_two_pictures():
    text = README.read_text()
    assert len(text.splitlines()) <= 150 and text.count("<picture>") == 2


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file_and_a_heading(page):
    text = page.read_text()
    for target in [*re.findall(r"\]\(([^)\s]+)\)", text), *re.findall(r'(?:src|srcset)="([^"]+)"', text)]:
        if target.startswith(("http", "#")):
            continue
        file, _, heading = target.partition("#")
        found = page.parent / file
        assert found.exists(), f"{page.name} links to {target}"
        if heading:
            headings = {re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).strip().replace(" ", "-")
                        for line in found.read_text().splitlines() if line.startswith("#")}
            assert heading in headings, f"{page.name} links to {target}"


def test_every_paper_that_is_cited_has_its_entry():
    known = set(re.findall(r"^\| ([^|]+?) \|", (DOCS / "references.md").read_text(), flags=re.MULTILINE))
    folders = [README.parent / name for name in ("routed_rl", "environments", "scripts")]
    files = [*PAGES, *(file for folder in folders for file in folder.rglob("*.py"))]
    cited = re.compile(r"((?:Mac)?[A-Z][a-z]+(?: et al\.| and [A-Z][a-z]+)|GRAFT|SGTM),? \(?(20[0-9]{2})")
    missing = {(file.name, found[0]) for file in files for found in cited.finditer(file.read_text())
               if f"{found[1]}, {found[2]}" not in known}
    assert missing == set()
