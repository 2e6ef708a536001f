"""TRL's environment classes (`environment_factory`), with `reset`, public methods as tools, and `get_reward`. They are played as
episodes.

Covered as in TRL 1.16: a row of the dataset goes to `reset`, and the text that `reset` returns is appended to the prompt. The
model's tool calls run on the instance, and their results come back as messages of the role tool. A turn without a call ends the
episode, and `get_reward` gives the reward. Tool calls are read from the text, as `<tool_call>{"name": ..., "arguments":
{...}}</tool_call>`: the format of Qwen, Hermes and SmolLM. Not covered: async methods, images, reward functions beside the
environment, other formats of tool calls.
"""

import inspect
import json
import random
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from routed_rl.envs.adapters.common import as_messages, of_split, read_rows
from routed_rl.envs.build import find_object
from routed_rl.envs.core import Episode, Message, Score, Task
from routed_rl.errors import ConfigError

CALL = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|$)", re.DOTALL)
OWN = ("reset", "get_reward")
"""Public methods that are not offered to the model as tools."""


class TRLEnvironment:
    """An environment from one of TRL's environment classes. `factory` is the path of the class or function that TRL would get; it
    is called with `settings`. `dataset` is a `.jsonl` file of rows.

    A row has a `prompt` (text or messages) and the arguments of `reset`. Without a dataset every task has the prompt `prompt`,
    and `reset` gets a `seed`, which is the same for all completions of a group. An episode ends after `max_turns` turns of the
    model. `solve` is 1 if the reward is at least `solve_at`.
    """

    def __init__(self, factory: str, dataset: str | None = None, prompt: str = "", settings: Mapping[str, Any] | None = None,
                 max_turns: int = 8, solve_at: float = 1.0) -> None:
        make, arguments = find_object("factory", factory), dict(settings or {})
        self.make: Callable[[], Any] = lambda: make(**arguments)
        self.prompt, self.max_turns, self.solve_at = prompt, max_turns, solve_at
        instance = self.make()
        self.idle = [instance]
        """Instances that no episode uses; `reset` prepares each of them for its next episode, as in TRL."""
        self.names = _tool_names(instance, factory)
        self.schemas = [_schema(getattr(instance, name), factory) for name in self.names]
        self.rows = read_rows("dataset", dataset) if dataset else None
        if self.rows is None and not _takes_seed(instance.reset):
            raise ConfigError(f"{factory}: reset takes no seed, so the completions of a group would not share their task; set "
                              "dataset=FILE.jsonl, or give reset the argument seed")

    def tasks(self, split: str, seed: int) -> Iterator[Task]:
        """Yield a task for each row of the dataset, once, shuffled; without a dataset, yield tasks with new seeds without end."""
        draw = random.Random(f"{split} {seed}")
        if self.rows is None:
            while True:
                # Even seeds train, odd ones evaluate.
                yield self._task({"prompt": self.prompt, "seed": 2 * draw.getrandbits(30) + (split == "eval")})
        rows = of_split(split, self.rows, [json.dumps(row, sort_keys=True) for row in self.rows])
        for row in draw.sample(rows, len(rows)):
            yield self._task(row)

    def _task(self, row: dict[str, Any]) -> Task:
        return Task(as_messages(row.get("prompt", self.prompt)), {"row": row})

    def episode(self) -> Episode:
        return TRLEpisode(self)


class TRLEpisode(Episode):
    """One episode, played on one instance of the environment class."""

    def __init__(self, environment: TRLEnvironment) -> None:
        self.environment = environment
        self.tools, self.max_turns = environment.schemas, environment.max_turns
        self.calls = self.failures = 0

    def start(self, task: Task) -> list[Message]:
        idle = self.environment.idle
        self.instance = idle.pop() if idle else self.environment.make()
        observation = self.instance.reset(**task.data["row"])
        messages = as_messages(task.prompt)
        if observation is None:
            return messages
        if not isinstance(observation, str):
            raise TypeError(f"reset returned {type(observation).__name__}; only text is covered, no images")
        return [*messages[:-1], {**messages[-1], "content": messages[-1]["content"] + observation}]

    def step(self, messages: list[Message]) -> list[Message] | Score:
        found = CALL.findall(messages[-1]["content"])
        return [self._call(text) for text in found] if found else self._score()

    def cut(self, messages: list[Message]) -> Score:
        """Score the episode in the state that the instance has reached, as TRL does."""
        return self._score("cut")

    def _call(self, text: str) -> Message:
        self.calls += 1
        name = "unknown"
        try:
            call = json.loads(text)
            name, arguments = str(call["name"]), call.get("arguments") or {}
            if name not in self.environment.names:
                raise ValueError(f"Tool {name} not found.")
            result = getattr(self.instance, name)(**arguments)
        except Exception as error:  # the model's mistake, or the tool's answer to it: the model may read it and go on
            self.failures += 1
            return {"role": "tool", "name": name, "content": str({"error": str(error)})}
        if isinstance(result, list):
            raise TypeError(f"the tool {name} returned a list of content blocks; only text is covered, no images")
        return {"role": "tool", "name": name, "content": str(result)}

    def _score(self, *flags: str) -> Score:
        reward = self.instance.get_reward()
        self.environment.idle.append(self.instance)
        return Score(reward, solve=float(reward >= self.environment.solve_at), flags=flags,
                     metrics={"tool_calls": self.calls, "tool_failures": self.failures})


def _tool_names(instance: Any, factory: str) -> list[str]:
    methods = dict(inspect.getmembers(type(instance), predicate=inspect.isfunction))
    if missing := [name for name in OWN if name not in methods]:
        raise ConfigError(f"{factory} has no {' and no '.join(missing)}; it must have both reset and get_reward, since reward "
                          "functions beside the environment are not covered")
    public = [name for name in methods if name in OWN or not name.startswith("_")]
    if waiting := [name for name in public if inspect.iscoroutinefunction(methods[name])]:
        raise ConfigError(f"{factory} has async methods ({', '.join(waiting)}), which are not covered; make them plain ones")
    return [name for name in public if name not in OWN]


def _schema(method: Any, factory: str) -> dict[str, Any]:
    """The JSON schema of the tool `method` that TRL would give to the chat template."""
    from transformers.utils.chat_template_utils import get_json_schema

    try:
        return get_json_schema(method)
    except Exception as error:  # it raises several kinds of errors for docstrings that it cannot read
        raise ConfigError(f"{factory}: the tool {method.__name__} cannot be described to the model: {error}") from error


def _takes_seed(reset: Any) -> bool:
    return "seed" in inspect.signature(reset).parameters
