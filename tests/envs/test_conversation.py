"""One episode: what it is given, how it ends, and that nothing it does wrong becomes a reward."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

import pytest

from routed_rl.envs import (
    Conversation,
    Episode,
    EpisodicEnvironment,
    Failure,
    LoadedEnvironment,
    Score,
    Scorer,
    Task,
    has_episodes,
    task_stream,
)
from routed_rl.envs.build import build
from routed_rl.errors import ConfigError, TaskError

TASK = Task([{"role": "user", "content": "go"}], {"secret": 1})
AGAIN = [{"role": "user", "content": "again"}]


class Scripted(Episode):
    """`step` answers with the results of these calls, one a turn."""

    def __init__(self, *answers: Callable[[], Any], **attributes: Any) -> None:
        self.answers, self.given = list(answers), []
        for name, value in attributes.items():
            setattr(self, name, value)

    def step(self, messages):
        self.given.append([dict(message) for message in messages])
        messages.clear()  # what an episode does to its copy is its own business
        return self.answers.pop(0)()


class World:
    def __init__(self, episode: Callable[[], Any]) -> None:
        self.episode = episode

    def tasks(self, split: str, seed: int):
        yield TASK


def talk(*answers: Callable[[], Any], **attributes: Any) -> tuple[Conversation, Scripted]:
    episode = Scripted(*answers, **attributes)
    return Conversation(World(lambda: episode), TASK), episode


def test_step_sees_the_whole_conversation_and_its_score_ends_it():
    conversation, episode = talk(lambda: AGAIN, lambda: Score(1.0, metrics={"x": 2}))
    answer = conversation.reply("one")
    assert answer == AGAIN
    conversation.messages += answer
    assert conversation.reply("two") == [] and conversation.reply("three") == []
    assert conversation.outcome == Score(1.0, metrics={"x": 2, "turns": 2})
    said = [{"role": "assistant", "content": "one"}, *AGAIN, {"role": "assistant", "content": "two"}]
    assert conversation.messages == episode.given[-1] == [*TASK.prompt, *said]


def test_first_messages_and_limits_are_the_episodes():
    conversation, _ = talk(lambda: AGAIN, max_turns=1, start=lambda task: [{"role": "system", "content": str(task.data)}],
                           tools=[{"name": "x"}])
    assert conversation.messages == [{"role": "system", "content": "{'secret': 1}"}] and conversation.first == 1
    assert conversation.tools == [{"name": "x"}]
    assert conversation.reply("one") == []
    assert conversation.outcome == Score(0.0, flags=["cut"], metrics={"turns": 1})


def test_what_is_cut_is_scored_by_cut_with_the_models_last_turn():
    seen = []
    conversation, _ = talk(lambda: AGAIN, cut=lambda messages: seen.append(messages) or Score(0.25))
    conversation.reply("one")
    conversation.cut()
    assert seen[0][-1] == {"role": "assistant", "content": "one"} and conversation.outcome.reward == 0.25


def test_an_episode_of_ones_own_kind_needs_start_and_step_alone():
    class Own:
        def start(self, task):
            return None

        def step(self, messages):
            return AGAIN

    conversation = Conversation(World(Own), TASK)
    for _ in range(Episode.max_turns):
        conversation.reply("one")
    assert conversation.outcome == Score(0.0, flags=["cut"], metrics={"turns": Episode.max_turns})


def boom() -> Any:
    raise KeyError("x")


@pytest.mark.parametrize(("answer", "message"), [
    (boom, "raised KeyError: 'x'"), (lambda: None, "step returned None"), (lambda: [], "step returned"),
    (lambda: 1.0, "step returned"), (lambda: [{"role": "assistant", "content": "me"}], "step returned"),
    (lambda: [{"role": "user", "content": None}], "step returned"),
    (lambda: Score(float("nan")), "not finite")])
def test_whatever_goes_wrong_is_a_failure_and_no_reward(answer, message):
    conversation, _ = talk(answer)
    assert conversation.reply("one") == []
    scorer = Scorer({"x": LoadedEnvironment("x", World(Scripted))}, 1.0)
    assert scorer.count("x", conversation.outcome) is None
    assert scorer.failed["x"] == scorer.scored["x"] == 1 and message in scorer.last_error["x"]


@pytest.mark.parametrize("where", ["episode", "start", "wrong start", "cut"])
def test_errors_outside_step_are_failures_too(where):
    if where == "episode":
        conversation = Conversation(World(boom), TASK)
    elif where == "cut":
        conversation, _ = talk(lambda: AGAIN, max_turns=1, cut=lambda messages: boom())
    else:
        conversation, _ = talk(start=(lambda task: boom()) if where == "start" else (lambda task: ["hello"]))
    assert conversation.messages == TASK.prompt  # there is still something to put before the model
    assert conversation.reply("one") == [] and isinstance(conversation.outcome, Failure)


@pytest.mark.parametrize(("attributes", "reason"), [
    ({"tools": [boom]}, r"tools is \[<function boom.*; give a list of JSON schemas, as .*get_json_schema"),
    ({"tools": boom}, "tools is <function boom"), ({"max_turns": None}, "max_turns is None; give a whole number")])
def test_tools_that_are_functions_and_turns_that_are_no_number_are_told_and_do_not_reach_the_chat_template(attributes, reason):
    conversation, _ = talk(lambda: AGAIN, **attributes)
    assert isinstance(conversation.outcome, Failure) and re.search(reason, conversation.outcome.text)
    assert "test_conversation.py:" in conversation.outcome.place and conversation.tools == ()


def test_a_plug_in_that_calls_exit_is_a_failure_and_does_not_end_the_run():
    conversation, _ = talk(lambda: sys.exit(0))
    assert conversation.reply("one") == [] and isinstance(conversation.outcome, Failure)
    assert "SystemExit" in conversation.outcome.reason
    world: Any = World(boom)
    world.tasks = lambda split, seed: sys.exit(0)
    with pytest.raises(TaskError, match="environment x.*SystemExit.*leave exit\\(\\) out"):
        next(task_stream(LoadedEnvironment("x", world), "train", 0))


@pytest.mark.parametrize(("body", "fits"), [
    ("def episode(self): ...", True), ("def score(self, task, completion): ...", True), ("x = 1", False)])
def test_an_environment_scores_or_plays(tmp_path, body, fits):
    (tmp_path / "e.py").write_text(f"class E:\n    def tasks(self, split, seed): ...\n    {body}\n")
    if fits:
        environment = build("e", f"{tmp_path}/e.py:E", {})
        assert has_episodes(environment) == isinstance(environment, EpisodicEnvironment) == ("episode" in body)
    else:
        with pytest.raises(ConfigError, match=r"score\(task, completion\), or episode\(\)"):
            build("e", f"{tmp_path}/e.py:E", {})
