"""The rows of a simulated step: how long they are, and what they are paid."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass

from routed_rl.artifacts import resolve
from routed_rl.cli.compose import compose
from routed_rl.config import Config
from routed_rl.envs import Score, Task

PLAIN = "trl"
"""The arm that is TRL's own trainer; every other arm is named by its mode of routing."""
CONTROL_EVERY = 16
"""Steps from one measurement of the random control to the next."""


@dataclass(frozen=True)
class Workload:
    """The rows of a step, and the model that learns from them."""

    path: str
    rows: int
    prompt: int
    """Number of tokens of each prompt."""
    completion: tuple[int, int]
    """Number of tokens of the shortest and of the longest completion; the others are spread evenly between the two."""
    group: int = 2
    saturated: float = 0.0
    """Share of the groups in which all completions are paid alike, so that they teach nothing."""
    rank: int = 16
    environments: int = 8
    settings: tuple[str, ...] = ()
    """Further settings, KEY=VALUE."""

    def pays(self, group: int, turn: int) -> float:
        """The reward of a group's completion number `turn`."""
        alike = int((group + 1) * self.saturated) > int(group * self.saturated)
        return float(alike or turn % 2)

    def config(self, mode: str, completions: int) -> Config:
        """The settings of a run in this mode. `completions`: `monitor.completions`."""
        trainer = {"max_steps": 1000, "per_device_train_batch_size": self.rows, "num_generations": self.group,
                   "max_completion_length": self.completion[1], "learning_rate": 1e-5, "save_steps": 1000, "report_to": "none"}
        return compose([f"model.path={resolve(self.path)}", "env=empty", "subspace.layout=per_layer", "rollout=transformers",
                        f"routing={'none' if mode == PLAIN else mode}", f"routing.random_control.every={CONTROL_EVERY}",
                        f"monitor.completions={completions}", *(f"trainer.{key}={value}" for key, value in trainer.items()),
                        *self.settings])


@dataclass(frozen=True)
class Cost:
    """Seconds by the clock, and of the CPU in this process."""

    clock: float
    cpu: float

    @staticmethod
    def now() -> Cost:
        return Cost(time.perf_counter(), time.process_time())

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.clock + other.clock, self.cpu + other.cpu)

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.clock - other.clock, self.cpu - other.cpu)


class Paying:
    """An environment whose tasks are numbers of groups, and whose rewards are the workload's."""

    def __init__(self, workload: Workload, place: int) -> None:
        self.workload, self.place, self.turn = workload, place, 0

    def tasks(self, split: str, seed: int) -> Iterator[Task]:
        for group in itertools.count(self.place, self.workload.environments):
            yield Task(f"{group}", {"group": group})

    def score(self, task: Task, completion: str) -> Score:
        self.turn += 1
        return Score(reward=self.workload.pays(task.data["group"], self.turn))
