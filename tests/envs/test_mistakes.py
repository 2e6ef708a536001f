"""A mistake in a plug-in is told in one line, with the line of the plug-in and the remedy, wherever the plug-in runs."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import types
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import pytest

from routed_rl.config import Config, EvaluationConfig
from routed_rl.envs import Conversation, Score, Scorer, Task, check_prompts, has_episodes, load_environments, task_stream
from routed_rl.envs.build import build, find_object
from routed_rl.envs.faults import Failure, Kind
from routed_rl.envs.host.wire import pack_score, unpack_failure
from routed_rl.envs.scoring import score_one
from routed_rl.errors import ConfigError, RoutedRLError, TaskError
from routed_rl.exits import guarded
from routed_rl.inspection import check_environments, try_environments
from routed_rl.training.first_scores import check_evaluated, check_first_scores
from tests.envs.mistakes import MISTAKES, UNPICKLED, Mistake

PATH = "mine.py:Mine"


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Writes the file of a mistake into the current folder."""
    monkeypatch.chdir(tmp_path)
    return lambda mistake: Path("mine.py").write_text(mistake.text)


def fits(mistake: Mistake, said: str) -> bool:
    """Whether `said` is one line with the place, what happened, and what to do."""
    places = [number for number, line in enumerate(mistake.text.splitlines(), 1) if mistake.line in line]
    found = re.search(r"mine\.py:(\d+): .*", said.strip())
    assert found and "\n" not in said.strip(), said
    assert int(found[1]) in places and mistake.says in found[0] and mistake.remedy in found[0], said
    return True


def composed(isolate: bool) -> Any:
    """The settings that `env try` and `env check` compose; this way it takes no half a second."""
    return lambda overrides: types.SimpleNamespace(env={"Mine": {"path": PATH, "isolate": isolate}})


def trained(isolate: object) -> None:
    """As much of training as meets a plug-in: it is loaded, its first tasks are made, a batch is scored."""
    (loaded,) = load_environments({"Mine": {"path": PATH, "isolate": isolate}})
    check_prompts([loaded], 0)
    scorer, tasks = Scorer({"Mine": loaded}, 0.05), list(islice(task_stream(loaded, "train", 0), 2))
    environment: Any = loaded.environment
    if has_episodes(environment):
        conversations = [Conversation(environment, task) for task in tasks]
        for conversation in conversations:
            conversation.reply("0")
            scorer.count("Mine", conversation.outcome)
    else:
        scorer.score_many("Mine", [(task, "0") for task in tasks])
    scorer.check()


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_with_its_line_and_its_remedy_in_training(name, written):
    written(MISTAKES[name])
    with pytest.raises(RoutedRLError) as caught:
        trained(isolate=False)
    assert fits(MISTAKES[name], str(caught.value))


@pytest.mark.parametrize(("name", "refused"), [
    ("returns a float", True), ("wrong name of a flag", True), ("reward is nan", False), ("cannot read the completion", False)])
def test_a_score_that_is_none_is_told_before_training_and_a_failure_is_left_to_be_counted(name, refused, written):
    written(MISTAKES[name])
    loaded = load_environments({"Mine": {"path": PATH, "isolate": False}})
    if not refused:
        check_first_scores(Config(), loaded)
        return
    with pytest.raises(TaskError) as caught:
        check_first_scores(Config(), loaded)
    assert fits(MISTAKES[name], str(caught.value))


def test_an_environment_without_tasks_to_evaluate_is_told_before_anything_slow_and_only_if_it_is_evaluated(written):
    written(Mistake(MISTAKES["returns a float"].text.replace('"say it"', '{"train": "say it"}[split]'), "", "", ""))
    loaded = load_environments({"Mine": {"path": PATH, "isolate": False}})
    check_evaluated(Config(evaluation=EvaluationConfig(samples=0)), loaded)
    with pytest.raises(TaskError, match=r"environment Mine: mine.py:7: failed to make tasks: KeyError: 'eval'"):
        check_evaluated(Config(), loaded)


@pytest.mark.parametrize("kind", get_args(Kind))
def test_the_kind_of_a_failure_and_not_its_words_says_who_is_wrong_also_from_another_process(kind):
    failure = Failure("returned None, which is no Score", kind=kind)
    assert unpack_failure(pack_score(failure)) == failure and failure.breaks_contract == (kind == "no score")
    assert unpack_failure({"error": "returned None", "kind": ["no score"]}).kind == "error"


@pytest.mark.parametrize("name", MISTAKES)
def test_and_by_env_try_with_exit_code_2(name, written, capsys):
    written(MISTAKES[name])
    assert guarded(lambda: try_environments(PATH, 1, [], composed(isolate=False)), ["env", "try", PATH]) == 2
    assert fits(MISTAKES[name], capsys.readouterr().err)


@pytest.mark.parametrize("name", [name if name in ("no yield", "returns a float") else pytest.param(name, marks=pytest.mark.slow)
                                  for name in MISTAKES])
def test_and_by_env_check_with_exit_code_2(name, written):
    written(MISTAKES[name])
    assert guarded(lambda: check_environments(PATH, [], composed(isolate=False), samples=2), ["env", "check", PATH]) == 2


def test_an_environment_that_trains_and_is_unsound_ends_env_check_with_exit_code_4(written):
    """It pays for an answer without reading it."""
    written(Mistake(MISTAKES["returns a float"].text.replace("return ", "return Score(1.0) or "), "", "", ""))
    assert guarded(lambda: check_environments(PATH, [], composed(isolate=False), samples=2), ["env", "check", PATH]) == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", [*MISTAKES, None])
def test_and_in_a_process_of_its_own(name, written, capsys):
    mistake = MISTAKES[name] if name else UNPICKLED
    written(mistake)
    with pytest.raises(RoutedRLError) as caught:
        trained(isolate=True)
    assert fits(mistake, str(caught.value))
    assert guarded(lambda: try_environments(PATH, 1, [], composed(isolate=True)), ["env", "try", PATH]) == 2
    assert fits(mistake, capsys.readouterr().err)


@pytest.mark.parametrize("name", ["no yield", "returns a float", "reward is nan", "key is not there"])
def test_findings_of_check_are_lines_below_the_table(name, written, capsys):
    """The table has no room for them."""
    written(MISTAKES[name])
    with pytest.raises(RoutedRLError):
        check_environments(PATH, [], composed(isolate=False), samples=2)
    table, _, below = capsys.readouterr().out.rpartition("┘")
    lines = [line for line in below.splitlines() if MISTAKES[name].says in line]
    assert lines and fits(MISTAKES[name], lines[0]) and "NO" in table and MISTAKES[name].says not in table


def test_what_a_plug_in_prints_is_seen_in_env_try(written, capfd):
    written(Mistake(MISTAKES["key is not there"].text.replace("return", "print('here', task.data); return"), "", "", ""))
    with pytest.raises(RoutedRLError):
        try_environments(PATH, 1, [], composed(isolate=True))
    assert "here {'answer': '0'}" in capfd.readouterr().err


@pytest.mark.parametrize(("path", "kind", "hint"), [
    ("mine.py:Mien", "class", "has no class Mien; did you mean Mine?"),
    ("mine.py:Other", "class", "has no class Other; it has Mine"),
    ("mine.py:helps", "function", "has no function helps; did you mean help?")])
def test_a_name_that_is_not_there_is_answered_with_what_is(path, kind, hint, written):
    written(Mistake(f"def helped():\n    pass\n\n\n{MISTAKES['no score'].text}".replace("helped", "help"), "", "", ""))
    with pytest.raises(ConfigError, match=re.escape(hint)):
        find_object("env.x.path", path, kind)


def test_a_file_without_its_ending_and_a_reward_function_as_a_class_are_answered_with_what_to_write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("pay.py").write_text("def pays(completions, answer, **kwargs):\n    return [1.0]\n")
    for path, hint in ("pay:pays", "write pay.py:pays"), ("yours.own:pays", "no module yours; pip install what has it, or"):
        with pytest.raises(ConfigError, match=hint):
            find_object("env.x.reward", path, "function")
    with pytest.raises(ConfigError, match=r"a reward function is given as env\.x\.reward, with env\.x\.dataset"):
        build("x", "pay.py:pays", {"dataset": "rows.jsonl"})


def test_a_helper_is_found_when_a_function_imports_it_and_that_of_another_plug_in_is_refused(tmp_path):
    before = [*sys.path]
    text = MISTAKES["returns a float"].text.replace("return 0.5", "import aide_of_mine\n        return Score(aide_of_mine.paid)")
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "aide_of_mine.py").write_text("paid = 0.25\n")
        (tmp_path / folder / "mine.py").write_text(text)
    assert score_one(build("x", f"{tmp_path}/one/mine.py:Mine", {}), Task("say it"), "") == Score(0.25)
    (tmp_path / "one" / "not_a_library").mkdir()
    assert sys.path == before and importlib.util.find_spec("not_a_library") is None
    with pytest.raises(ConfigError, match="it imports aide_of_mine, and this process has loaded .*aide_of_mine.py under"):
        build("y", f"{tmp_path}/two/mine.py:Mine", {})


@pytest.mark.parametrize(("isolate", "below", "said"), [
    (False, "\n\nMine = Mine()\n", "Mine is an object of the class Mine, no class"),
    pytest.param(True, "\n\nMine = Mine()\n", "Mine is an object of the class Mine, no class", marks=pytest.mark.slow),
    pytest.param(True, "    def all_settings(self):\n        return 1 / 0\n",
                 "mine.py:11: cannot be described: ZeroDivisionError", marks=pytest.mark.slow)])
def test_what_cannot_be_built_or_described_is_told_once_and_no_process_is_started_again(isolate, below, said, written, caplog):
    written(Mistake(MISTAKES["returns a float"].text + below, "", "", ""))
    with pytest.raises(RoutedRLError, match=re.escape(said)):
        load_environments({"Mine": {"path": PATH, "isolate": isolate}})
    assert "restart" not in caplog.text


@pytest.mark.parametrize(("body", "line", "says", "remedy"), [
    ("return 1.0", 1, "paid returned 1.0, no list", "return a list with one number"),
    ("return ['1']", 1, "which is text", "return a list with one number"),
    ("return __import__('numpy').float32(1)", 1, "no list", "return a list with one number"),
    ("return [{}]", 1, "which is no number", "return a list with one number"),
    ("return [kwargs['answer'][7]]", 2, "raised IndexError", "correct the code there")])
def test_a_mistake_in_a_reward_function_too(body, line, says, remedy, written):
    Path("mine.py").write_text(f"def paid(completions, **kwargs):\n    {body}\n")
    Path("rows.jsonl").write_text("".join(json.dumps({"prompt": f"p{n}", "answer": "7"}) + "\n" for n in range(9)))
    (loaded,) = load_environments({"x": {"dataset": "rows.jsonl", "reward": "mine.py:paid", "isolate": False}})
    scorer, task = Scorer({"x": loaded}, 0.05), next(task_stream(loaded, "train", 0))
    scorer.score_many("x", [(task, "7")])
    said = scorer.last_error["x"]
    assert said.startswith(f"mine.py:{line}: ") and says in said and remedy in said
