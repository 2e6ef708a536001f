"""Settings that change in the course of a run: an environment's weight, and the settings of its class.

A change is due after a number of tasks, not of steps, so that the sequence of tasks depends only on the settings and the seed. A
step takes `per_device_train_batch_size * gradient_accumulation_steps / num_generations` tasks.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from routed_rl.envs.build import OWN_KEYS, build
from routed_rl.envs.contract import lines_of, tasks_of
from routed_rl.envs.core import LARGEST, AnyEnvironment, Score, Task, has_episodes
from routed_rl.envs.faults import ContractError
from routed_rl.errors import ConfigError

Schedule = tuple[tuple[int, float], ...]
"""Pairs of (number of tasks of the run, weight from there on), ascending from 0."""


def parse_weight(name: str, value: Any) -> Schedule:
    """Parse the weight of the environment `name`: a number, or a list such as `[[0, 1.0], [100, 0.2]]`, which is weight 1 until
    the run's 100th task and weight 0.2 from that task on."""
    if _number(value):
        return ((0, float(value)),)
    rows = value if isinstance(value, (list, tuple)) else []
    fits = [isinstance(row, (list, tuple)) and len(row) == 2 and type(row[0]) is int and _number(row[1]) for row in rows]
    if not rows or not all(fits):
        raise ConfigError(f"env.{name}.weight must be a number from 0 to {LARGEST:g} or a list of [TASKS, WEIGHT], such as "
                          f"[[0,1.0],[100,0.2]], got {value}")
    starts = [row[0] for row in rows]
    if starts[0] != 0 or any(later <= earlier for earlier, later in itertools.pairwise(starts)):
        raise ConfigError(f"env.{name}.weight={value}: the first entry must start at task 0 and each later one after the last")
    return tuple((start, float(weight)) for start, weight in rows)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= LARGEST


def build_staged(name: str, path: str, arguments: dict[str, Any], stages: list[dict[str, Any]] | None) -> AnyEnvironment:
    """Build the environment `name` from the class at `path`. Without `stages` the class is called once, with `arguments`. With
    `stages` it is called once for each stage, whose settings replace the arguments of the same name."""
    if stages is None:
        return build(name, path, arguments)
    lengths = check_stages(name, stages)
    built = [build(f"{name}.stages[{place}]", path, arguments | {key: value for key, value in stage.items() if key != "tasks"},
                   (*OWN_KEYS, "tasks")) for place, stage in enumerate(stages)]
    if any(map(has_episodes, built)):
        raise ConfigError(f"env.{name}.stages needs one with score(task, completion), {path} has episodes: leave it out")
    return Staged(list(zip(lengths, built, strict=True)))


def check_stages(name: str, stages: Any) -> list[int | None]:
    """Check the stages of the environment `name` and return how many tasks each one lasts. The last stage never ends, so its
    number may be left out."""
    if not isinstance(stages, list) or not stages or not all(isinstance(stage, dict) for stage in stages):
        raise ConfigError(f"env.{name}.stages must be a list of settings, such as [{{tasks: 500, KEY: VALUE}}, {{KEY: VALUE}}], "
                          f"got {stages}")
    lengths = [stage.get("tasks") for stage in stages]
    for place, length in enumerate(lengths):
        if (type(length) is not int or length < 1) and not (length is None and place == len(stages) - 1):
            raise ConfigError(f"env.{name}.stages[{place}].tasks must be a number of tasks >= 1, got {length}")
    return lengths


class Staged:
    """One environment whose settings change from stage to stage. `stages` has a pair for each stage: its number of tasks, which
    the last stage ignores, and its environment. Evaluation uses the last stage."""

    def __init__(self, stages: Sequence[tuple[int | None, AnyEnvironment]]) -> None:
        self.stages = stages
        last: Any = stages[-1][1]
        self.variant, self.contexts = getattr(last, "variant", None), getattr(last, "contexts", None)
        self.plugin_lines = lines_of(last)
        if callable(getattr(last, "gold", None)):
            self.gold = lambda task: self._of(task).gold(task)

    def tasks(self, split: str, seed: int) -> Iterator[Task]:
        """Yield tasks without end: for "train" those of stage 0 and then those of each later stage; for "eval" those of the last
        stage. In stage 0, `seed` gives the same tasks as in an environment without stages."""
        last = len(self.stages) - 1
        for number, (length, environment) in enumerate(self.stages):
            if split == "train" or number == last:
                stream = endless(environment, split, seed + 7919 * number)
                for task in itertools.islice(stream, length if number < last else None):
                    yield dataclasses.replace(task, stage=number)

    def score(self, task: Task, completion: str) -> Score:
        return self._of(task).score(task, completion)

    def _of(self, task: Task) -> Any:
        return self.stages[task.stage][1]


def endless(environment: AnyEnvironment, split: str, seed: int) -> Iterator[Task]:
    """Yield tasks without end. An environment whose tasks have run out starts over with another seed. ContractError if it has no
    tasks, or yields anything but a `Task`."""
    for round_number in itertools.count():
        empty = True
        for task in tasks_of(environment, split, seed + 1000003 * round_number):
            empty = False
            yield task
        if empty:
            raise ContractError(f"yields no task for split {split!r}", f"let tasks(split, seed) yield some for {split!r}",
                                lines_of(environment).get("tasks", ""))
