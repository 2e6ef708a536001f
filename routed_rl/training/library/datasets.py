"""Checks the datasets and reward functions of a script, and finds the environments of the rows.

Not covered: the rows of a streamed dataset, and the rows of a dataset with a custom transform, because its columns are not known
before a row is read.
"""

from typing import Any, cast

from datasets import ClassLabel, Dataset, IterableDataset
from torch import nn

from routed_rl.config import name_problem
from routed_rl.envs.loading import TAKEN
from routed_rl.envs.rewards import NOT_PASSED, call_problem
from routed_rl.envs.splits import GIVEN, IMAGES
from routed_rl.errors import ConfigError

ONLY = "data"
"""The name of the single environment if no column names environments."""


def check_datasets(trained: Any, evaluated: Any, arguments: Any, trl: dict[str, Any]) -> None:
    """ConfigError for a dataset with which training would fail, or would make no step. `trained`, `evaluated`: the arguments
    `train_dataset` and `eval_dataset`. `arguments`: TRL's settings. `trl`: the arguments that are passed on to TRL; if there is
    an `environment_factory` among them, the datasets need no prompts."""
    prompts = not trl.get("environment_factory")
    if trained is not None or prompts:
        _check("train_dataset", trained, prompts=prompts)
    for name, dataset in _evaluated(evaluated).items():
        _check(name, dataset, prompts=prompts)
    needed = arguments.generation_batch_size // arguments.num_generations
    if isinstance(trained, Dataset) and len(trained) < needed:
        raise ConfigError(f"train_dataset has {len(trained) or 'no'} rows, and a generation takes {needed} prompts "
                          f"({arguments.generation_batch_size} completions, {arguments.num_generations} of each prompt), so no "
                          "step would be made; give more rows, or lower args.per_device_train_batch_size")


def _evaluated(evaluated: Any) -> dict[str, Any]:
    """Return the datasets in the argument `eval_dataset`, by the names that they have in messages."""
    if isinstance(evaluated, dict):
        return {f"eval_dataset[{key!r}]": dataset for key, dataset in evaluated.items()}
    return {} if evaluated is None else {"eval_dataset": evaluated}


def _check(name: str, dataset: Any, *, prompts: bool) -> None:
    if isinstance(dataset, dict):
        raise ConfigError(f"{name} is a {type(dataset).__name__} of the splits {', '.join(map(str, dataset))}; give one of them, "
                          f"such as DATASETS[{next(iter(dataset), 'train')!r}]")
    if not isinstance(dataset, (Dataset, IterableDataset)):
        raise ConfigError(f"{name}={dataset!r:.40} is a {type(dataset).__name__}; give a datasets.Dataset, such as "
                          "Dataset.from_list(ROWS)")
    columns = columns_of(dataset)
    if prompts and columns is not None and "prompt" not in columns:
        way = _unhide(dataset, "prompt") or "give it one: dataset.rename_column(NAME, \"prompt\")"
        raise ConfigError(f"{name} has no column prompt (it has {', '.join(columns)}); {way}")
    for column in columns or []:
        if column in IMAGES or column in GIVEN:
            why = "images are not covered" if column in IMAGES else f"TRL gives reward functions {column} of its own"
            raise ConfigError(f"{name} has the column {column}, and {why}; leave it out: dataset.remove_columns({column!r})")


def check_prompts(trained: Any, evaluated: Any, processor: Any, trl: dict[str, Any]) -> None:
    """ConfigError if a prompt of a dataset is neither text nor chat messages of text, or empty, or if a prompt is chat messages
    and `processor` (a tokenizer or processor) has no chat template. `trained`, `evaluated`: as in `check_datasets`. `trl`: the
    arguments that are passed on to TRL; if there is a `rollout_func` or an `environment_factory` among them, prompts are not
    checked."""
    if trl.get("rollout_func") or trl.get("environment_factory"):
        return
    for name, dataset in {"train_dataset": trained, **_evaluated(evaluated)}.items():
        known = isinstance(dataset, Dataset) and "prompt" in (columns_of(dataset) or [])
        for row, prompt in enumerate(dataset["prompt"] if known else ()):
            if not _is_prompt(prompt):
                raise ConfigError(f"{name}, row {row}: the prompt is {prompt!r:.60}; give text, or chat messages of text: "
                                  "[{\"role\": \"user\", \"content\": TEXT}]")
            if isinstance(prompt, list) and not processor.chat_template:
                raise ConfigError(f"{name}, row {row}: the prompt is chat messages, and processing_class has no chat template; "
                                  "set tokenizer.chat_template, or give the prompts as text")


def _is_prompt(prompt: Any) -> bool:
    """Whether `prompt` is text, or a list of chat messages of text, and not empty."""
    if isinstance(prompt, str):
        return bool(prompt)
    return isinstance(prompt, list) and bool(prompt) and all(map(_is_message, prompt))


def _is_message(message: Any) -> bool:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str) or "content" not in message:
        return False
    content = message["content"]
    if isinstance(content, list):
        return all(isinstance(part, dict) and part.get("type") == "text" for part in content)
    return isinstance(content, str) or (content is None and bool(message.get("tool_calls")))


def columns_of(dataset: Any) -> list[str] | None:
    """Return the columns of a dataset that its rows have; None if they are not known."""
    if not isinstance(dataset, Dataset):
        return getattr(dataset, "column_names", None)
    if dataset.format["type"] == "custom":
        return None
    return dataset.column_names if dataset.format["output_all_columns"] else cast(list[str], dataset.format["columns"])


def _unhide(dataset: Any, column: str) -> str:
    """Say how to show a column that the format of a dataset hides; "" if the dataset has no such column."""
    return "its format hides that column: give dataset.with_format(None)" if column in (dataset.column_names or []) else ""


def functions_of(given: Any, trained: Any, evaluated: Any, trl: dict[str, Any]) -> list[Any]:
    """Return the argument `reward_funcs` as a list, as TRL takes it. ConfigError for an entry that TRL could not call for the
    rows of a dataset. `trained`, `evaluated`: as in `check_datasets`. `trl`: the arguments that are passed on to TRL; if there is
    an `environment_factory` among them, which may pay rewards itself, nothing is checked against the datasets and the list may be
    empty."""
    needed = not trl.get("environment_factory")
    datasets = {"": trained, **_evaluated(evaluated)} if needed else {}
    functions = list(given) if isinstance(given, (list, tuple)) else [] if given is None else [given]
    if needed and not functions:
        raise ConfigError(f"reward_funcs={given} has no function; give one that returns a number for each completion")
    for function in functions:
        if isinstance(function, nn.Module):
            if not hasattr(function, "config"):
                raise ConfigError(f"reward_funcs has a {type(function).__name__}, which is no model of transformers; give a "
                                  "function that calls it")
        elif not isinstance(function, str):
            if not callable(function) or isinstance(function, type):
                raise ConfigError(f"reward_funcs has {function!r:.60}, which is no function; give a function, or a reward model "
                                  "or its path")
            for name, dataset in datasets.items():
                _check_call(function, name, columns_of(dataset))
    return functions


def _check_call(function: Any, dataset: str, columns: list[str] | None) -> None:
    """ConfigError if TRL could not call a reward function for rows with these `columns` (None: not known). `dataset`: the name of
    the dataset in messages; empty for that which is trained on."""
    passed = [name for name in columns or [] if name not in NOT_PASSED]
    if columns is not None and (problem := call_problem(function, passed)):
        called = getattr(function, "__name__", type(function).__name__)
        raise ConfigError(f"reward_funcs: {called}{f', for the rows of {dataset}' if dataset else ''}: {problem}")


def environments_of(dataset: Any, column: str | None) -> list[str]:
    """Return the names of the environments in the column `column` of a dataset, sorted; a class label stands for its name. If
    `column` is None there is one environment, `data`. ConfigError if the column is missing or has a value that cannot be a
    name."""
    if column is None:
        return [ONLY]
    if not isinstance(dataset, Dataset):
        raise ConfigError(f"environment_column={column} needs a dataset that knows all its rows, and train_dataset is "
                          f"{type(dataset).__name__}; give a datasets.Dataset, or leave environment_column out")
    if column not in (columns := columns_of(dataset) or dataset.column_names):
        way = _unhide(dataset, column) or "set environment_column to the one that names the environment, or leave it out"
        raise ConfigError(f"train_dataset has no column {column} (it has {', '.join(columns)}); {way}")
    names, labels = set[str](), labels_of(dataset, column)
    for row, name in enumerate(label_name(value, labels) for value in dataset[column]):
        if not isinstance(name, str) or name not in names:
            if problem := name_problem(name, TAKEN):
                raise ConfigError(f"train_dataset, row {row}, column {column}: the environment's name {name!r:.60} {problem}; "
                                  "choose another one")
            names.add(name)
    return sorted(names)


def labels_of(dataset: Any, column: str | None) -> list[str] | None:
    """Return the names of the class labels in the column `column` of a dataset; None if the column holds other values, or if it
    is not known what it holds."""
    feature = (getattr(dataset, "features", None) or {}).get(column)
    return feature.names if isinstance(feature, ClassLabel) else None


def label_name(value: Any, labels: list[str] | None) -> Any:
    """Return the name for which a value of a column stands: that of the class label with this index if the column has `labels`,
    otherwise the value itself, which is also returned where a row has no label."""
    if labels is None or not hasattr(value, "__index__") or not 0 <= int(value) < len(labels):
        return value
    return labels[int(value)]


def common_labels(trained: Any, evaluated: Any, column: str | None) -> list[str] | None:
    """Return the names of the class labels in the column `column` of the datasets; None if no dataset has class labels there.
    ConfigError if two datasets have different ones. `trained`, `evaluated`: as in `check_datasets`."""
    datasets = {"train_dataset": trained, **_evaluated(evaluated)}
    found = {name: labels for name, dataset in datasets.items() if (labels := labels_of(dataset, column)) is not None}
    first, ours = next(iter(found.items()), ("", None))
    for name, labels in found.items():
        if labels != ours:
            raise ConfigError(f"{name}, column {column}, has the class labels {', '.join(labels)}, and {first} has "
                              f"{', '.join(ours or [])}; give both the same ones, by dataset.align_labels_with_mapping")
    return ours
