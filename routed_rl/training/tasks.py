"""The training data of a run: a table of tasks from the mixture of environments, which makes a task when it is read, and the
reward function that scores completions."""

import itertools
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from datasets import Dataset

from routed_rl.envs import Conversation, LoadedEnvironment, Prompt, Score, Scorer, Task, mixture, neutral_rewards
from routed_rl.extraction.pooled import Said
from routed_rl.training.baselines import Payment
from routed_rl.training.completions import CompletionFiles
from routed_rl.training.scores import ScoreBook


class TaskTable:
    """The tasks of a run, numbered in the order of the mixture of environments. The number of a task is its id. A task is made
    when it is first read. The task with a given number is the same in every run with the same environments and seed."""

    def __init__(self, environments: list[LoadedEnvironment], seed: int, first: int = 0) -> None:
        """`first`: the number of the first task of the mixture. Tasks with lower numbers belong to the run from which this one
        was rolled back."""
        self.environments, self.first = environments, first
        self._source = mixture(environments, seed)
        self._tasks: list[tuple[int, Task]] = []
        self._counts: list[int] = []
        """For each task, how many tasks its environment had before it."""
        self._made = [0] * len(environments)

    @property
    def names(self) -> list[str]:
        """The names of the environments, in their order."""
        return [loaded.name for loaded in self.environments]

    def __getstate__(self) -> dict[str, Any]:
        """Return a small state for pickling. `datasets` pickles the table only to compute a fingerprint of the dataset's
        transform."""
        return {"environments": self.names}

    def task(self, index: int) -> tuple[int, Task]:
        """Return the task with the number `index`, as a pair: the index of its environment, and the task."""
        assert index >= self.first, f"row {index} was asked for, the mixture begins at {self.first}"
        while len(self._tasks) <= index - self.first:
            self._tasks.append(next(self._source))
            environment_id = self._tasks[-1][0]
            self._counts.append(self._made[environment_id])
            self._made[environment_id] += 1
        return self._tasks[index - self.first]

    def place(self, index: int) -> tuple[int, int]:
        """Return, for the task with the number `index`, the index of its environment and how many tasks this environment had
        before it."""
        environment_id, _ = self.task(index)
        return environment_id, self._counts[index - self.first]

    def dataset(self, length: int) -> Dataset:
        """Return the tasks with numbers below `length` as a dataset in TRL's form. A prompt is made only when its entry is
        read."""
        return Dataset.from_dict({"task_id": range(length)}).with_transform(self._rows)

    def _rows(self, batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        tasks = [self.task(index) for index in batch["task_id"]]
        return {"prompt": [task.prompt for _, task in tasks], "environment_id": [place for place, _ in tasks],
                "task_id": batch["task_id"]}


class RewardFunction:
    """The reward function that TRL calls. It pays the rewards of the environments, and keeps every score for the metrics and the
    files of completions. It also implements `rows.Rows`, by which a trainer looks up the environment, the task and the
    outcome of each row; the tasks are those of the `TaskTable` that it is given."""

    __name__ = "environment"

    def __init__(self, table: TaskTable, scorer: Scorer, group_size: int, completions: CompletionFiles,
                 payment: Payment | None = None) -> None:
        """`scorer`: scores the completions of every environment. `group_size`: completions per group. `completions`: writes the
        files of completions. `payment`: changes scores before they are paid; None: the environments' rewards are paid."""
        self.table, self.scorer, self.group_size, self.completions = table, scorer, group_size, completions
        self.payment = payment
        self._book = ScoreBook()
        self.practising: list[bool] = []
        """For each of the rows that are scored next, whether it practises, so that the deployed model rolled it out. Empty if no
        row practises."""
        self.failed: list[bool] = []
        """For each row of the last call, whether it teaches nothing because it could not be scored or was screened."""
        self.scores: list[Score | None] = []
        """The scores of the last call, as the environments gave them."""
        self.said: list[Said | None] = []
        """The prompt of each row of the last call with the text of its completion; None for an episode."""
        self.rewards: list[float] = []
        """The rewards that the last call paid."""

    def __call__(self, prompts: list[Prompt], completions: list[Any], task_id: list[int],
                 conversation: list[Conversation | None] | None = None, **_: Any) -> list[float]:
        """Score completions and return their rewards. `task_id`: the id of each row's task. `conversation`: for each row the
        episode that was played in it, which has its score already, or None if the row's completion is to be scored. None in place
        of the list: no row has an episode."""
        played = conversation or [None] * len(prompts)
        tasks, practising = [self.table.task(index) for index in task_id], self.practising or [False] * len(prompts)
        places: dict[str, list[int]] = defaultdict(list)
        for row, (environment_id, _task) in enumerate(tasks):
            places[self.table.environments[environment_id].name].append(row)
        scored = self.scorer.score_all({name: [(tasks[row][1], _text(completions[row])) for row in chosen]
                                        for name, chosen in places.items() if played[chosen[0]] is None})
        scores: list[Score | None] = [None] * len(prompts)
        rows: list[dict[str, Any]] = [{}] * len(prompts)
        for name, chosen in places.items():
            episodes = [episode for row in chosen if (episode := played[row])]
            found = scored.get(name) or [self.scorer.count(name, episode.outcome) for episode in episodes]
            for row, score in zip(chosen, found, strict=True):
                self._book.add(name, score, practised=practising[row])
                scores[row] = score
                rows[row] = completion_row(name, task_id[row], prompts[row], completions[row], played[row], score)
                rows[row]["practised"] = practising[row]
        self.scorer.check()
        self.scores = scores
        texts = [(prompt, _text(completion)) for prompt, completion in zip(prompts, completions, strict=True)]
        self.said = [None if episode else said for said, episode in zip(texts, played, strict=True)]
        if self.payment is not None:
            named = [self.table.environments[environment_id].name for environment_id, _task in tasks]
            place_of = defaultdict[int, Iterator[int]](itertools.count)
            keys = [(task, next(place_of[task])) for task in task_id]
            scores = self.payment.pay(named, scores, keys, texts)
        self.completions.write(rows, _["trainer_state"].global_step + 1)
        self.failed = [score is None for score in scores]
        self.rewards = neutral_rewards(scores, self.group_size)
        return self.rewards

    def begin_scoring(self, tasks: Sequence[int], texts: Sequence[str]) -> None:
        """Begin to score completions before the whole generation is complete. `tasks`, `texts`: the id of each completion's task,
        and the completion's text. Does nothing for environments that do not run in a process of their own; their completions are
        scored later."""
        for environment_id, rows in itertools.groupby(zip(tasks, texts, strict=True), key=lambda row: self.table.task(row[0])[0]):
            self.scorer.begin(self.names[environment_id], [(self.table.task(index)[1], text) for index, text in rows])

    @property
    def functions(self) -> list[Callable[..., list[float]]]:
        """The reward functions that TRL calls."""
        return [self]

    @property
    def names(self) -> list[str]:
        return self.table.names

    def tasks(self, inputs: list[dict[str, Any]]) -> list[int]:
        """Return the id of the task of each row of `inputs`, which are rows of the dataset."""
        return [row["task_id"] for row in inputs]

    def place(self, task: int) -> tuple[int, int]:
        """Return, for the task with the id `task`, the index of its environment and how many tasks this environment had before
        it."""
        return self.table.place(task)

    def take_metrics(self) -> dict[str, float]:
        """Return the metrics of the scores since the last call, see `ScoreBook.take`, together with the metrics of `payment` if
        there is one."""
        metrics = self._book.take({loaded.name: getattr(loaded.environment, "restarts", 0) for loaded in self.table.environments})
        return metrics | self.payment.take_metrics() if self.payment is not None else metrics

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint, in plain numbers and tensors."""
        return {"scored": dict(self.scorer.scored), "failed": dict(self.scorer.failed), "completions": self.completions.state()}

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        self.completions.load(state["completions"])
        self.scorer.scored.update(state["scored"])
        self.scorer.failed.update(state["failed"])


def _text(completion: Any) -> str:
    return completion if isinstance(completion, str) else completion[-1]["content"]


def completion_row(name: str, index: int, prompt: Prompt, completion: Any, episode: Conversation | None, score: Score | None
                   ) -> dict[str, Any]:
    """Return one completion's row of the file of completions, by column: the environment, the task, the prompt, the text that the
    model wrote (for an episode, all messages after the prompt), and the values of the score. `name`: the environment. `index`:
    the id of the task. `score`: None if the completion could not be scored."""
    values = {} if score is None else score.values()
    text = _text(completion) if episode is None else json.dumps(episode.messages[episode.first:])
    prompt = prompt if episode is None else episode.messages[:episode.first]
    return {"environment": name, "task": index, "prompt": prompt if isinstance(prompt, str) else json.dumps(prompt),
            "completion": text, "reward": values.pop("reward", None), "solve": values.pop("solve", None),
            "flags": json.dumps(values)}
