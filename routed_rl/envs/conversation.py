"""An episode that is being played: its messages so far, and its outcome. Messages are texts; this module knows nothing of
tokens."""

import dataclasses
import inspect
import itertools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from routed_rl.envs.contract import lines_of
from routed_rl.envs.core import Episode, EpisodicEnvironment, Message, Score, Task, own_copy
from routed_rl.envs.faults import ContractError, Failure, Reported, definition, failure_of, shortened
from routed_rl.envs.scoring import accepted

ANSWERS = ("user", "tool")
"""Roles in which an episode may answer."""


class Conversation:
    """Plays one episode of `environment` on `task`. Call `reply` after each turn of the model, and `cut` if there is no room for
    another turn.

    `outcome` is None until the episode has ended. Then it is the score, or a `Failure` that names the line of the plug-in;
    `Scorer.count` accepts either. An episode need not subclass `Episode`: it must define `start` and `step`, and any other
    attribute that it lacks is taken from `Episode`.
    """

    def __init__(self, environment: EpisodicEnvironment, task: Task) -> None:
        self.messages: list[Message] = list(cast(list[Message], task.prompt))
        self.outcome: Score | Failure | None = None
        self.ended = False
        self.turns = 0
        self.tools: Sequence[Mapping[str, Any]] = ()
        self._max_turns = 1
        self._episode: Any = None
        self._environment = environment
        self._guarded("start", lambda: self._start(environment, task))
        self.first = len(self.messages)
        """The number of messages before the model's first turn."""

    def reply(self, text: str) -> list[Message]:
        """Pass `text`, the model's turn, to the episode. Returns the messages with which the episode answers, or [] if the
        episode has ended."""
        if self.ended:
            return []
        self.messages.append({"role": "assistant", "content": text})
        self.turns += 1
        answer = self._guarded("step", lambda: checked(self._episode, "step", self._episode.step(self._copy())))
        if self.ended or isinstance(answer, Score):
            self._end("step", answer)
            return []
        if self.turns >= self._max_turns:
            self.cut()
            return []
        return list(cast(list[Message], answer))

    def cut(self) -> None:
        """End the episode in its present state, because its turns or tokens have run out."""
        method = getattr(self._episode, "cut", Episode().cut)
        self._end("cut", self._guarded("cut", lambda: checked(self._episode, "cut", method(self._copy()))))

    def _start(self, environment: EpisodicEnvironment, task: Task) -> None:
        self._episode = episode_of(environment)
        first = checked(self._episode, "start", self._episode.start(own_copy(task)))
        if first is not None:
            self.messages = list(first)
        self.tools, self._max_turns = settings_of(self._episode)

    def _copy(self) -> list[Message]:
        """A copy of the messages, because an episode may change what it is given."""
        return [dict(message) for message in self.messages]

    def _guarded(self, method: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except (Exception, SystemExit) as error:
            self._end(method, failure_of(error, at=lambda: self._line_of(method)))
            return None

    def _line_of(self, method: str) -> str:
        return definition(getattr(self._episode, method, None)) or lines_of(self._environment).get("episode", "")

    def _end(self, method: str, outcome: Score | Failure) -> None:
        if self.ended:
            return
        if isinstance(outcome, Score) and "turns" in outcome.values():
            outcome = Failure("calls a flag or a metric 'turns', which counts the model's turns", fatal=True, remedy="rename it",
                              place=self._line_of(method))
        elif isinstance(outcome, Score):
            outcome = dataclasses.replace(outcome, metrics={**outcome.metrics, "turns": self.turns})
        self.outcome, self.ended = accepted(outcome, lambda: self._line_of(method)), True


def episode_of(environment: Any) -> Any:
    """Return a new episode. ContractError, with the line of the method, if `episode()` returns anything that cannot be played."""
    found = environment.episode()
    missing = [method for method in ("start", "step") if not callable(getattr(found, method, None))]
    if not missing and not isinstance(found, type):
        return found
    if inspect.iscoroutine(found):
        found.close()
    problem, remedy = (f"lacks the method {missing[0]}", "an object of a class that derives from Episode") if missing else (
        "is a class", f"{found.__name__}()")
    raise ContractError(shortened(f"episode returned {found!r:.60}, which {problem}"), f"write return {remedy}",
                        lines_of(environment).get("episode", ""))


def settings_of(episode: Any) -> tuple[list[dict[str, Any]], int]:
    """The `tools` and `max_turns` that an episode has after `start`. ContractError, with the line of its class, if the tools are
    no JSON schemas, or if the other is no whole number."""
    tools, turns = getattr(episode, "tools", None) or (), getattr(episode, "max_turns", Episode.max_turns)
    try:
        return [dict(tool) for tool in tools], operator.index(turns)
    except (TypeError, ValueError):
        at_fault = not hasattr(type(turns), "__index__")
    name, value, remedy = ("max_turns", turns, "give a whole number") if at_fault else (
        "tools", tools, "give a list of JSON schemas, as transformers.utils.get_json_schema makes one of a function")
    raise ContractError(shortened(f"{name} is {value!r:.100}"), remedy, definition(type(episode)))


def checked(episode: Any, method: str, answer: Any) -> Any:
    """Return `answer`, the value that the method of this name returned in `episode`. ContractError, with the line of the method,
    if the method may not return such a value."""
    if method == "start":
        fits, allowed = answer is None or _are_messages(answer, ("system", "assistant", *ANSWERS)), "None or messages"
    else:
        fits = isinstance(answer, Score) or (method == "step" and _are_messages(answer, ANSWERS))
        allowed = f"a Score{f' or messages of the roles {ANSWERS}' if method == 'step' else ''}"
    if fits:
        return answer
    if inspect.iscoroutine(answer):
        answer.close()
        raise ContractError(f"{method} is async, which is not awaited", f"write def {method} without async",
                            definition(getattr(episode, method, None)))
    raise ContractError(shortened(f"{method} returned {answer!r}"), f"return {allowed}",
                        definition(getattr(episode, method, None)))


class Played:
    """Makes an environment with episodes look like one without episodes, so that it can be tried out where no model answers. A
    completion takes the place of the model: it is a list of turns, of which the last one is repeated if the episode goes on, or
    one text that is used for every turn."""

    def __init__(self, environment: EpisodicEnvironment) -> None:
        self.environment, self.tasks, self.plugin_lines = environment, environment.tasks, lines_of(environment)
        if callable(gold := getattr(environment, "gold", None)):
            self.gold = gold

    def score(self, task: Task, completion: str | list[str]) -> Score:
        """Play an episode with these turns and return its score. Any error in the episode is raised."""
        turns = [completion] if isinstance(completion, str) else completion
        conversation = Conversation(self.environment, task)
        for turn in itertools.chain(turns, itertools.repeat(turns[-1])):
            conversation.messages += conversation.reply(turn)
            if conversation.ended:
                break
        outcome = conversation.outcome
        assert outcome is not None
        if isinstance(outcome, Failure):
            raise Reported(outcome)
        return outcome


def _are_messages(value: object, roles: tuple[str, ...]) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(
        isinstance(message, dict) and message.get("role") in roles and isinstance(message.get("content"), str)
        for message in value)
