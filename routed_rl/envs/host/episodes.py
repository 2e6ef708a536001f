"""Episodes of an environment in a process of its own: `IsolatedEpisode` in the trainer, `OpenEpisodes` in the process.

A process that is lost takes its open episodes with it. A new one plays their turns again: an episode's answers must follow
from its task and the model's turns, as in any environment that can be resumed; one whose answers differ is a failure.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

from routed_rl.envs.core import Episode, Failure, Message, Score, Task
from routed_rl.envs.host.wire import is_plain, pack_score, pack_task, unpack_score, unpack_task
from routed_rl.envs.scoring import describe, judged
from routed_rl.errors import TaskError

MOST_OPEN = 4096
"""Episodes that a process keeps; the oldest goes first, and is played again if it is asked for after all."""


class IsolatedEpisode(Episode):
    """As the episode itself; TaskError for what it raised."""

    def __init__(self, name: str, number: int, play: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """`play` gives the process's answer to a request; TaskError where there is none in time, or it is lost over it twice."""
        self.name, self.number, self.play = name, number, play

    def start(self, task: Task) -> list[Message] | None:
        self.task = task
        reply = self._ask("start", {"task": pack_task(task)})
        self.tools, self.max_turns = reply["tools"], reply["max_turns"]
        return reply["answer"]

    def step(self, messages: list[Message]) -> list[Message] | Score:
        return self._turn("step", messages)

    def cut(self, messages: list[Message]) -> Score:
        return self._turn("cut", messages)

    def _turn(self, method: str, messages: list[Message]) -> Any:
        for lost in (False, True):
            if lost:
                self._replay(messages)
            reply = self._ask(method, {"messages": messages})
            if "answer" in reply:
                return reply["answer"]
            if "score" in reply:
                score = unpack_score(reply["score"])
                if isinstance(score, Failure):
                    raise TaskError(f"environment {self.name} {score.reason}")
                return score
        raise TaskError(f"environment {self.name}: its process ended over a turn of an episode, twice")

    def _replay(self, messages: list[Message]) -> None:
        """Bring a new process to where the lost one was: every turn of the model that was answered."""
        first = self.start(self.task)
        begun = len(self.task.prompt if first is None else first)
        turns = [place for place, message in enumerate(messages) if place >= begun and message["role"] == "assistant"]
        for place, following in itertools.pairwise(turns):
            reply = self._ask("step", {"messages": messages[:place + 1]})
            if reply.get("answer") != messages[place + 1:following]:
                raise TaskError(f"environment {self.name}: its process was lost, and an episode played again went "
                                "otherwise; its answers must follow from the task and the model's turns")

    def _ask(self, method: str, given: dict[str, Any]) -> dict[str, Any]:
        reply = self.play({"ask": "play", "number": self.number, "method": method, **given})
        if reply.get("error"):
            raise TaskError(f"environment {self.name} {reply['error']}")
        return reply


class OpenEpisodes:
    """The episodes that a process plays, by number."""

    def __init__(self) -> None:
        self.open: dict[int, Any] = {}

    def answer(self, environment: Any, request: Mapping[str, Any]) -> dict[str, Any]:
        """{answer, and after `start` tools and max_turns}, {score}, {error}, or {lost} for an episode that is not open here."""
        number, method = request["number"], request["method"]
        try:
            if method == "start":
                return self._start(environment, number, unpack_task(request["task"], sealed=False))
            if (episode := self.open.get(number)) is None:
                return {"lost": True}
            call = getattr(episode, method, None) or getattr(Episode(), method)
            return self._said(number, call([dict(message) for message in request["messages"]]))
        except (Exception, SystemExit) as error:
            self.open.pop(number, None)
            return {"error": f"raised {describe(error)}"[:500]}

    def _start(self, environment: Any, number: int, task: Task) -> dict[str, Any]:
        episode = environment.episode()
        answer = episode.start(task)
        tools = [dict(tool) for tool in getattr(episode, "tools", Episode.tools)]
        turns = int(getattr(episode, "max_turns", Episode.max_turns))
        self.open[number] = episode
        if len(self.open) > MOST_OPEN:
            del self.open[next(iter(self.open))]
        return {**plain({"answer": answer, "tools": tools}), "max_turns": turns}

    def _said(self, number: int, said: Any) -> dict[str, Any]:
        if isinstance(said, Score):
            self.open.pop(number, None)
            return {"score": pack_score(judged(said))}
        return plain({"answer": said})


def plain(reply: dict[str, Any]) -> dict[str, Any]:
    """`reply` where JSON gives back exactly the same; TypeError otherwise."""
    if not is_plain(reply):
        raise TypeError(f"an episode's answer must be a Score or messages of plain text, got {reply!r:.200}")
    return reply
