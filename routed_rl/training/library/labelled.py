"""Answers what a trainer asks about its rows, for a dataset in which a column names each entry's environment, and for rewards
that TRL computes by reward functions."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from datasets import Dataset
from torch import Tensor

from routed_rl.envs import Score
from routed_rl.envs.rewards import paid_labels
from routed_rl.errors import TaskError
from routed_rl.training.baselines import Payment
from routed_rl.training.completions import CompletionFiles
from routed_rl.training.library.datasets import ONLY, label_name
from routed_rl.training.scores import ScoreBook
from routed_rl.training.tasks import completion_row


class LabelledRows:
    """Implements `rows.Rows`, by which a trainer asks about its rows, for a dataset. Each group of completions is a task; the ids
    of tasks are 0, 1, .. in the order of training."""

    def __init__(self, names: list[str], column: str | None, functions: list[Callable[..., Any]], group_size: int,
                 completions: CompletionFiles, labels: list[str] | None = None) -> None:
        """`names`: the environments. `column`: the column that names an entry's environment; None if there is only one
        environment. `functions`: the reward functions that TRL calls. `group_size`: completions per group. `completions`: writes
        the files of completions. `labels`: the names of the class labels in that column, which then holds their indices; None if
        it holds names."""
        self.names, self.column, self.functions, self.labels = names, column, functions, labels
        self.group_size, self.completions = group_size, completions
        self.practising: list[bool] = []
        self.failed: list[bool] = []
        self.payment: Payment | None = None
        self._book, self._evaluated = ScoreBook(), ScoreBook()
        self._made = Counter[str]()
        """The number of tasks of each environment so far."""
        self._places: dict[int, tuple[int, int]] = {}
        self._tasks: list[int] = []
        """The id of the task of each row of the newest generation."""

    def name_of(self, row: dict[str, Any]) -> str:
        """Return the name of the environment of an entry of the dataset."""
        return ONLY if self.column is None else label_name(row[self.column], self.labels)

    def counts(self, dataset: Any) -> Counter[str]:
        """Return how many entries of a dataset each environment has; empty for a dataset that is streamed."""
        if not isinstance(dataset, Dataset):
            return Counter()
        if self.column is None:
            return Counter([ONLY] * len(dataset))
        return Counter(label_name(value, self.labels) for value in dataset[self.column])

    def tasks(self, inputs: list[dict[str, Any]]) -> list[int]:
        """Return for each row of a generation the id of its task. The rows come in whole groups. Each group gets the next free
        id, even if its prompt occurred before, and is counted as one more task of its environment."""
        self._places, first = {}, self._made.total()
        for group, row in enumerate(inputs[::self.group_size]):
            name = self.name_of(row)
            self._places[first + group] = self.names.index(name), self._made[name]
            self._made[name] += 1
        self._tasks = [first + row // self.group_size for row in range(len(inputs))]
        return self._tasks

    def place(self, task: int) -> tuple[int, int]:
        """Return, for the task with the id `task` in the newest generation, the index of its environment and how many tasks this
        environment had before it."""
        return self._places[task]

    def paid(self, inputs: list[dict[str, Any]], prompts: list[Any], completions: list[Any], scores: list[Score | None],
             step: int) -> None:
        """Record the rewards of the newest generation, given for each row as `scores`, before step `step` learns from them.
        TaskError if no reward function returned a number for any row, or if one returned an infinite number. Without this error
        TRL would go on, and the group of such a row would teach nothing."""
        named = ", ".join(getattr(function, "__name__", type(function).__name__) for function in self.functions)
        if wrong := [score.reward for score in scores if score is not None and not math.isfinite(score.reward)]:
            raise TaskError(f"step {step}: {named} paid {wrong[0]} for {len(wrong)} of {len(scores)} completions; return finite "
                            "numbers, or None where a function does not apply")
        if all(score is None for score in scores):
            raise TaskError(f"step {step}: {named} returned None or nan for all {len(scores)} completions; return a number for "
                            "some of them, or leave out the rows for which no function returns one")
        practising, rows = self.practising or [False] * len(scores), list[dict[str, Any]]()
        for place, (row, score) in enumerate(zip(inputs, scores, strict=True)):
            name = self.name_of(row)
            self._book.add(name, score, practised=practising[place])
            rows.append(completion_row(name, self._tasks[place], prompts[place], completions[place], None, score)
                        | {"practised": practising[place]})
        self.completions.write(rows, step)
        self.failed = [score is None for score in scores]

    def evaluated(self, inputs: list[dict[str, Any]], scores: list[Score | None]) -> None:
        """Record the scores of a batch of rows that are evaluated, which are entries of the dataset. Entries that name no
        environment are left out."""
        for row, score in zip(inputs, scores, strict=True):
            if self.column is None or isinstance(label_name(row.get(self.column), self.labels), str):
                self._evaluated.add(self.name_of(row), score, practised=False)

    def take_evaluated(self) -> dict[str, float]:
        """Return metrics of all rows that were evaluated since the last call of this method, for each environment."""
        return self._evaluated.take({})

    def take_metrics(self) -> dict[str, float]:
        """Return metrics of the rewards since the last call of this method, for each environment."""
        return self._book.take({})

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint, in plain numbers and tensors."""
        return {"scored": {}, "failed": {}, "groups": dict(self._made), "completions": self.completions.state()}

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        self.completions.load(state["completions"])
        self._book = ScoreBook()  # without the scores of a step that an exception has ended in this process
        self._made = Counter(state.get("groups", {}))


def scores_of(by_function_BF: Tensor, weights_F: Tensor, names: Sequence[str]) -> list[Score | None]:
    """Return the score of each row. Its reward is the weighted sum of what F reward functions returned for the row,
    `by_function_BF`, where nan counts as 0; the score is None if all of them are nan. If there are several functions, the value
    of each is a metric of the score too, under the function's name in `names`."""
    known_BF = ~by_function_BF.isnan()
    sums_B = (by_function_BF * weights_F.to(by_function_BF.device)).nansum(1)
    labels = paid_labels(names)
    rows = zip(sums_B.tolist(), by_function_BF.tolist(), known_BF.tolist(), strict=True)
    return [Score(paid, None, metrics={label: value for label, value, has in zip(labels, values, known, strict=True)
                                       if has and len(names) > 1}) if any(known) else None for paid, values, known in rows]
