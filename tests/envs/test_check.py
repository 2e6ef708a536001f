"""`env check`: each kind of unsound environment is found by the one check that is for it, and a sound one passes."""

from __future__ import annotations

from pathlib import Path

import pytest

from routed_rl.envs import EnvironmentProcess, Failure, Score, Task
from routed_rl.envs.check import CHECKS, findings, gather, unsound
from routed_rl.envs.check.checks import is_right, junk_scores_nothing
from routed_rl.envs.check.evidence import Evidence, Trial
from tests.envs import unsound as environments

FILE = Path(__file__).parent / "unsound.py"
EXPECTED = {
    "GoldScoresHalf": {"gold": "20 of 20 not full", "junk": "earns 1.00"},
    "GoldIsNotPaid": {"gold": "reward 0, solve 1"},
    "AnythingScores": {"junk": "0 earns 1.00, True earns 1.00, the prompt earns 1.00, very long earns 1.00"},
    "EmptyScores": {"junk": "empty earns 1.00"},
    "EchoScores": {"junk": "the prompt earns 1.00"},
    "NoneScores": {"junk": "None earns 1.00"},
    "JunkIsSolved": {"junk": "empty earns 1.00"},
    "Raises": {"raises": "on lone surrogates: raised UnicodeEncodeError"},
    "NotFinite": {"finite": "on 0: returned Score"},
    "Slow": {"time": "on very long"},
    "SeedIgnored": {"seed": "20 of 20 tasks differ under one seed"},
    "NoEval": {"tasks": "no task for split 'eval'"},
    "NoTasks": {"tasks": "no tasks today"},
}


def checked(name: str, samples: int = 20) -> dict[str, str]:
    found = findings(gather(getattr(environments, name), samples))
    assert tuple(finding.check for finding in found) == tuple(CHECKS)
    return {finding.check: finding.detail for finding in unsound(found)}


@pytest.mark.parametrize("name", EXPECTED)
def test_what_is_unsound_is_found_and_nothing_else(name):
    found = checked(name, 1 if name == "Slow" else 20)
    assert found.keys() == EXPECTED[name].keys()
    assert all(part in found[check] for check, part in EXPECTED[name].items())


@pytest.mark.parametrize("name", ["Sound", "NoGold"])
def test_a_sound_environment_passes(name):
    assert checked(name) == {}


def test_without_gold_it_is_not_judged_and_junk_still_is():
    found = {finding.check: finding.sound for finding in findings(gather(environments.NoGold, 5))}
    assert found["gold"] is None and found["junk"] is True


def test_an_environment_without_gold_is_not_judged_in_a_process_of_its_own_either():
    """Nor is a task whose solution the environment does not know."""
    opened = [EnvironmentProcess("mine", f"{FILE}:NoGold", {}) for _ in range(2)]
    found = findings(gather(iter(opened).__next__, 5))
    for environment in opened:
        environment.close()
    assert unsound(found) == [] and {finding.check: finding.sound for finding in found}["gold"] is None
    unknown = gather(environments.GoldUnknown, 5)
    assert unknown.gold == {} and unsound(findings(unknown)) == []


def test_what_fails_again_and_again_is_not_tried_on_every_task():
    """Each failure may be a hang; that the scorer is not sound is clear by then."""
    seen = gather(environments.Raises, 20)
    assert sum(isinstance(trial.result, Failure) and trial.kind == "lone surrogates" for trial in seen.trials) == 3


def test_without_tasks_nothing_is_judged():
    found = {finding.check: finding.sound for finding in findings(gather(environments.NoTasks, 5))}
    assert found.pop("tasks") is False and set(found.values()) == {None}


def test_an_order_that_changes_from_process_to_process_is_found():
    """Two environments in one process agree; in processes of their own, as `env check` runs them, they do not."""
    assert checked("HashOrder") == {}
    opened = [EnvironmentProcess("mine", f"{FILE}:HashOrder", {}) for _ in range(2)]
    seen = gather(iter(opened).__next__, 5)
    for environment in opened:
        environment.close()
    assert [finding.check for finding in unsound(findings(seen))] == ["seed"]


def test_what_dies_in_its_process_is_a_finding_not_a_crash():
    found = findings(Evidence(problem=Failure("it could not be built")))
    assert [(finding.check, finding.sound) for finding in found][:4] == [
        ("tasks", False), ("seed", None), ("gold", None), ("junk", None)]
    assert len(found) == len(CHECKS)


@pytest.mark.parametrize(("kind", "completion", "gold", "right"), [
    ("0", "0", "0", True), ("0", "0", "0.0", True), ("0", "0", "-0", True), ("0", "0", "10", False),
    ("True", "True", " true\n", True), ("True", "True", "yes", False), ("empty", "", "", True), ("None", None, "none", True),
    ("the prompt", "Add 0 and 5", "5", True), ("the prompt", "Add 5 and 0", "5", False),
])
def test_junk_that_is_the_right_answer_by_chance_is_not_held_against_it(kind, completion, gold, right):
    assert is_right(Trial(kind, Task("?"), completion, Score(0), 0), gold) == right


def test_a_fraction_of_the_reward_for_any_answer_is_not_junk_scoring_but_more_is():
    def seen(reward: float) -> Evidence:
        task = Task("?")
        return Evidence([task], [task], {0: "x"}, [Trial("gold", task, "x", Score(2.0, 1.0), 0),
                                                  Trial("0", task, "0", Score(reward), 0),
                                                  Trial("empty", task, "", Failure("raised"), 0)])

    assert junk_scores_nothing(seen(0.1))[0] and not junk_scores_nothing(seen(0.12))[0]
