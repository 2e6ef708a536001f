"""Calls reward functions as TRL 1.16 does, but with one completion at a time, so that every list has one entry.

A function gets by keyword `prompts`, `completions` (text, or a list with one assistant message if the prompt is chat messages),
every column of the row except `prompt`, `completion` and `completion_ids`, and further `log_metric`, `log_extra`, and
`trainer_state`, which is None. It returns a list with one number, or with None if it does not apply to the row; it may be async.
Not covered: `completion_ids` (reading them raises), functions that compare the rows of a batch, reward models. Values given to
`log_extra` are dropped; values given to `log_metric` become metrics of the completion, without those that are nan, as in TRL.
"""

import asyncio
import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from routed_rl.envs.build import find_object
from routed_rl.envs.core import Prompt
from routed_rl.envs.faults import ContractError, definition
from routed_rl.errors import ConfigError

OURS = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
NOT_PASSED = ("prompt", "completion", "completion_ids")
"""Columns of the dataset that TRL does not pass to reward functions."""
NO_IDS = "completion_ids are not given to the reward functions of an environment; read completions"


class NotGiven(Sequence[Any]):
    """A placeholder for `completion_ids`. Reading it raises an error that says that they are not supported."""

    def __getitem__(self, index: Any) -> NoReturn:
        raise TypeError(NO_IDS)

    def __len__(self) -> NoReturn:
        raise TypeError(NO_IDS)


@dataclass
class Said:
    """The values that several functions returned for one completion, in the order of the functions, and the metrics that the
    functions logged."""

    values: list[float | None]
    metrics: dict[str, float] = field(default_factory=dict)

    def log_metric(self, name: str, value: float) -> None:
        """TRL's `log_metric`. TRL takes any name; here a name has no `/`, `.` or space, in place of which it gets `_`."""
        if value == value:  # nan is not
            self.metrics[re.sub(r"[/.\s]+", "_", str(name))] = value


class Functions:
    """One or more reward functions, found by their `paths`. `setting` is the name of the setting that holds the paths, and
    `columns` are those of the dataset."""

    def __init__(self, setting: str, paths: Any, columns: Sequence[str]) -> None:
        """ConfigError if a function is not found, or cannot take the arguments that it will be given."""
        listed = [paths] if isinstance(paths, str) else paths
        if not isinstance(listed, list) or not listed or not all(isinstance(path, str) and path for path in listed):
            raise ConfigError(f"{setting}={paths!r} names no function; give FILE.py:function, package.module:function, or a list")
        self.passed = [name for name in columns if name not in NOT_PASSED]
        self.names = [path.rpartition(":")[2] for path in listed]
        self.functions = [self._found(setting, path) for path in listed]
        self._loop: asyncio.AbstractEventLoop | None = None

    def _found(self, setting: str, path: str) -> Callable[..., Any]:
        function = find_object(setting, path, "function")
        if not callable(function) or isinstance(function, type):
            raise ConfigError(f"{setting}={path} is {type(function).__name__}, no function; give a function, or an object with "
                              "__call__, such as an instance of a class")
        if problem := call_problem(function, self.passed):
            raise ConfigError(f"{setting}={path}: {problem}")
        return function

    def call(self, prompt: Prompt, completion: str, data: dict[str, Any]) -> Said:
        """Call every function for one completion; `data` has the columns of the row. An exception in a function is passed on.
        ContractError if a function returns anything but a list with one number or None."""
        said = Said([])
        answer = completion if isinstance(prompt, str) else [{"role": "assistant", "content": completion}]
        given: dict[str, Any] = {name: [data[name]] for name in self.passed} | {
            "prompts": [prompt], "completions": [answer], "completion_ids": NotGiven(), "trainer_state": None,
            "log_extra": lambda column, values: None, "log_metric": said.log_metric}
        found = [function(**given) for function in self.functions]
        if any(map(inspect.isawaitable, found)):
            found = self._awaited(found)
        said.values += [_only(*each) for each in zip(self.names, self.functions, found, strict=True)]
        return said

    def _awaited(self, found: list[Any]) -> list[Any]:
        """Await all awaitable entries of `found` at once and return the values of all. Every call uses the same event loop,
        because an async client that a plug-in keeps between calls works only in the loop of its first use."""
        async def together() -> list[Any]:
            return await asyncio.gather(*(each if inspect.isawaitable(each) else _at_once(each) for each in found))

        self._loop = self._loop or asyncio.new_event_loop()
        return self._loop.run_until_complete(together())


def call_problem(function: Callable[..., Any], columns: Sequence[str]) -> str:
    """The reason why a reward function cannot be called as TRL does, with the way out; empty if it can be called. `columns` are
    the columns of the dataset that the function is given."""
    try:
        inspect.signature(function).bind(**dict.fromkeys([*columns, *OURS]))
    except TypeError as error:
        line = definition(function)
        return (f"{line and f'{line}: '}cannot be called as TRL does: {error}; it is given {', '.join(OURS)} and the columns "
                f"{', '.join(columns) or '(none)'}: take **kwargs for what it does not use")
    except ValueError:
        pass  # a builtin that has no signature
    return ""


def paid_labels(names: Sequence[str]) -> list[str]:
    """For each function, the name of the metric for the amount that it paid: `paid_NAME`, with a number if the name is
    repeated."""
    return [f"paid_{name}" if name not in names[:place] else f"paid_{name}_{place}" for place, name in enumerate(names)]


async def _at_once(value: Any) -> Any:
    return value


def _only(name: str, function: Callable[..., Any], returned: Any) -> float | None:
    """The only entry, a number or None, of the list `returned`; ContractError with the function's line if `returned` is anything
    else."""
    problem = ""
    try:
        values = None if isinstance(returned, (str, bytes, dict)) else list(returned)
    except TypeError:  # no list, or an array without dimensions
        values = None
    if values is None:
        problem = f"{name} returned {returned!r:.60}, no list"
    elif len(values) != 1:
        problem = f"{name} returned {len(values)} values for 1 completion"
    elif isinstance(values[0], (str, bytes)):
        problem = f"{name} returned [{values[0]!r:.60}], which is text"
    else:
        try:
            return None if values[0] is None else float(values[0])
        except (TypeError, ValueError):
            problem = f"{name} returned [{values[0]!r:.60}], which is no number"
    raise ContractError(problem, "return a list with one number, or None, for each completion", definition(function), "no score")
