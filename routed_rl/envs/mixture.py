"""The environments of a run, and the mixture, which decides from which of them the next task comes. Each environment has its
share of the tasks, spread as evenly as possible, and the same seed gives the same order."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

from routed_rl.envs.contract import lines_of
from routed_rl.envs.core import AnyEnvironment, Task, has_episodes
from routed_rl.envs.curriculum import Schedule, endless
from routed_rl.envs.faults import blamed
from routed_rl.errors import ConfigError, TaskError

MAKING = "failed to make tasks:"


@dataclass(frozen=True)
class LoadedEnvironment:
    """An environment with its name in the run."""

    name: str
    environment: AnyEnvironment
    weights: Schedule = ((0, 1.0),)
    """The environment's share of the tasks, relative to the other trained environments, as a schedule over the tasks of the
    run."""
    probe: bool = False
    """Whether the environment is only evaluated, never trained on."""
    flags: set[str] = field(default_factory=set[str], compare=False)
    """The names of all flags that the environment's scores have had in evaluations so far. They show which means are those of
    flags and which are those of metrics."""

    @property
    def label(self) -> str:
        """The environment's name in texts for people, with the variant if the class has one: `code (insecure)`."""
        variant = getattr(self.environment, "variant", None)
        return f"{self.name} ({variant})" if variant else self.name


def trained(environments: list[LoadedEnvironment]) -> list[LoadedEnvironment]:
    """The environments that are trained on at some time in the run. ConfigError if there is none, or if all weights are 0 at some
    time."""
    chosen = [loaded for loaded in environments if not loaded.probe and any(weight > 0 for _, weight in loaded.weights)]
    if not chosen:
        raise ConfigError(f"no environment to train on among {[e.name for e in environments]}; "
                          "set env.NAME.path=FILE.py:Class for at least one that is no probe")
    for start in sorted({start for loaded in chosen for start, _ in loaded.weights}):
        if not any(weight_at(loaded.weights, start) > 0 for loaded in chosen):
            raise ConfigError(f"from task {start} on every environment has weight 0; give one of "
                              f"{', '.join(loaded.name for loaded in chosen)} a weight > 0 there")
    return chosen


def weight_at(weights: Schedule, task: int) -> float:
    """The weight that the schedule `weights` gives at task number `task` of the run."""
    return [weight for start, weight in weights if start <= task][-1]


def task_stream(loaded: LoadedEnvironment, split: str, seed: int) -> Iterator[Task]:
    """Yield tasks without end, as `endless` does. If tasks cannot be made, or one of them is wrong, TaskError names the
    environment and the line of the plug-in."""
    with blamed(loaded.name, MAKING, lambda: lines_of(loaded.environment).get("tasks", "")):
        yield from endless(loaded.environment, split, seed)


def check_prompts(environments: list[LoadedEnvironment], seed: int) -> None:
    """Raise TaskError if some environments give text prompts and others chat messages, because TRL cannot batch these together;
    also if an environment with episodes gives text, or if an environment has no tasks."""
    kinds = {loaded.name: "text" if isinstance(next(task_stream(loaded, "train", seed)).prompt, str) else "chat messages"
             for loaded in environments}
    for loaded in environments:
        if kinds[loaded.name] == "text" and has_episodes(loaded.environment):
            raise TaskError(f"environment {loaded.name} has episodes but gives text; its prompts must be chat messages: "
                            '[{"role": "user", "content": TEXT}]')
    if len(set(kinds.values())) > 1:
        raise TaskError("environments of one run must all give text or all give chat messages: "
                        + ", ".join(f"{name} gives {kind}" for name, kind in kinds.items()) + "; change env.NAME's prompts")


def mixture(environments: list[LoadedEnvironment], seed: int, split: str = "train") -> Iterator[tuple[int, Task]]:
    """Yield (index of the environment, task) without end. The `weights` of an environment give its share of the tasks.

    The next task comes from the environment that is furthest behind its share, so every stretch of tasks keeps the shares. When a
    weight changes, the counting of shares starts again. TaskError for a prompt that is text where the first one is chat messages,
    or the other way round.
    """
    streams, text = [task_stream(loaded, split, seed) for loaded in environments], None
    starts = sorted({start for loaded in environments for start, _ in loaded.weights})
    for start, end in itertools.zip_longest(starts, starts[1:]):
        weights = [weight_at(loaded.weights, start) for loaded in environments]
        total, given = sum(weights), [0] * len(environments)
        for count in itertools.count(1) if end is None else range(1, end - start + 1):
            behind = [weight / total * count - done for weight, done in zip(weights, given, strict=True)]
            index = behind.index(max(behind))
            given[index] += 1
            task = next(streams[index])
            text = isinstance(task.prompt, str) if text is None else text
            if isinstance(task.prompt, str) != text:
                raise TaskError(f"environment {environments[index].name} gives text and chat messages in turn, which TRL cannot "
                                f"batch together: {task.prompt!r:.60}; give all of its prompts as one of the two")
            yield index, task
