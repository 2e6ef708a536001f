"""A chat template that asks for the date is told the day of the run: in all that follows from it, whenever that is done."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest
import yaml

from routed_rl.artifacts import RunFolder
from routed_rl.cli.compose import compose
from routed_rl.config import Config
from routed_rl.errors import ConfigError, ModelError
from routed_rl.model.prompts import encode_prompts
from routed_rl.multirun.job import Job, is_finished, of_one_date
from routed_rl.pipeline.build import load_parts
from routed_rl.pipeline.record import dated, read_config, tell, write_config
from tests import pipeline
from tests.parts import typed, write_parts

ONLY_1999 = ("{% if strftime_now('%d %b %Y') != '31 Dec 1999' %}{{ raise_exception('it is ' + strftime_now('%Y')) }}{% endif %}"
             "{% for m in messages %}{{ m.content }} {% endfor %}")


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> list[str]:
    """What is typed for a run of one environment, whose template raises on every day but one; the date is not typed."""
    parts = write_parts(tmp_path_factory.mktemp("parts"))
    (parts / "model" / "chat_template.jinja").write_text(ONLY_1999)
    alone = [word for word in typed(parts, "unused") if word[:5] not in ("env.b", "env.p")]
    return [*alone, "env.a.chat=true", "env.a.isolate=false",
            "trainer.max_steps=1", "trainer.save_steps=1", "evaluation.samples=2", "monitor.completions=0"]


@pytest.fixture
def config(words, tmp_path) -> Config:
    """Of a run on that day."""
    return dated(compose([*words, f"out={tmp_path / 'run'}"]), "1999-12-31T23:59:59")


def date(folder: Path) -> str:
    return yaml.safe_load((folder / "config.yaml").read_text())["model"]["date"]


@pytest.mark.slow
def test_what_follows_from_a_run_has_its_date(config, words, tmp_path):
    run = pipeline.train(config, words)
    pipeline.resume(str(run), ["trainer.max_steps=2"], compose)
    pipeline.evaluate(str(run), None, None, None)
    child = pipeline.rollback(str(run), 1, [], False, [f"out={tmp_path / 'child'}", "discard=false"], compose)
    assert date(run) == date(child) == "1999-12-31T23:59:59"
    with pytest.raises(ConfigError, match="resume cannot change model.date: 1999-12-31T23:59:59 -> 2020-01-01"):
        pipeline.resume(str(run), ["model.date=2020-01-01"], compose)


def test_a_new_run_has_the_day_on_which_it_begins(words, tmp_path):
    with pytest.raises(ModelError, match=f"it is {datetime.now().year}"):
        pipeline.train(compose([*words, f"out={tmp_path / 'new'}"]), words)
    assert not (tmp_path / "new").exists()


def written(config: Config, **manifest: str) -> RunFolder:
    run = RunFolder(str(config.out))
    run.path.mkdir()
    write_config(run, config, [])
    tell(run, manifest)
    return run


def test_a_run_from_before_there_was_a_date_has_that_of_its_manifest(config, tmp_path):
    config.model.date = None
    found = read_config(written(config, created="1999-12-31T23:59:58+00:00"))
    tokenizer = load_parts(found).tokenizer
    assert encode_prompts(tokenizer, [[{"role": "user", "content": "add 1 2"}]]) == encode_prompts(tokenizer, ["add 1 2"])


def test_runs_that_are_compared_have_one_date(config, words, tmp_path):
    written(config)
    configs = [compose([*words, f"out={tmp_path / out}"]) for out in ("new", "run", "other")]
    jobs = [Job(str(place), config, words) for place, config in enumerate(configs)]
    assert [job.config.model.date for job in of_one_date(jobs)] == ["1999-12-31T23:59:59"] * 3
    assert len({job.config.model.date for job in of_one_date([jobs[0], jobs[2]])} - {None}) == 1
    assert not is_finished(jobs[1], "out")  # not refused: a date that is not set is no other setting


@pytest.mark.parametrize("wrong", ["today", "31.12.1999", "1999-13-01"])
def test_what_is_no_date_is_refused(wrong):
    with pytest.raises(ConfigError, match=f"model.date={wrong} is no date; write model.date=2026-01-31"):
        compose([f"model.date={wrong}"])
