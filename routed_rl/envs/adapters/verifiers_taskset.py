"""A verifiers v1 taskset as a single-turn environment in this process. A completion is scored by verifiers' `task.score(trace)`,
without a harness.

Not covered, and refused by name: harnesses and environment classes, tools, containers, `setup` and `finalize`, stops, intercepts,
rewards or metrics that need a runtime (verifiers would leave them out silently), judges, images, users that speak first.
"""

import asyncio
import copy
import inspect
import itertools
import json
import random
from collections.abc import Iterator, Mapping
from typing import Any

from routed_rl.envs.adapters.common import as_messages, by_text, of_split
from routed_rl.envs.build import find_object
from routed_rl.envs.core import Message, Score, Task
from routed_rl.errors import ConfigError

BLOCK = 200
"""How many tasks of an infinite taskset are read, shuffled, and divided into train and eval at a time."""
HOOKS = ("setup", "finalize", "stage_verifier")


class VerifiersTaskset:
    """An environment from a taskset. `taskset` is `FILE.py:Class`, `package.module:Class`, or the id of an installed one;
    `config` has the fields of the taskset's config.

    The reward is verifiers' own weighted sum; each of its named rewards and metrics becomes a metric of the score. `solve` is 1
    if the reward is at least `solve_at`. A finite taskset is read as a whole, at the start.
    """

    def __init__(self, taskset: str, config: Mapping[str, Any] | None = None, solve_at: float = 1.0) -> None:
        import verifiers.v1 as vf
        from verifiers.v1.utils.loaders import taskset_class

        kind = find_object("taskset", taskset) if ":" in taskset else taskset_class(taskset)
        if not (isinstance(kind, type) and issubclass(kind, vf.Taskset)):
            raise ConfigError(f"taskset={taskset} is no verifiers.v1.Taskset; v0 environments, and the environments (Env) of v1, "
                              "are not covered")
        self.name, self.solve_at = taskset, solve_at
        self.source: Any = kind(_config_type(kind).model_validate(dict(config or {})))
        first = next(iter(self.source), None)
        if first is None:
            raise ConfigError(f"taskset={taskset} yields no task")
        self.template: Any = first
        self.known = None if not self.source.bounded else [_plain(task) for task in self.source]
        self._refuse(first)

    def tasks(self, split: str, seed: int) -> Iterator[Task]:
        """Yield the tasks of `split`. The tasks of a finite taskset come once, shuffled. An infinite taskset is read in its own
        order, in blocks that are shuffled. The split of each of its tasks follows from the task's text, because a task may come
        again in a later block."""
        draw = random.Random(f"{split} {seed}")
        stream, by_blocks = iter(self.source), None
        while block := self.known or [_plain(task) for task in itertools.islice(stream, BLOCK)]:
            keys = [_key(data) for data in block]
            texts = by_text(block, keys)
            if by_blocks is None:
                by_blocks = self.known is not None or not all(texts.values())  # so few tasks that their texts leave a split empty
            mine = of_split(split, block, keys) if by_blocks else texts[split]
            for data in draw.sample(mine, len(mine)):
                yield Task(self._prompt(data), {"data": data})
            if self.known:
                return

    def score(self, task: Task, completion: str) -> Score:
        """Score a completion with verifiers. An error in one of its scorers is passed on, and ValueError is raised if verifiers
        gives no value for one of the rewards or metrics."""
        trace = asyncio.run(self._scored(task.data["data"], as_messages(task.prompt), completion))
        missing = [name for name, value in {**trace.rewards, **trace.metrics}.items() if value is None]
        if missing:
            raise ValueError(f"verifiers gave no value for {', '.join(missing)}")
        values = {name: reward.score for name, reward in trace.rewards.items()} | trace.metrics
        return Score(trace.reward, solve=float(trace.reward >= self.solve_at), metrics=values)

    async def _scored(self, data: Mapping[str, Any], prompt: list[Message], completion: str) -> Any:
        import verifiers.v1 as vf
        from verifiers.v1.state import state_cls

        task = copy.copy(self.template)
        task.data = type(task.data).model_validate(data)
        kinds: dict[str, Any] = {"system": vf.SystemMessage, "user": vf.UserMessage, "assistant": vf.AssistantMessage}
        messages = [kinds[message["role"]](content=message["content"]) for message in prompt]
        messages.append(vf.AssistantMessage(content=completion))
        nodes = [vf.MessageNode(parent=place - 1 if place else None, message=message, sampled=place == len(prompt))
                 for place, message in enumerate(messages)]
        trace = vf.Trace(task=vf.TraceTask(type=type(task).__name__, data=task.data, key=task.key, hash=task.hash),
                         agent=vf.AgentInfo(config=vf.AgentConfig()), state=state_cls(type(task))(), nodes=nodes)
        await task.score(trace)
        return trace

    def _prompt(self, data: Mapping[str, Any]) -> list[Message]:
        if data.get("prompt") is None:
            raise ValueError(f"{self.name} has a task without a prompt: a user that speaks first is not covered")
        system = [{"role": "system", "content": data["system_prompt"]}] if data.get("system_prompt") else []
        return [*system, *as_messages(data["prompt"])]

    def _refuse(self, task: Any) -> None:
        """Raise ConfigError if the taskset, whose first task is `task`, has features that the adapter does not cover; the message
        names all of them."""
        import verifiers.v1 as vf
        from verifiers.v1.utils.decorators import discover_decorated

        kind, functions = type(task), [*task.hooks("reward"), *task.hooks("metric")]
        found = {
            "containers": task.NEEDS_CONTAINER or any(data.get("image") for data in self.known or [_plain(task)]),
            "skills": any(data.get("skills") for data in self.known or [_plain(task)]),
            "tools": bool(kind.toolsets(task.config) or type(self.source).toolsets(self.source.config)),
            "judges": bool(task.config.judges),
            "stops": bool(task.hooks("stop")),
            "intercepts": bool(discover_decorated(task, "intercept")),
            **{f"the hook {name}": getattr(kind, name) is not getattr(vf.Task, name) for name in HOOKS},
            **{f"the runtime that {function.__name__} needs": True for function in functions if _needs_runtime(function)},
            "tasks that keep more than data and config": set(vars(task)) != {"data", "config"},
            "tasks without a reward of their own (an Env's)": not task.hooks("reward"),
        }
        if beyond := [name for name, present in found.items() if present]:
            raise ConfigError(f"taskset={self.name} has what this adapter does not cover: {'; '.join(beyond)}. Only single-turn "
                              "tasks with rewards that judge the reply are covered")


def _plain(task: Any) -> dict[str, Any]:
    return task.data.model_dump(mode="json", exclude_none=True)


def _key(data: Mapping[str, Any]) -> str:
    """The data of a task as text, from which the task's split follows. The fields `idx`, `id` and `name` are left out, because
    they may differ when the same task comes again."""
    return json.dumps({name: value for name, value in data.items() if name not in ("idx", "id", "name")}, sort_keys=True)


def _needs_runtime(function: Any) -> bool:
    """Whether verifiers needs a runtime to call `function`: it has a parameter `runtime` without a default. Without a runtime,
    verifiers leaves such a function out."""
    runtime = inspect.signature(function).parameters.get("runtime")
    return runtime is not None and runtime.default is inspect.Parameter.empty


def _config_type(kind: Any) -> Any:
    import verifiers.v1 as vf
    from verifiers.v1.utils.generic import concrete_type

    return concrete_type(kind, vf.TasksetConfig, origin=vf.Taskset) or vf.TasksetConfig
