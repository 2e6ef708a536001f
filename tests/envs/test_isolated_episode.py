"""Episodes in a process of their own: the same conversations, and a process that is lost loses no episode."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
import signal
import time
from pathlib import Path

import pytest

from routed_rl.envs import Conversation, LoadedEnvironment, Played, Score, Scorer, has_episodes, load_environments
from routed_rl.envs.build import build
from routed_rl.envs.check import findings, gather, unsound
from routed_rl.errors import TaskError

PATH = f"{Path(__file__).parent / 'plugins.py'}:Adding"
TURNS = ["1", "-3", "what", "done"]


@pytest.fixture
def there():
    environment = load_environments({"mine": {"path": PATH, "isolate": {"timeout_s": 2}}})[0].environment
    yield environment
    environment.close()


def tasks(environment, count):
    return list(itertools.islice(environment.tasks("train", 0), count))


def say(conversation: Conversation, text: str) -> None:
    conversation.messages += conversation.reply(text)


def play(environment, task, turns) -> Conversation:
    conversation = Conversation(environment, task)
    for turn in turns:
        say(conversation, turn)
    return conversation


def state(conversation: Conversation):
    return conversation.messages, list(conversation.tools), conversation.ended, conversation.turns, conversation.outcome


def failure(conversation: Conversation) -> str:
    scorer = Scorer({"mine": LoadedEnvironment("mine", conversation)}, 1.0)
    assert conversation.ended and scorer.count("mine", conversation.outcome) is None
    return scorer.last_error["mine"]


def kill(environment) -> None:
    child = environment.child(0)
    os.kill(child.facts["pid"], signal.SIGKILL)
    child.process.wait()


@pytest.mark.parametrize("turns", [TURNS, [], ["1"] * 7, ["done"]])
def test_a_conversation_is_that_of_the_episode_itself(there, turns):
    here = build("mine", PATH, {})
    assert has_episodes(there)
    for task in tasks(there, 3):
        assert state(play(there, task, turns)) == state(play(here, task, turns))


def test_many_are_open_at_once_and_keep_apart(there):
    wanted = [int(task.data["answer"]) for task in tasks(there, 40)]
    open_now = [Conversation(there, task) for task in tasks(there, 40)]
    for turn in range(2):
        for conversation, number in zip(open_now, wanted, strict=True):
            say(conversation, str(number - 7 if turn == 0 else 7))
    for conversation in reversed(open_now):
        say(conversation, "done")
    assert [conversation.outcome for conversation in open_now] == [
        Score(1.0, 1.0, metrics={"sum": number, "turns": 3}) for number in wanted]


def test_a_process_killed_before_every_turn_loses_no_episode(there, caplog):
    here, task = build("mine", PATH, {}), tasks(there, 1)[0]
    conversation = Conversation(there, task)
    with caplog.at_level(logging.WARNING, "routed_rl.envs"):
        for turn in TURNS:
            kill(there)
            say(conversation, turn)
    assert state(conversation) == state(play(here, task, TURNS))
    assert there.restarts == len(TURNS) == sum("was killed by SIGKILL" in record.message for record in caplog.records)


def test_a_turn_that_ends_the_process_goes_again_once(there, tmp_path):
    task = tasks(there, 1)[0]
    other, once = play(there, task, ["5"]), play(there, task, ["1", f"once {tmp_path / 'file'}", "2"])
    assert once.messages[-1]["content"] == "sum 3"
    assert failure(play(there, task, ["1", "exit"])).endswith("failed to play: its process exited with code 7, 2 times")
    say(other, "6")
    assert other.messages[-1]["content"] == "sum 11"


def test_an_episode_that_does_not_follow_from_its_turns_is_a_failure_where_its_process_is_lost(there):
    conversation = play(there, tasks(there, 1)[0], ["pid"])
    kill(there)
    say(conversation, "1")
    assert "the episode went another way when it was played again" in failure(conversation)


@pytest.mark.slow
def test_the_limit_of_time_is_for_one_turn_also_where_many_are_played_again(there):
    there.isolation = dataclasses.replace(there.isolation, timeout_s=0.5)
    conversation = play(there, tasks(there, 1)[0], ["nap 0.2"] * 3)
    kill(there)
    say(conversation, "1")
    assert not conversation.ended and conversation.messages[-1]["content"] == "sum 1"


@pytest.mark.parametrize(("turn", "message"), [
    ("raise", "RuntimeError: the world broke"), ("object", "return a Score or messages"), ("nan", "not finite"),
    ("hang", "took longer than 2 s")])
def test_what_goes_wrong_in_a_turn_is_a_failure_and_no_reward(there, turn, message):
    assert message in failure(play(there, tasks(there, 1)[0], ["1", turn]))


def test_played_with_its_gold_it_is_sound_and_its_failures_are_raised(there):
    assert not unsound(findings(gather(lambda: Played(there), 3)))
    with pytest.raises(TaskError, match="the world broke"):
        Played(there).score(tasks(there, 1)[0], "raise")


def test_environments_in_processes_score_side_by_side():
    """Two that wait for a second each take less than the two of them one after the other."""
    path = PATH.replace("Adding", "Plain")
    loaded = {entry.name: entry for entry in load_environments({name: {"path": path} for name in "ab"})}
    loaded |= {"c": load_environments({"c": {"path": path, "isolate": False}})[0]}
    task = tasks(loaded["a"].environment, 1)[0]
    began = time.monotonic()
    found = Scorer(loaded, 1.0).score_all({"c": [(task, "wrong")], "a": [(task, "sleep 1")], "b": [(task, "sleep 1")]})
    assert time.monotonic() - began < 1.7
    rewards = {name: [score.reward for score in scores if score] for name, scores in found.items()}
    assert list(rewards.items()) == [("c", [0]), ("a", [1]), ("b", [1])]
