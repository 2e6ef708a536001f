"""`push`: what is sent to the hub, and what is refused before. The hub's client alone has a stand-in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, ModelCard

from routed_rl.artifacts import RunFolder
from routed_rl.cli import main
from routed_rl.config import Config
from routed_rl.errors import HubError, RunFolderError
from routed_rl.multirun.relearn import with_model
from tests import pipeline
from tests.report.test_card import MODEL, configure
from tests.test_export import Saved, llama

TOKEN = "hf_opensesame"


class Hub:
    """The hub: one repository, its files, and what was asked of it."""

    def __init__(self) -> None:
        self.files, self.private, self.commits, self.error = dict[str, bytes](), None, 0, ""
        self.public = False
        """Whether the repository exists already and is public."""

    def create_repo(self, repo: str, *, private: bool | None, exist_ok: bool) -> str:
        if self.error:
            raise OSError(self.error)
        self.private = private and not self.public
        return f"https://hub/{repo}"

    def repo_info(self, repo: str) -> SimpleNamespace:
        return SimpleNamespace(private=self.private)

    def list_repo_files(self, repo: str) -> list[str]:
        return [".gitattributes", *self.files]

    def create_commit(self, repo: str, operations: list[Any], *, commit_message: str, revision: str | None) -> None:
        self.commits += 1
        for each in operations:
            if isinstance(each, CommitOperationDelete):
                del self.files[each.path_in_repo]
            elif isinstance(each, CommitOperationAdd):
                with each.as_file() as file:
                    self.files[each.path_in_repo] = file.read()


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Hub:
    hub = Hub()
    monkeypatch.setattr("routed_rl.pipeline.hub.HfApi", lambda: hub)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return hub


@pytest.fixture
def run(tmp_path) -> Path:
    folder = Saved(llama(), tmp_path).run.path
    (folder / "config.yaml").write_text("seed: 0\n")
    (folder / "manifest.json").write_text("{}")
    configure(folder, model=MODEL, routing={"mode": "route"}, trainer={"max_steps": 7})
    return folder


def refused(capsys, *argv: object) -> str:
    assert main(["push", *map(str, argv)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_a_dry_run_shows_files_sizes_and_card_and_sends_nothing(run, hub, capsys):
    assert main(["push", str(run), "me/model", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "model.safetensors" in said and "# run: the deployed model" in said and "nothing was sent" in said
    size = (run / "checkpoints" / "step-7" / "model.safetensors").stat().st_size
    assert f"{size:,}" in said and hub.commits == 0 and TOKEN not in said


def test_without_a_token_nothing_is_written_or_sent_and_the_way_out_is_said(run, hub, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    assert "there is no token for the hub, so nothing can be sent; run `hf auth login`, or export HF_TOKEN" in refused(
        capsys, run, "me/model")
    assert hub.commits == 0 and not (run / "deployed").exists()


def test_a_dry_run_needs_no_token_and_says_that_sending_does(run, hub, capsys, monkeypatch):
    assert main(["push", str(run), "me/model", "--dry-run"]) == 0
    assert "token" not in capsys.readouterr().out.splitlines()[-1]
    monkeypatch.delenv("HF_TOKEN")
    assert main(["push", str(run), "me/model", "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        "dry run: nothing was sent; to send it you need a token: run `hf auth login`, or export HF_TOKEN with a token that may "
        "write")


def test_the_deployed_model_is_sent_as_it_is_without_its_seal(run, hub, capsys):
    pipeline.discard(str(run), str(run / "deployed"))
    assert main(["push", str(run), "me/model", "--private"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "pushed: https://hub/me/model"
    assert hub.private is True and hub.commits == 1
    assert hub.files == {path.name: path.read_bytes() for path in (run / "deployed").iterdir() if path.name != "COMPLETE.json"}
    (run / "deployed" / "README.md").write_text("my own words")
    assert "is damaged: README.md is not what was written" in refused(capsys, run, "me/model", "--force")
    (run / "deployed" / "COMPLETE.json").unlink()
    assert main(["push", str(run), "me/model", "--force"]) == 0 and hub.files["README.md"] == b"my own words"


@pytest.mark.slow
def test_a_deployed_model_that_is_older_than_the_run_is_sent_only_if_its_folder_is_named(run, hub, capsys):
    pipeline.discard(str(run), str(run / "deployed"))
    shutil.copytree(run / "checkpoints" / "step-7", later := run / "checkpoints" / "step-9")
    said = f"{run}/deployed holds the model of step 7, and the run has reached step 9; give {run}/deployed itself, or remove it"
    assert said in refused(capsys, run, "me/model") and said in refused(capsys, run, "me/model", "--dry-run")
    with pytest.raises(RunFolderError, match="holds the model of step 7, and the run has reached step 9"):
        with_model(Config(), str(run))
    assert hub.commits == 0 and main(["push", str(run / "deployed"), "me/model"]) == 0
    (later / "config.json").write_text("torn")  # nobody could discard from it
    assert main(["push", str(run), "me/model", "--force"]) == 0 and hub.commits == 2
    shutil.rmtree(later)
    (run / "deployed" / "README.md").write_text("my own words, without the step")
    (run / "deployed" / "COMPLETE.json").unlink()
    shutil.copytree(run / "checkpoints" / "step-7", later)
    assert main(["push", str(run), "me/model", "--force"]) == 0


def test_an_adapter_names_its_base_model_on_the_hub_and_no_folder_of_this_machine(run, hub, capsys):
    assert "a folder of this machine, which nobody else can load" in refused(capsys, run, "me/q", "--what", "quarantine")
    assert main(["push", str(run), "me/q", "--what", "quarantine", "--base", "me/model"]) == 0
    assert json.loads(hub.files["adapter_config.json"])["base_model_name_or_path"] == "me/model"
    card = ModelCard(hub.files["README.md"].decode())
    assert card.data.base_model == "me/model" and "# run: the quarantine" in card.text
    assert not [name for name, content in hub.files.items() if str(run.parent).encode() in content]
    assert "--base me/b is for an adapter" in refused(capsys, run, "me/p", "--what", "policy", "--base", "me/b")


def test_a_folder_that_export_wrote_is_sent_too_and_others_are_refused(run, hub, capsys):
    out = run.parent / "policy"
    pipeline.export(str(run), None, None, str(out), dtype="bfloat16")
    assert main(["push", str(out), "me/policy"]) == 0 and b"bfloat16" in hub.files["README.md"]
    assert "--what policy is for a run" in refused(capsys, out, "me/p", "--what", "policy")
    assert "neither a run nor a folder" in refused(capsys, run.parent, "me/p")
    assert "REPO 'a/b/c' is no name of a repository" in refused(capsys, out, "a/b/c")


def test_a_repository_with_files_is_replaced_by_force_alone_and_nothing_old_stays(run, hub, capsys):
    hub.files = {"old.bin": b"", "README.md": b""}
    assert "me/model has 2 files already, such as README.md" in refused(capsys, run, "me/model")
    assert hub.commits == 0 and main(["push", str(run), "me/model", "--force"]) == 0
    assert "old.bin" not in hub.files and hub.files["README.md"]


def test_an_error_of_the_hub_is_one_line_without_the_token(run, hub, capsys):
    hub.error = f"403 for\n{TOKEN}"
    line = refused(capsys, run, "me/model")
    assert "the hub did not take me/model: OSError: 403 for ***" in line and TOKEN not in line
    with pytest.raises(HubError):
        pipeline.push(str(RunFolder(run).path), "me/model")


def test_private_on_a_repository_that_is_public_sends_nothing(run, hub, capsys):
    hub.public = True
    assert "me/model exists and is public, so --private would do nothing" in refused(capsys, run, "me/model", "--private")
    assert hub.commits == 0 and main(["push", str(run), "me/model"]) == 0
