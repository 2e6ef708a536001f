"""Scores that are begun before the batch is complete: each completion is scored once, and none with another's score."""

from __future__ import annotations

import threading

import pytest

from routed_rl.envs import LoadedEnvironment, Score, Scorer, Task
from routed_rl.envs.early import Early


class Counting:
    """Pays the number that a completion is, and keeps what it scored. It counts as isolated, because it scores many."""

    def __init__(self) -> None:
        self.scored: list[str] = []
        self.gate = threading.Event()

    def score_many(self, pairs):
        self.gate.wait(10)
        self.scored += [text for _, text in pairs]
        return [Score(reward=float(text)) for _, text in pairs]


@pytest.fixture
def scorer():
    environment = Counting()
    environment.gate.set()
    return Scorer({"e": LoadedEnvironment("e", environment)}, 0.5)


def test_what_was_begun_is_taken_and_counted_once_and_the_rest_is_scored(scorer):
    task, environment = Task("p"), scorer.environments["e"].environment
    scorer.begin("e", [(task, "1"), (task, "2")])
    found = scorer.score_all({"e": [(task, "2"), (task, "3"), (task, "1"), (task, "1")]})["e"]
    assert [score.reward for score in found] == [2, 3, 1, 1] and sorted(environment.scored) == ["1", "1", "2", "3"]
    assert scorer.scored["e"] == 4


def test_another_task_or_text_is_not_taken_for_it_and_what_is_left_is_forgotten(scorer):
    task, other = Task("p"), Task("p")
    scorer.begin("e", [(task, "1"), (task, "9")])
    assert [score.reward for score in scorer.score_many("e", [(other, "1")])] == [1]
    scorer.score_many("e", [(task, "1")])
    assert scorer.early.take([(task, "9")]) == [None]


def test_scoring_that_is_not_done_is_waited_for(scorer):
    task, environment = Task("p"), scorer.environments["e"].environment
    environment.gate.clear()
    scorer.begin("e", [(task, "1")])
    assert environment.scored == []
    threading.Timer(0.05, environment.gate.set).start()
    assert scorer.score_many("e", [(task, "1")])[0].reward == 1


def test_an_error_of_early_scoring_reaches_whoever_takes_it():
    early, task = Early(), Task("p")

    def breaks(pairs):
        raise RuntimeError("the process is gone")

    early.begin(breaks, [(task, "1")])
    with pytest.raises(RuntimeError, match="the process is gone"):
        early.take([(task, "1")])


def test_an_environment_in_this_process_is_scored_only_when_it_is_asked_for():
    class Here:
        def score(self, task, completion):
            raise AssertionError("it may use signals, which no other thread can")

    scorer = Scorer({"e": LoadedEnvironment("e", Here())}, 0.5)
    scorer.begin("e", [(Task("p"), "1")])
    assert scorer.early.take([(Task("p"), "1")]) == [None]
