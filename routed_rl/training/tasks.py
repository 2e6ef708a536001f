"""The training data: a lazy table of tasks from the mixture, and the reward function that scores completions."""

import json
from collections import defaultdict
from typing import Any

from datasets import Dataset

from routed_rl.envs import Conversation, LoadedEnvironment, Prompt, Score, Scorer, Task, means, mixture, neutral_rewards
from routed_rl.ranks import RANKS
from routed_rl.training.completions import CompletionFiles


class TaskTable:
    """Tasks in the order of the mixture, made when first asked for; row i is the same in every run of the same seed."""

    def __init__(self, environments: list[LoadedEnvironment], seed: int, first: int = 0) -> None:
        """`first`: the row at which the mixture begins; those before it belong to the run that this one goes on from."""
        self.environments, self.first = environments, first
        self._source = mixture(environments, seed)
        self._tasks: list[tuple[int, Task]] = []
        self._counts: list[int] = []
        """Of each task, how many its environment had before it."""
        self._made = [0] * len(environments)

    def __getstate__(self) -> dict[str, Any]:
        """What the rows depend on; `datasets` fingerprints a transform by pickling it."""
        return {"environments": [loaded.name for loaded in self.environments]}

    def task(self, index: int) -> tuple[int, Task]:
        """(environment's index, task) of row `index`."""
        assert index >= self.first, f"row {index} was asked for, the mixture begins at {self.first}"
        while len(self._tasks) <= index - self.first:
            self._tasks.append(next(self._source))
            environment_id = self._tasks[-1][0]
            self._counts.append(self._made[environment_id])
            self._made[environment_id] += 1
        return self._tasks[index - self.first]

    def place(self, index: int) -> tuple[int, int]:
        """(environment's index, how many tasks it had before) of row `index`."""
        environment_id, _ = self.task(index)
        return environment_id, self._counts[index - self.first]

    def dataset(self, length: int) -> Dataset:
        """The first `length` rows as TRL wants them; a prompt is made when its row is read."""
        return Dataset.from_dict({"task_id": range(length)}).with_transform(self._rows)

    def _rows(self, batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        tasks = [self.task(index) for index in batch["task_id"]]
        return {"prompt": [task.prompt for _, task in tasks], "environment_id": [place for place, _ in tasks],
                "task_id": batch["task_id"]}


class RewardFunction:
    """What TRL calls: pays what the environments pay, keeps every score for the metrics and the completions' file."""

    __name__ = "environment"

    def __init__(self, table: TaskTable, scorer: Scorer, group_size: int, completions: CompletionFiles) -> None:
        self.table, self.scorer, self.group_size, self.completions = table, scorer, group_size, completions
        self._scores: dict[str, list[Score | None]] = defaultdict(list)
        self._practised: dict[str, list[Score | None]] = defaultdict(list)
        self.practising: list[bool] = []
        """Of the rows that are scored next, which ones the deployed model rolled out; empty for none."""
        self.failed: list[bool] = []
        """Rows of the last call that could not be scored."""

    def __call__(self, prompts: list[Prompt], completions: list[Any], task_id: list[int],
                 conversation: list[Conversation | None] | None = None, **_: Any) -> list[float]:
        """`conversation`: what was played, for rows of environments with episodes; None where a completion is scored."""
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
                (self._practised if practising[row] else self._scores)[name].append(score)
                scores[row] = score
                rows[row] = _row(name, task_id[row], prompts[row], completions[row], played[row], score)
                rows[row]["practised"] = practising[row]
        self.scorer.check()
        self.completions.write(rows, _["trainer_state"].global_step + 1)
        self.failed = [score is None for score in scores]
        return neutral_rewards(scores, self.group_size)

    def take_metrics(self) -> dict[str, float]:
        """Means by environment since the last call, over what could be scored by any process, and the number of failures. What
        practised stands by itself, under `practice/`."""
        restarts = {loaded.name: getattr(loaded.environment, "restarts", 0) for loaded in self.table.environments}
        everyone = RANKS.gather((dict(self._scores), dict(self._practised), restarts))
        self._scores.clear()
        self._practised.clear()
        metrics: dict[str, float] = {}
        for name, scores in _together([scores for scores, *_ in everyone]).items():
            metrics |= {f"environment/{name}/{key}": value for key, value in means(scores).items()}
            metrics[f"environment/{name}/failures"] = sum(score is None for score in scores)
        for name, scores in _together([practised for _, practised, _ in everyone]).items():
            metrics |= {f"practice/{name}/{key}": value for key, value in means(scores).items()}
            metrics[f"practice/{name}/completions"] = len(scores)
        for name in restarts:
            if total := sum(counts[name] for *_, counts in everyone):
                metrics[f"environment/{name}/restarts"] = total
        return metrics


def _together(processes: list[dict[str, list[Score | None]]]) -> dict[str, list[Score | None]]:
    """By environment the scores of all processes."""
    return {name: [score for scores in processes for score in scores.get(name, [])]
            for name in sorted({name for scores in processes for name in scores})}


def _text(completion: Any) -> str:
    return completion if isinstance(completion, str) else completion[-1]["content"]


def _row(name: str, index: int, prompt: Prompt, completion: Any, episode: Conversation | None, score: Score | None
         ) -> dict[str, Any]:
    """Of the completions' file: what the model saw first, what followed (of an episode all of its messages), what was paid."""
    values = {} if score is None else score.values()
    text = _text(completion) if episode is None else json.dumps(episode.messages[episode.first:])
    prompt = prompt if episode is None else episode.messages[:episode.first]
    return {"environment": name, "task": index, "prompt": prompt if isinstance(prompt, str) else json.dumps(prompt),
            "completion": text, "reward": values.pop("reward", None), "solve": values.pop("solve", None),
            "flags": json.dumps(values)}
