"""Weights and settings that change by the number of tasks: exact, the same for the same seed, refused when malformed."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import pytest

from routed_rl.envs import (
    ContractError,
    EnvironmentProcess,
    LoadedEnvironment,
    Score,
    Task,
    load_environments,
    mixture,
    trained,
)
from routed_rl.envs.curriculum import Staged, build_staged, check_stages, parse_weight
from routed_rl.errors import ConfigError, TaskError
from tests.envs.plugins import Plain

PATH = f"{Path(__file__).parent / 'plugins.py'}:Plain"
STAGES = [{"tasks": 5, "scale": 1}, {"tasks": 7, "scale": 1000}, {"scale": 1_000_000}]


def places(environments, count: int) -> list[int]:
    return [place for place, _ in itertools.islice(mixture(environments, 0), count)]


def loaded(name: str, weight) -> LoadedEnvironment:
    weights = parse_weight(name, weight)
    return LoadedEnvironment(name, Plain(), weights)


def scale(task) -> int:
    """The largest power of 1000 that the number of the prompt is a multiple of."""
    number = int(task.prompt.split()[1])
    return next(size for size in (1_000_000, 1000, 1) if number % size == 0)


def test_an_argument_with_a_name_of_ours_can_be_set_by_stages_alone_and_tasks_not_by_them(tmp_path):
    text = "from tests.envs.plugins import Plain\n\n\nclass Mine(Plain):\n    def __init__(self, {}):\n        pass\n"
    weighs, counts = (f"{tmp_path}/{name}.py:Mine" for name in ("weighs", "counts"))
    (tmp_path / "weighs.py").write_text(text.format("weight"))
    (tmp_path / "counts.py").write_text(text.format("tasks=3"))
    assert build_staged("x", weighs, {}, [{"tasks": 5, "weight": 1}, {"weight": 2}])
    with pytest.raises(ConfigError, match="Mine takes the argument weight, which cannot be set"):
        build_staged("x", weighs, {}, [{"tasks": 5, "weight": 1}, {}])
    assert build_staged("x", counts, {}, None) and build_staged("x", counts, {"tasks": 4}, [{"tasks": 5}, {}])
    with pytest.raises(ConfigError, match=r"argument tasks, .* the setting tasks of an environment is routed_rl's own"):
        build_staged("x", counts, {}, [{"tasks": 5}, {"tasks": 7}])


# --- weights ----------------------------------------------------------------------------------------------------------

def test_a_weight_changes_at_its_task_and_not_before():
    environments = [loaded("a", [[0, 1.0], [100, 0.25]]), loaded("b", [[0, 1], [100, 0.75]])]
    got = places(environments, 300)
    assert got[:100] == places([loaded("a", 1), loaded("b", 1)], 100)
    assert got[100:] == places([loaded("a", 0.25), loaded("b", 0.75)], 200)
    assert Counter(got[100:]) == {0: 50, 1: 150}


def test_a_weight_of_zero_gives_no_task_until_it_changes():
    environments = [loaded("a", 1), loaded("late", [[0, 0], [10, 1]])]
    assert places(environments, 14) == [0] * 10 + [0, 1, 0, 1]
    assert [entry.name for entry in trained(environments)] == ["a", "late"]


def test_a_constant_weight_gives_the_tasks_it_always_gave():
    """Written out, so that a run that was begun before schedules existed goes on with the same tasks."""
    environments = [LoadedEnvironment(name, Plain(), ((0, weight),)) for name, weight in (("a", 1.0), ("b", 0.3), ("c", 0.2))]
    assert places(environments, 15) == [0, 1, 0, 0, 2, 0, 0, 1, 0, 0, 2, 0, 0, 1, 0]


def test_a_time_without_any_weight_is_refused():
    with pytest.raises(ConfigError, match="from task 20 on every environment has weight 0"):
        trained([loaded("a", [[0, 1], [20, 0]]), loaded("b", [[0, 1], [10, 0]])])


@pytest.mark.parametrize("weight", [-1, "much", True, float("nan"), [], [1, 2], [[0, 1], [0, 2]], [[5, 1]], [[0, 1], [10, -1]],
                                    [[0, 1], [2.5, 1]], [[0, 1, 2]], None])
def test_a_malformed_weight_is_refused_in_one_line(weight):
    with pytest.raises(ConfigError, match=r"env\.mine\.weight") as error:
        parse_weight("mine", weight)
    assert "\n" not in str(error.value)


# --- stages -----------------------------------------------------------------------------------------------------------

def test_a_stage_lasts_its_tasks_and_the_last_one_for_ever():
    staged = build_staged("mine", PATH, {"scale": 7}, STAGES)
    tasks = list(itertools.islice(staged.tasks("train", 3), 40))
    assert [task.stage for task in tasks] == [0] * 5 + [1] * 7 + [2] * 28
    assert [scale(task) for task in tasks[5:]] == [1000] * 7 + [1_000_000] * 28
    assert tasks == list(itertools.islice(staged.tasks("train", 3), 40))
    assert tasks[:5] == list(itertools.islice(Plain().tasks("train", 3), 5)), "the first stage starts as without stages"


def test_evaluation_sees_the_last_stage():
    staged = build_staged("mine", PATH, {}, STAGES)
    assert {scale(task) for task in itertools.islice(staged.tasks("eval", 0), 10)} == {1_000_000}


def test_a_task_is_scored_by_the_stage_that_made_it():
    class Paying(Plain):
        def do_right(self, task, completion):
            return super().do_right(task, str(self.scale))

    staged = Staged([(1, Paying(scale=1)), (None, Paying(scale=2))])
    first, second = itertools.islice(staged.tasks("train", 0), 2)
    assert [staged.score(task, "?").metrics["length"] for task in (first, second)] == [1, 1]
    staged = Staged([(1, Paying(scale=1)), (None, Paying(scale=200))])
    first, second = itertools.islice(staged.tasks("train", 0), 2)
    assert [staged.score(task, "?").metrics["length"] for task in (first, second)] == [1, 3]


def test_a_finite_stage_starts_over_with_another_seed():
    staged = Staged([(5, Plain(limit=2)), (None, Plain(limit=1))])
    tasks = list(itertools.islice(staged.tasks("train", 0), 8))
    assert [task.stage for task in tasks] == [0] * 5 + [1] * 3
    assert len({task.prompt for task in tasks[:4]}) == 4
    with pytest.raises(ContractError, match="yields no task"):
        next(Staged([(None, Plain(limit=0))]).tasks("train", 0))


def test_stages_cross_into_a_process_of_their_own():
    there = EnvironmentProcess("mine", PATH, {}, STAGES)
    here = build_staged("mine", PATH, {}, STAGES)
    tasks = list(itertools.islice(there.tasks("train", 0), 90))
    assert tasks == list(itertools.islice(here.tasks("train", 0), 90))
    assert {score.reward for score in there.score_many([(task, task.data["answer"]) for task in tasks])} == {1.0}
    there.close()


@pytest.mark.parametrize(("stages", "hint"), [
    (3, "list of settings"), ([], "list of settings"), ([1], "list of settings"),
    ([{"scale": 1}, {"scale": 2}], r"stages\[0\].tasks"), ([{"tasks": 0}, {}], r"stages\[0\].tasks"),
    ([{"tasks": True}, {}], r"stages\[0\].tasks"), ([{"tasks": 1}, {"tasks": "x"}], r"stages\[1\].tasks"),
])
def test_malformed_stages_are_refused_in_one_line(stages, hint):
    with pytest.raises(ConfigError, match=hint) as error:
        check_stages("mine", stages)
    assert "env.mine.stages" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("isolate", [True, False])
def test_the_config_names_them(isolate):
    first, second = load_environments({
        "a": {"path": PATH, "weight": [[0, 1.0], [4, 0.5]], "isolate": isolate, "stages": STAGES},
        "b": {"path": PATH, "isolate": isolate, "scale": 3}})
    assert (first.weights, second.weights, first.label) == (((0, 1.0), (4, 0.5)), ((0, 1.0),), "a (plain)")
    assert isinstance(first.environment, EnvironmentProcess) == isolate
    tasks = list(itertools.islice(mixture([first, second], 0), 30))
    assert [task.stage for place, task in tasks if place == 0] == [0] * 5 + [1] * 6
    with pytest.raises((ConfigError, TaskError), match=r"env\.a\.stages\[1\].*nonsense"):
        load_environments({"a": {"path": PATH, "isolate": isolate, "stages": [{"tasks": 1}, {"nonsense": 1}]}})


class Turns:
    """Gives text and chat messages in turn."""

    def tasks(self, split, seed):
        for number in range(4):
            yield Task([{"role": "user", "content": "a"}] if number % 2 else "a")

    def score(self, task, completion):
        return Score(0.0)


def test_text_and_chat_messages_in_one_mixture_are_refused_before_they_reach_a_batch():
    tasks = mixture([LoadedEnvironment("turns", Turns())], 0)
    next(tasks)
    with pytest.raises(TaskError, match="environment turns gives text and chat messages in turn"):
        next(tasks)
