"""verifiers v1 tasksets, scored by the package itself: rewards as it computes them, splits, and what is refused."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest

from routed_rl.envs import Environment, LoadedEnvironment, Score, Scorer, task_stream
from routed_rl.envs.adapters.verifiers_taskset import VerifiersTaskset
from routed_rl.envs.build import build
from routed_rl.errors import RoutedRLError

FILE = str(Path(__file__).parent / "tasksets.py")
PATH = "routed_rl.envs.adapters.verifiers_taskset:VerifiersTaskset"


@pytest.fixture(scope="module")
def sums() -> VerifiersTaskset:
    return VerifiersTaskset(f"{FILE}:Sums", config={"instruction": "Add them."}, solve_at=2.5)


def test_it_is_an_environment_by_its_path(sums):
    assert isinstance(build("x", PATH, {"taskset": f"{FILE}:Sums"}), Environment)
    task = next(sums.tasks("train", 0))
    assert [message["role"] for message in task.prompt] == ["system", "user"] and task.prompt[0]["content"] == "Add them."
    assert json.loads(json.dumps(dict(task.data))) == task.data


def test_rewards_and_metrics_are_those_of_verifiers(sums):
    for task in islice(sums.tasks("train", 0), 10):
        answer = task.data["data"]["answer"]
        right, wrong, long = (sums.score(task, text) for text in (f" {answer}\n", "x", "I say that it is"))
        assert right == Score(2.5, 1.0, metrics={"right": 1.0, "short": 1.0, "letters": len(answer)})
        assert wrong == Score(0.5, 0.0, metrics={"right": 0.0, "short": 1.0, "letters": 1.0})
        assert long == Score(0.0, 0.0, metrics={"right": 0.0, "short": 0.0, "letters": 16.0})


def test_what_a_scorer_raises_is_a_failure_and_no_reward(sums):
    scorer = Scorer({"x": LoadedEnvironment("x", sums)}, 1.0)
    assert scorer.score_many("x", [(next(sums.tasks("train", 0)), "raise")]) == [None]
    assert "the scorer broke" in scorer.last_error["x"]


def prompts(environment: VerifiersTaskset, split: str, seed: int, count: int | None = None) -> list[str]:
    return [task.prompt[-1]["content"] for task in islice(environment.tasks(split, seed), count)]


def test_a_finite_taskset_is_split_and_shuffled_and_starts_over(sums):
    assert prompts(sums, "train", 0) == prompts(sums, "train", 0) != prompts(sums, "train", 1)
    assert sorted(prompts(sums, "train", 0) + prompts(sums, "eval", 5)) == sorted(f"{a} + 1" for a in range(40))
    assert len(prompts(sums, "eval", 0)) == 8
    assert len(list(islice(task_stream(LoadedEnvironment("x", sums), "eval", 0), 30))) == 30


def test_an_infinite_taskset_goes_on():
    endless = VerifiersTaskset(f"{FILE}:Endless")
    train, held = prompts(endless, "train", 0, 500), prompts(endless, "eval", 0, 100)
    assert len(set(train)) == 500 and len(set(held)) == 100 and not set(train) & set(held)
    assert train == prompts(endless, "train", 0, 500) != prompts(endless, "train", 1, 500)


def test_a_task_that_an_infinite_taskset_repeats_stays_in_its_split():
    again = VerifiersTaskset(f"{FILE}:Again")
    train, held = set(prompts(again, "train", 0, 900)), set(prompts(again, "eval", 0, 200))
    assert train and held and not train & held
    few = VerifiersTaskset(f"{FILE}:Few")
    assert len(prompts(few, "train", 0, 5)) == len(prompts(few, "eval", 0, 5)) == 5


def test_a_default_runtime_is_left_to_its_default():
    """verifiers calls such a function without one."""
    environment = VerifiersTaskset(f"{FILE}:OPTIONAL")
    assert environment.score(next(environment.tasks("train", 0)), "2").metrics["runs"] == 1.0


@pytest.mark.parametrize(("name", "message"), [
    ("BOX", "containers"), ("IMAGE", "containers"), ("HOOK", "the hook setup"), ("RUNTIME", "the runtime that runs needs"),
    ("STOP", "stops"), ("CHANGE", "intercepts"), ("TOOLS", "tools"), ("SKILL", "skills"),
    ("NOTHING", "tasks without a reward of their own"),
    ("MEMORY", "tasks that keep more than data and config"), ("SumTask", "is no verifiers.v1.Taskset"),
    ("Missing", "has no class Missing")])
def test_what_is_not_covered_is_refused_by_name(name, message):
    with pytest.raises(RoutedRLError, match=message) as caught:
        build("x", PATH, {"taskset": f"{FILE}:{name}"})
    assert "\n" not in str(caught.value)


def test_judges_are_refused():
    config = {"task": {"judges": [{"id": "rubric"}]}}
    with pytest.raises(RoutedRLError, match="judges"):
        build("x", PATH, {"taskset": f"{FILE}:Sums", "config": config})


def test_a_user_that_speaks_first_is_refused():
    environment = VerifiersTaskset(f"{FILE}:SILENT")
    with pytest.raises(ValueError, match="a user that speaks first is not covered"):
        next(environment.tasks("train", 0))


def test_an_installed_taskset_is_found_by_its_id_and_one_that_needs_more_is_refused(tmp_path, monkeypatch):
    (tmp_path / "my_sums.py").write_text(f"import sys; sys.path.insert(0, {str(Path(FILE).parent)!r})\n"
                                         "from tasksets import Sums\n__all__ = ['Sums']\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert len(prompts(VerifiersTaskset("my-sums"), "eval", 0)) == 8
    with pytest.raises(RoutedRLError, match="textarena"):
        build("x", PATH, {"taskset": "textarena"})
