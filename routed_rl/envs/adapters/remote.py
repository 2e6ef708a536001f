"""An environment behind a server, over HTTP: `RemoteEnvironment` scores completions, `RemoteEpisodes` plays episodes.

The protocol is JSON objects by POST. Every request may come twice (a request whose answer was lost is repeated), so a server must
answer the same request in the same way. The client, which is this module, chooses the id of an episode; `messages` is always the
whole conversation.

    /tasks          {"split", "seed", "start", "count"}      -> {"tasks": [{"prompt", "data"}, ...]}; fewer than `count`: no more
    /score          {"task": {"prompt", "data"}, "completion"} -> {"reward", "solve"?, "flags"?, "metrics"?}
    /episode/start  {"episode", "task"}                      -> {"messages"?, "tools"?, "max_turns"?}
    /episode/step   {"episode", "messages"}                  -> {"messages": [...]} or {"score": {...}}
    /episode/cut    {"episode", "messages"}                  -> {"score": {...}}: turns or tokens ran out

Not covered: streams, WebSocket, a server that answers later.
"""

import dataclasses
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from routed_rl.envs.adapters.http import JsonServer
from routed_rl.envs.core import Episode, Message, Score, Task
from routed_rl.web import Refused

COUNT = 64
"""How many tasks are requested at once."""
FIELDS = {field.name for field in dataclasses.fields(Score)}


class _Remote:
    """The connection to the server, and its tasks. `url` is the server's address. `timeout_s` and `attempts` are those of
    `JsonServer`. `token_env` names the environment variable that holds the token."""

    def __init__(self, url: str, timeout_s: float = 30.0, attempts: int = 3, token_env: str | None = None) -> None:
        self.server = JsonServer(url, timeout_s, attempts, token_env)

    def tasks(self, split: str, seed: int) -> Iterator[Task]:
        """Yield the tasks in the server's order, without end if the server has endlessly many."""
        start = 0
        while True:
            body = {"split": split, "seed": seed, "start": start, "count": COUNT}
            tasks = _get(self.server.call("/tasks", body), "tasks", list)
            yield from map(_task, tasks)
            start += len(tasks)
            if len(tasks) < COUNT:
                return


class RemoteEnvironment(_Remote):
    """Scores completions on a server."""

    def score(self, task: Task, completion: str) -> Score:
        return _score(self.server.call("/score", {"task": _plain(task), "completion": completion}))


class RemoteEpisodes(_Remote):
    """Plays episodes on a server that answers at the paths /episode/start, /episode/step and /episode/cut."""

    def episode(self) -> Episode:
        return RemoteEpisode(self.server)


class RemoteEpisode(Episode):
    """One conversation on the server; every request carries its `id`."""

    def __init__(self, server: JsonServer) -> None:
        self.server, self.id = server, uuid.uuid4().hex

    def start(self, task: Task) -> list[Message] | None:
        answer = self.server.call("/episode/start", {"episode": self.id, "task": _plain(task)})
        self.tools = answer.get("tools") or ()
        self.max_turns = int(answer.get("max_turns") or self.max_turns)
        return answer.get("messages")

    def step(self, messages: list[Message]) -> list[Message] | Score:
        answer = self.server.call("/episode/step", {"episode": self.id, "messages": messages})
        if "score" in answer:
            return _score(_get(answer, "score", dict))
        return _get(answer, "messages", list)

    def cut(self, messages: list[Message]) -> Score:
        answer = self.server.call("/episode/cut", {"episode": self.id, "messages": messages})
        return _score(_get(answer, "score", dict))


def _plain(task: Task) -> dict[str, Any]:
    return {"prompt": task.prompt, "data": dict(task.data)}


def _task(answer: Any) -> Task:
    if not isinstance(answer, Mapping) or "prompt" not in answer:
        raise Refused(f"the server gave a task without a prompt: {str(answer)[:100]}")
    return Task(answer["prompt"], answer.get("data") or {})


def _score(answer: Mapping[str, Any]) -> Score:
    """The score in a server's answer. `Refused` if the answer has no `reward`, or fields that `Score` does not have."""
    if "reward" not in answer or not set(answer) <= FIELDS:
        raise Refused(f"the server gave a score with the fields {sorted(answer)}; it needs reward, and may have {sorted(FIELDS)}")
    return Score(**answer)


def _get(answer: Mapping[str, Any], key: str, kind: type) -> Any:
    if not isinstance(answer.get(key), kind):
        raise Refused(f"the server's answer has no {key} ({kind.__name__}); it has {sorted(answer)}")
    return answer[key]
