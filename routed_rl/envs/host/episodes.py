"""Episodes of an environment in a process of its own. `IsolatedEpisode` lives in the trainer, `OpenEpisodes` in the process.

When a process is lost, its open episodes are lost too. A new process plays their turns again, so an episode's answers must follow
from its task and the model's turns, as in any environment that can be resumed. If the answers differ from the first time, the
episode is a failure.
"""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

from routed_rl.envs.conversation import checked, episode_of, settings_of
from routed_rl.envs.core import Episode, Message, Score, Task
from routed_rl.envs.faults import ContractError, definition
from routed_rl.envs.host.wire import is_plain, pack_score, pack_task, unpack_score, unpack_task
from routed_rl.envs.scoring import judged

MOST_OPEN = 4096
"""How many open episodes a process keeps. If there are more, the one that was played least recently is dropped; if it is
continued after all, its turns are played again."""


class IsolatedEpisode(Episode):
    """In the trainer, behaves like the episode that has this `number` in the environment's process. An error that the episode
    raises becomes a TaskError."""

    def __init__(self, number: int, ask: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """`ask` sends a request and returns the process's answer. It raises TaskError if no answer comes in time, or if the
        request kills the process twice."""
        self.number, self.ask = number, ask

    def start(self, task: Task) -> list[Message] | None:
        self.task = pack_task(task)
        reply = self._said("start", [])
        self.tools, self.max_turns = reply["tools"], reply["max_turns"]
        return reply["answer"]

    def step(self, messages: list[Message]) -> list[Message] | Score:
        reply = self._said("step", messages)
        return unpack_score(reply["score"]) if "score" in reply else reply["answer"]

    def cut(self, messages: list[Message]) -> Score:
        return unpack_score(self._said("cut", messages)["score"])

    def _said(self, method: str, messages: list[Message]) -> dict[str, Any]:
        return self.ask({"ask": "play", "number": self.number, "method": method, "task": self.task, "messages": messages})


class OpenEpisodes:
    """The episodes that a process plays, by number. When turns are played again, `alive` is called after each of them, so that
    the trainer does not take the process for hung."""

    def __init__(self, alive: Callable[[], object]) -> None:
        self.alive = alive
        self.open: dict[int, Any] = {}

    def answer(self, environment: Any, request: Mapping[str, Any]) -> dict[str, Any]:
        """Answer a request to play one method of an episode. Returns {"answer": the episode's messages}, after `start` also with
        "tools" and "max_turns", or {"score": ...} if the episode has ended. An error that the episode raises ends the episode."""
        number, method, messages = request["number"], request["method"], request["messages"]
        task = unpack_task(request["task"], sealed=False)
        if method == "start":
            episode = episode_of(environment)
            said = {"answer": checked(episode, "start", episode.start(task))}
            said |= dict(zip(("tools", "max_turns"), settings_of(episode), strict=True))
        else:
            episode = self.open.pop(number, None) or self._played_again(episode_of(environment), task, messages)
            said = _turn(episode, method, messages)
            if isinstance(said, Score):
                return pack_score(judged(said, lambda: definition(getattr(episode, method, None))))
            said = {"answer": said}
        if not is_plain(said):
            raise ContractError(f"{method} gave what JSON cannot hold: {said['answer']!r:.100}", "give messages of plain text",
                                definition(getattr(episode, method, None)))
        self.open[number] = episode
        if len(self.open) > MOST_OPEN:
            del self.open[next(iter(self.open))]
        return said

    def _played_again(self, episode: Any, task: Task, messages: list[Message]) -> Any:
        """Bring `episode`, a new one, to the state of an episode that was lost, and return it. The model's turns in `messages`
        are played again, except the last one, which had no answer yet. ValueError if an answer differs from the first time."""
        first = episode.start(task)
        begun = len(task.prompt if first is None else first)
        turns = [place for place, message in enumerate(messages) if place >= begun and message["role"] == "assistant"]
        for place, following in itertools.pairwise(turns):
            if _turn(episode, "step", messages[:place + 1]) != messages[place + 1:following]:
                raise ValueError("its process was lost, and the episode went another way when it was played again; "
                                 "its answers must follow from the task and the model's turns")
            self.alive()
        return episode


def _turn(episode: Any, method: str, messages: list[Message]) -> Any:
    call = getattr(episode, method, None) or getattr(Episode(), method)
    return checked(episode, method, call([dict(message) for message in messages]))
