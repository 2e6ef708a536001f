"""An environment from a dataset and reward functions, as TRL takes them: `env.NAME.dataset`, `env.NAME.reward`.

The model is paid TRL's weighted sum over the functions that return a number. If every function returns None, the scoring has
failed and is counted as a failure. A further function, `solve`, may say whether a task is truly solved; without this function,
`Score.solve` is None (unknown).
"""

import copy
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from routed_rl.envs.core import Prompt, Score, Task
from routed_rl.envs.rewards import Functions, Said, paid_labels
from routed_rl.envs.splits import divided, prompt_keys
from routed_rl.envs.table import SPLIT, read_table
from routed_rl.errors import ConfigError


class NoReward(ValueError):
    """Every reward function returned None."""


class DatasetEnvironment:
    """An environment from a dataset. `dataset` is a file, a folder of `save_to_disk`, or a name on the Hub. `reward` (one or a
    list), `solve` and each of `flags` name a function, as FILE.py:function.

    `holdout` is the share of the prompts that are held back for evaluation; with 0, evaluation uses the rows for training. The
    text of a prompt decides whether it is held back, so that no prompt is in both splits, and neither the order of the rows nor
    the seed matters. With `eval_split`, evaluation uses the rows of that split of the dataset, and `holdout` has no effect.
    `chat=true` turns a prompt that is text into the message of a user.
    """

    def __init__(self, dataset: str = "", reward: str | list[str] = "", reward_weights: list[float] | None = None,
                 solve: str = "", flags: Mapping[str, str] | None = None, prompt_column: str = "prompt", chat: bool = False,
                 dataset_config: str | None = None, split: str | None = None, eval_split: str | None = None,
                 holdout: float = 0.1, token_env: str | list[str] | None = None) -> None:
        """The parameters are those of the class. `token_env` names environment variables with secrets, such as HF_TOKEN, that the
        Hub, or a function of `reward`, `solve` or `flags`, needs; the process of the environment sees these."""
        if not dataset:
            raise ConfigError(f"reward={reward} has no rows; set dataset to a file, a saved folder, or a name on the Hub")
        if not reward:
            raise ConfigError(f"dataset={dataset} has no reward; set reward=FILE.py:function, or path to a class of your own")
        if not isinstance(chat, bool):
            raise ConfigError(f"chat={chat} must be true or false")
        if isinstance(holdout, bool) or not isinstance(holdout, (int, float)) or not 0 <= holdout < 1:
            raise ConfigError(f"holdout={holdout} is no share; give a number from 0 to below 1, such as 0.1")
        if eval_split and eval_split == (split or SPLIT):
            raise ConfigError(f"eval_split={eval_split} is the split that trains; give another one, or leave it out: holdout=0.1")
        self.prompt_column, self.chat = prompt_column, chat
        table = read_table(dataset, dataset_config, split)
        keys = prompt_keys(f"dataset={dataset}", table, prompt_column, chat=chat)
        self.places = {name: (table, rows) for name, rows in divided(dataset, keys, 0 if eval_split else holdout).items()}
        if eval_split:
            held = read_table(dataset, dataset_config, eval_split)
            prompt_keys(f"dataset={dataset} split={eval_split}", held, prompt_column, chat=chat)
            if missing := [name for name in table.columns if name not in held.columns]:
                raise ConfigError(f"dataset={dataset} split={eval_split} has no column {missing[0]}, which the split that trains "
                                  "has; add it, or take another eval_split")
            self.places["eval"] = held, list(range(len(held)))
        self.reward = Functions("reward", reward, table.columns)
        self.weights = _weights(reward_weights, self.reward)
        self.truth = _one("solve", solve, table.columns) if solve else None
        self.flags = _flags(flags, table.columns)

    def tasks(self, split: str, seed: int) -> Iterator[Task]:
        """Yield one task for each row of `split`, in an order that `seed` decides."""
        table, places = self.places[split]
        for place in random.Random(f"{split} {seed}").sample(places, len(places)):
            row = table.row(place)
            yield Task(self._prompt(row[self.prompt_column]), {name: value for name, value in row.items() if name != "prompt"})

    def score(self, task: Task, completion: str) -> Score:
        """Score a completion by the functions. NoReward if every reward function returns None."""
        paid, truth, *named = [_said(functions, task, completion)
                               for functions in (self.reward, self.truth, *self.flags.values())]
        known = [weight * value for weight, value in zip(self.weights, paid.values, strict=True) if value is not None]
        if not known:
            raise NoReward(f"no reward function applies to this row: {', '.join(self.reward.names)} returned None")
        seen = {name: value for name, said in zip(self.flags, named, strict=True) if (value := said.values[0]) is not None}
        metrics = _by_function(self.reward.names, paid)
        for said in (paid, truth, *named):
            metrics |= said.metrics
        return Score(sum(known), truth.values[0], seen, metrics)  # type: ignore[arg-type]

    def _prompt(self, prompt: Any) -> Prompt:
        if isinstance(prompt, str):
            return [{"role": "user", "content": prompt}] if self.chat else prompt
        # Each row of a table has every key of every message, with None where a message lacks the key.
        return [{key: value for key, value in message.items() if value is not None} for message in prompt]


def _said(functions: Functions | None, task: Task, completion: str) -> Said:
    """Return the answers of `functions` about a completion. A function may change what it is given, and then the functions of
    other settings, and other completions of the task, still see the row itself. Only reward functions see one another's changes,
    as with TRL."""
    if functions is None:
        return Said([None])
    prompt, data = copy.deepcopy((task.prompt, dict(task.data)))
    return functions.call(prompt, completion, data)


def _weights(given: list[float] | None, functions: Functions) -> list[float]:
    """One weight for each reward function; 1 by default, as in TRL."""
    count = len(functions.names)
    if given is None:
        return [1.0] * count
    if not isinstance(given, list) or len(given) != count or not all(
            isinstance(weight, (int, float)) and not isinstance(weight, bool) for weight in given):
        raise ConfigError(f"reward_weights={given} must be one number for each of the {count} reward functions "
                          f"({', '.join(functions.names)})")
    return given


def _by_function(names: Sequence[str], paid: Said) -> dict[str, float]:
    """Metrics with the amount that each reward function paid, without functions that returned None. Empty if there is only one
    function."""
    if len(names) == 1:
        return {}
    return {label: value for label, value in zip(paid_labels(names), paid.values, strict=True) if value is not None}


def _one(setting: str, path: Any, columns: Sequence[str]) -> Functions:
    if not isinstance(path, str):
        raise ConfigError(f"{setting}={path!r} must be one function; give FILE.py:function")
    return Functions(setting, path, columns)


def _flags(given: Any, columns: Sequence[str]) -> dict[str, Functions]:
    if given is not None and not isinstance(given, Mapping):
        raise ConfigError(f"flags={given!r} must name a function for each flag; give {{hack: FILE.py:function}}")
    if problem := Score(0.0, flags=list(given or {})).wrong_name:
        raise ConfigError(f"flags {problem}; rename it")
    return {name: _one(f"flags.{name}", path, columns) for name, path in (given or {}).items()}
