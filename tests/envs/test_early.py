"""Scores that are begun before the batch is complete: each completion is scored once, and none with another's score."""

from __future__ import annotations

import os
import threading
import time
from types import SimpleNamespace

import pytest

from routed_rl.envs import EnvironmentProcess, Isolation, LoadedEnvironment, Score, Scorer, Task
from routed_rl.envs.early import Early
from routed_rl.envs.host.processes import _kill
from routed_rl.errors import TaskError
from routed_rl.threads import in_thread


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


def test_an_environment_that_gives_too_few_scores_is_an_error_and_nobody_waits_for_the_rest():
    early, task = Early(), Task("p")
    pairs = [(task, "1"), (task, "2")]
    early.begin(lambda pairs: [Score(1.0)], pairs)
    assert isinstance(in_thread(lambda: early.take(pairs)).exception(1), ValueError)


def test_ctrl_c_does_not_wait_for_scores(scorer, ctrl_c):
    environment = scorer.environments["e"].environment
    environment.gate.clear()
    begin = time.monotonic()
    ctrl_c(0.05)
    threading.Timer(2, environment.gate.set).start()
    with pytest.raises(KeyboardInterrupt):
        scorer.score_all({"e": [(Task("p"), "1")]})
    assert time.monotonic() - begin < 1
    environment.gate.set()


def test_each_process_of_an_environment_scores_one_completion_at_a_time_and_none_keeps_the_program_alive():
    environment = EnvironmentProcess.__new__(EnvironmentProcess)
    environment.isolation, environment._lock, environment.start_all = Isolation(2), threading.RLock(), lambda: None
    busy, daemons = [threading.Lock(), threading.Lock()], list[bool]()

    def score(slot, task, completion):
        assert busy[slot].acquire(blocking=False)
        daemons.append(threading.current_thread().daemon)
        time.sleep(0.005)
        busy[slot].release()
        return Score(float(completion))

    environment._score = score
    found = environment.score_many([(Task("p"), f"{place}") for place in range(9)])
    assert [each.reward for each in found] == [*range(9)] and daemons == [True] * 9


class Child:
    """A process that never answers until it is killed, or has one answer for whatever is asked."""

    dead, hung, process = "was killed", False, SimpleNamespace(poll=lambda: None, returncode=-9)

    def __init__(self, answer=None, *, ready=True) -> None:
        self.answer, self.facts = answer, {"pid": 1} if ready else None
        self.asked, self.killed = threading.Event(), threading.Event()

    def send(self, message):
        self.asked.set()

    def receive(self, timeout_s, tell=None):
        if self.answer is None:
            self.killed.wait(1)
        return self.answer

    def kill(self):
        self.killed.set()
        time.sleep(0.03)  # it waits for the guard; the thread that scores does not


def test_scoring_that_the_end_of_the_program_cuts_off_starts_no_process_again(monkeypatch, caplog):
    started = []
    monkeypatch.setattr(EnvironmentProcess, "_start", lambda _: started.append(Child()) or started[-1])
    environment, task = EnvironmentProcess("e", "file.py:E", {}), Task("p")
    early = Early()
    early.begin(environment.score_many, [(task, "1")])
    assert started[0].asked.wait(1)
    _kill(environment._children, os.getpid())
    with pytest.raises(TaskError, match="environment e was closed while it had to score"):
        early.take([(task, "1")])
    assert len(started) == 1 and caplog.text == ""


def test_a_second_process_that_cannot_be_built_is_an_error_and_not_a_wait_for_ever(monkeypatch):
    refuses = Child({"refused": ["TaskError", "env.e: the port is taken"]}, ready=False)
    children = iter([Child({"score": [1.0]}), refuses])
    monkeypatch.setattr(EnvironmentProcess, "_start", lambda _: next(children))
    environment = EnvironmentProcess("e", "file.py:E", {}, None, Isolation(2))
    scoring = in_thread(lambda: environment.score_many([(Task("p"), "1")] * 4))
    assert str(scoring.exception(1)) == "env.e: the port is taken" and refuses.killed.is_set()


def test_an_environment_in_this_process_is_scored_only_when_it_is_asked_for():
    class Here:
        def score(self, task, completion):
            raise AssertionError("it may use signals, which no other thread can")

    scorer = Scorer({"e": LoadedEnvironment("e", Here())}, 0.5)
    scorer.begin("e", [(Task("p"), "1")])
    assert scorer.early.take([(Task("p"), "1")]) == [None]
