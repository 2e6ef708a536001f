"""Checks whether a plug-in fulfils the contract of `envs.core`. The methods of the plug-in are checked once, when it is built;
their results are checked at each call.

Every complaint names the line in the plug-in and says what to write instead.
"""

import dataclasses
import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from routed_rl.envs.core import AnyEnvironment, Score, Task, has_episodes
from routed_rl.envs.faults import ContractError, Failure, definition, failure_of, shortened
from routed_rl.errors import ConfigError

WRITTEN = {"tasks": "tasks(self, split, seed)", "score": "score(self, task, completion)", "episode": "episode(self)",
           "gold": "gold(self, task)"}
"""For each method of the contract, the form in which it must be written."""
YIELD = "write yield Task(prompt, data) for each task"


def check_methods(name: str, environment: Any) -> None:
    """Raise ConfigError if a method of the environment `name` is missing, is async, or cannot be called with the arguments of the
    contract, or if its `contexts` are no mapping."""
    for method, written in WRITTEN.items():
        function = getattr(environment, method, None)
        if (method in ("episode", "gold") and not callable(function)) or (method == "score" and has_episodes(environment)):
            continue
        place = definition(function) or definition(type(environment))
        where = f"env.{name}: {place and f'{place}: '}"
        if not callable(function):
            raise ConfigError(f"{where}{method} is {type(function).__name__}, no method; write def {written}")
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            raise ConfigError(f"{where}{method} is async, which is not awaited; write def {written} without async")
        try:
            inspect.signature(function).bind(*written[:-1].split(", ")[1:])
        except TypeError as error:
            raise ConfigError(f"{where}{method}{inspect.signature(function)} does not take what it is given: {error}; write def "
                              f"{written}") from None
        except ValueError:
            pass  # a builtin that has no signature
    contexts = getattr(environment, "contexts", None)
    if contexts is not None and not isinstance(contexts, Mapping):
        line = definition(type(environment))
        raise ConfigError(f"env.{name}: {line and f'{line}: '}contexts is {_kind(contexts)}, no mapping; write "
                          'contexts = {"encourage": TEXT, "discourage": TEXT}')


def lines_of(environment: Any) -> Mapping[str, str]:
    """For each method of `WRITTEN` that the plug-in has, the place `FILE:LINE` of its definition."""
    known = getattr(environment, "plugin_lines", None)
    if isinstance(known, Mapping):
        return known
    return {method: line for method in WRITTEN if (line := definition(getattr(environment, method, None)))}


def tasks_of(environment: AnyEnvironment, split: str, seed: int) -> Iterator[Task]:
    """Yield the environment's tasks. ContractError for anything that is not a `Task`."""
    found: Any = environment.tasks(split, seed)
    if not isinstance(found, Iterable) or isinstance(found, (str, Mapping)):
        _close(found)
        raise ContractError(f"tasks returned {_kind(found)} in place of tasks", YIELD, lines_of(environment).get("tasks", ""))
    for task in found:
        if not isinstance(task, Task):
            raise ContractError(f"yielded {_kind(task)}, not a Task", YIELD, lines_of(environment).get("tasks", ""))
        yield task


def gold_of(environment: Any, task: Task) -> str | list[str] | None:
    """The environment's own solution of a task: text, a list of turns, or None if it offers none. ContractError for anything
    else."""
    method = getattr(environment, "gold", None)
    found: Any = method(task) if callable(method) else None
    if not is_gold(found):
        _close(found)
        raise ContractError(f"gold returned {_kind(found)}", "return text, for episodes a list of texts, or None",
                            lines_of(environment).get("gold", ""))
    return found


def is_gold(value: object) -> bool:
    """Whether `value` is None, text, or a list of at least one text."""
    turns = value if isinstance(value, list) else [value]
    return value is None or (len(turns) > 0 and all(isinstance(turn, str) for turn in turns))


def no_score(returned: Any, place: str) -> Failure:
    """The failure of a completion for which the plug-in returned `returned`, which is no valid `Score`. The failure names
    `place`, the line of the plug-in."""
    if isinstance(returned, Score):
        return Failure(shortened(f"returned Score(...) whose {returned.problem}"), place=place, kind="wrong number",
                       remedy="return numbers that are finite and in their range")
    if inspect.isawaitable(returned):
        _close(returned)
        remedy = "nothing is awaited: write a function without async"
    elif inspect.isgenerator(returned):
        remedy = "write return in place of yield"
    elif isinstance(returned, (bool, int, float)):
        remedy = f"write return Score({returned!r})"
    elif returned is None:
        remedy = "end each way through it with return Score(reward)"
    else:
        remedy = "write return Score(reward)"
    try:
        return Failure(shortened(f"returned {returned!r}, which is no Score"), place=place, remedy=remedy, kind="no score")
    except Exception as error:  # raised by the repr of the value itself
        return dataclasses.replace(failure_of(error, at=lambda: place), kind="no score")


def _kind(value: Any) -> str:
    """The type of `value`, for a message; a number, text, list, tuple or dict is shown by the start of its `repr` too."""
    return "None" if value is None else f"{type(value).__name__} {value!r:.40}" if isinstance(value, (
        str, int, float, list, tuple, dict)) else type(value).__name__


def _close(value: Any) -> None:
    """If `value` is a coroutine, close it, so that Python does not warn that it was never awaited."""
    if inspect.iscoroutine(value):
        value.close()
