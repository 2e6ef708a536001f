"""One episode that is being played: the messages so far, and the outcome. It does not deal with tokens."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from routed_rl.envs.core import Episode, EpisodicEnvironment, Failure, Message, Score, Task
from routed_rl.envs.scoring import judged
from routed_rl.errors import TaskError

ANSWERS = ("user", "tool")
"""Roles in which an episode may answer."""


class Conversation:
    """Drives one `Episode`: `reply` after each of the model's turns, `cut` if there is no room for another one.

    `outcome` is the score, or whatever came in its place (an exception, a wrong value); `Scorer.count` takes either. An episode
    that is no subclass of `Episode` needs `start` and `step`; for the rest it gets the defaults of `Episode`.
    """

    def __init__(self, environment: EpisodicEnvironment, task: Task) -> None:
        self.messages: list[Message] = list(cast(list[Message], task.prompt))
        self.outcome: object = None
        self.ended = False
        self.turns = 0
        self.tools: Sequence[Mapping[str, Any]] = ()
        self._max_turns = 1
        self._episode: Any = None
        self._guarded(lambda: self._start(environment, task))
        self.first = len(self.messages)
        """The number of messages before the model's first turn."""

    def reply(self, text: str) -> list[Message]:
        """Give the model's turn to the episode and return its answer, or [] if the episode has ended."""
        if self.ended:
            return []
        self.messages.append({"role": "assistant", "content": text})
        self.turns += 1
        answer = self._guarded(lambda: self._episode.step(self._copy()))
        if self.ended or isinstance(answer, Score):
            self._end(answer)
            return []
        if not _are_messages(answer, ANSWERS):
            self._end(TypeError(f"step returned {answer!r}, which is neither a Score nor messages of the roles {ANSWERS}"))
            return []
        if self.turns >= self._max_turns:
            self.cut()
            return []
        return list(cast(list[Message], answer))

    def cut(self) -> None:
        """End the episode as it stands, because turns or tokens ran out."""
        self._end(self._guarded(lambda: getattr(self._episode, "cut", Episode().cut)(self._copy())))

    def _start(self, environment: EpisodicEnvironment, task: Task) -> None:
        self._episode = environment.episode()
        first = self._episode.start(task)
        if first is not None:
            if not _are_messages(first, ("system", "assistant", *ANSWERS)):
                raise TypeError(f"start returned {first!r}, which is neither None nor messages")
            self.messages = list(first)
        self.tools = list(getattr(self._episode, "tools", Episode.tools))
        self._max_turns = int(getattr(self._episode, "max_turns", Episode.max_turns))

    def _copy(self) -> list[Message]:
        """A copy of the messages, because an episode may change what it is given."""
        return [dict(message) for message in self.messages]

    def _guarded(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:
            self._end(error)
            return None

    def _end(self, outcome: object) -> None:
        if self.ended:
            return
        if isinstance(outcome, Score):
            taken = Failure("calls a flag or a metric 'turns', which counts the model's turns; rename it", fatal=True)
            outcome = (taken if "turns" in outcome.values()
                       else dataclasses.replace(outcome, metrics={**outcome.metrics, "turns": self.turns}))
        self.outcome, self.ended = outcome, True


class Played:
    """An environment of several turns, scored like one of a single turn. A completion is a list of turns, whose last one is
    repeated if the episode goes on, or one text for every turn. This tries an environment out without a model."""

    def __init__(self, environment: EpisodicEnvironment) -> None:
        self.environment, self.tasks = environment, environment.tasks
        if callable(gold := getattr(environment, "gold", None)):
            self.gold = gold

    def score(self, task: Task, completion: str | list[str]) -> Score:
        """The score of the played episode; any error in it is raised."""
        turns = [completion] if isinstance(completion, str) else completion
        conversation = Conversation(self.environment, task)
        for turn in itertools.chain(turns, itertools.repeat(turns[-1])):
            conversation.messages += conversation.reply(turn)
            if conversation.ended:
                break
        outcome = judged(conversation.outcome)
        if isinstance(outcome, Failure):
            raise TaskError(outcome.reason)
        return outcome


def _are_messages(value: object, roles: tuple[str, ...]) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(
        isinstance(message, dict) and message.get("role") in roles and isinstance(message.get("content"), str)
        for message in value)
