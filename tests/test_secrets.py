"""A secret is in no file of a run and in no line that is said: records have the reference, and literal secrets are refused."""

from __future__ import annotations

import pytest
import yaml

from routed_rl.artifacts import RunFolder
from routed_rl.cli import main
from routed_rl.cli.compose import compose
from routed_rl.config import from_mapping
from routed_rl.config.references import refuse_secrets, resolved, without_secrets
from routed_rl.envs.loading import load_environment
from routed_rl.errors import ConfigError
from routed_rl.pipeline.record import dated, read_config, write_config
from routed_rl.training.plan import training_arguments
from tests.parts import typed, write_parts

SECRET, WORD = "s3cr3t-8f2c71-value", "ROUTED_RL_TEST_SECRET"
REFERENCE = f"${{oc.env:{WORD}}}"
KEEPER = '''
    def __init__(self, token: str = "", deep: dict | None = None, **rest):
        super().__init__()
        assert token == (deep or {}).get("api_key", token) == f"{'s3cr3t'}-8f2c71-value", "not what the reference stands for"


'''


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = write_parts(tmp_path_factory.mktemp("parts"))
    with open(folder / "environment.py", "a") as file:
        file.write(f"\n\nclass Keeper(Add):{KEEPER}")
    return folder


@pytest.fixture(autouse=True)
def exported(monkeypatch):
    monkeypatch.setenv(WORD, SECRET)


def secretive(parts, out, *more: str) -> list[str]:
    return typed(parts, out, f"env.a.path={parts}/environment.py:Keeper", f"env.a.token={REFERENCE}",
                 f"env.a.deep.api_key={REFERENCE}", f"trainer.hub_token={REFERENCE}", "trainer.max_steps=2",
                 "trainer.per_device_train_batch_size=16", "evaluation.samples=4", "trainer.save_steps=1",
                 *(f"env.{name}.isolate=true" for name in "abp"), *more)


def holders(folder) -> list[str]:
    """Files below `folder` that hold the secret."""
    return [str(path) for path in folder.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


def test_records_have_the_reference_and_what_uses_a_setting_has_the_value(parts, tmp_path, monkeypatch):
    overrides = secretive(
        parts, tmp_path / "run", f"name={REFERENCE}", f"env.b.note=${{oc.env:{WORD}}}-b", "env.b.other=${env.a.token}",
        f"env.b.decoded=${{oc.decode:${{oc.env:{WORD}}}}}", "env.b.default=${oc.env:NO_SUCH_VARIABLE,none}",
        "trainer.beta=${oc.decode:${oc.env:NO_SUCH_VARIABLE,0.5}}", "seed=${oc.decode:${oc.env:NO_SUCH_VARIABLE,7}}")
    run, config = RunFolder(tmp_path / "run"), compose(overrides)
    run.path.mkdir()
    write_config(run, config, overrides)
    assert holders(tmp_path) == [] and SECRET not in str(config.env) + str(config.trainer) and config.name == SECRET
    again, records = read_config(run), run.settings()
    assert again == dated(config, again.model.date) and (again.seed, again.trainer["beta"]) == (7, 0.5)
    assert records["env"]["a"]["token"] == records["env"]["b"]["other"] == records["trainer"]["hub_token"] == REFERENCE
    assert records["name"] == REFERENCE and records["seed"].startswith("${oc.decode:")
    assert training_arguments(again, run).hub_token == REFERENCE
    found = resolved(again.env["b"])
    assert [found[key] for key in ("note", "other", "decoded", "default")] == [f"{SECRET}-b", SECRET, SECRET, "none"]
    load_environment("a", {**again.env["a"], "isolate": False})
    monkeypatch.delenv(WORD)
    for use in (lambda: load_environment("a", again.env["a"]), lambda: read_config(run),
                lambda: compose(overrides)):
        with pytest.raises(ConfigError, match=rf"{WORD}}}: there is no environment variable {WORD}; export it"):
            use()


LITERAL = ["trainer.hub_token=TEXT", "env.mine={path:f.py:F,api_key:TEXT}", "trainer.hub_token='TEXT'",
           "rollout=vllm_server rollout.urls=[http://user:TEXT@host]"]
WRONG = ["trainer.hub_token=TEXT,b", "nothing.token=TEXT", "env.mine.token={TEXT", "model=TEXT token=TEXT",
         f"routing.rank={REFERENCE}", f"trainer.max_steps={REFERENCE}", f"trainer.report_to={REFERENCE}"]
SECRETS = [("token", "x"), ("password", 12345), ("client_secret", "x"), ("api_key", "x"), ("OPENAI_API_KEY", "x"),
           ("signing_key", SECRET), ("Authorization", "Bearer x"), ("url", "https://user:x@host/"), ("push_to_hub_token", "x")]
PLAIN = [("answer_key", "answer"), ("eos_token", "x"), ("token", None), ("token", True), ("token_env", "NAME"), ("tokens", 5),
         ("key", "answer"), ("url", "http://host:80/a@b"), ("password", REFERENCE), ("url", f"http://me:{REFERENCE}@host")]


@pytest.mark.parametrize("text", LITERAL)
def test_a_secret_that_is_written_out_is_refused_and_not_repeated(text, capsys):
    assert main(["train", "--dry-run", *text.replace("TEXT", SECRET).split()]) == 2
    said = capsys.readouterr()
    assert "is a secret" in said.err and "'${oc.env:NAME}'" in said.err and SECRET not in said.err + said.out
    assert len(said.err.splitlines()) == 1


@pytest.mark.parametrize("text", WRONG)
def test_no_error_repeats_a_secret(text, capsys):
    assert main(["train", "--dry-run", *text.replace("TEXT", SECRET).split()]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and SECRET not in said.err + said.out


def test_secrets_are_known_by_name_or_form_and_what_only_sounds_like_one_is_none():
    for where in (lambda *pair: {"env": {"mine": dict([pair])}}, lambda *pair: {"trainer": {"deep": [dict([pair])]}}):
        for name, value in SECRETS:
            with pytest.raises(ConfigError, match=rf"\.{name} is a secret"):
                refuse_secrets(where(name, value))
        for name, value in PLAIN:
            refuse_secrets(where(name, value))


def test_older_records_are_read_and_shown_without_their_secrets(tmp_path):
    old = {"trainer": {"hub_token": SECRET}, "env": {"a": {"path": "f.py:F", "list": [{"password": 12345}]}}}
    assert from_mapping(old).trainer == old["trainer"]
    assert without_secrets(old) == {
        "trainer": {"hub_token": "***"}, "env": {"a": {"path": "f.py:F", "list": [{"password": "***"}]}}}
    (tmp_path / "run").mkdir()
    with pytest.raises(ConfigError, match="is a secret"):
        write_config(RunFolder(tmp_path / "run"), from_mapping(old), [])
    assert holders(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("more", [["trainer.report_to=wandb"], ["launch=ddp", "launch.processes=2",
    "trainer.per_device_train_batch_size=8"]],
                         ids=["wandb", "ddp"])
def test_no_file_of_a_finished_run_holds_a_secret_and_it_goes_on_with_the_reference(more, parts, tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert main(["train", *secretive(parts, out, "tracking.report=true", *more)]) == 0
    assert (out / "report.html").exists() and holders(tmp_path) == []
    assert yaml.safe_load((out / "config.yaml").read_text())["env"]["a"]["token"] == REFERENCE
    assert main(["resume", str(out), "trainer.max_steps=3"]) == 0
    assert main(["rollback", str(out), "--step", "2", f"out={tmp_path / 'back'}"]) == 0 and holders(tmp_path) == []
    assert SECRET not in "".join(capsys.readouterr())


@pytest.mark.slow
def test_no_file_of_a_comparison_holds_a_secret(parts, tmp_path):
    jobs = ["compare", *secretive(parts, tmp_path / "x", "trainer.max_steps=1")[1:], "--arms", "none,route", "--seeds", "1",
    "--ranks", "",
            "--jobs", "1", "--out", str(tmp_path / "arms")]
    assert main(jobs) == 0 and main(jobs) == 0 and holders(tmp_path) == []
