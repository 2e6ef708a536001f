"""The interface through which a trainer asks about its rows: to which environment and task each row belongs, and how each was
scored and paid.

The commands implement it by `tasks.RewardFunction`, which has a mixture of environments. The library implements it by
`library.labelled.LabelledRows`, which has a dataset and reward functions as TRL takes them.
"""

from collections.abc import Callable
from typing import Any, Protocol

from routed_rl.training.baselines import Payment
from routed_rl.training.completions import CompletionFiles


class Rows(Protocol):
    """Tells a trainer the environment, the task and the outcome of each row. The rows of one group have the same task. Each task
    has an id, which is a whole number."""

    completions: CompletionFiles
    practising: list[bool]
    """For each of the rows that are scored next, whether it practises, so that the deployed model rolled it out. Empty if no row
    practises."""
    payment: Payment | None
    """Changes scores before they are paid; None: scores are paid as they are."""
    failed: list[bool]
    """For each of the rows that were scored last, whether it teaches nothing because it could not be scored or was screened."""

    @property
    def names(self) -> list[str]:
        """The names of the environments, in the quarantine's order."""
        ...

    @property
    def functions(self) -> list[Callable[..., Any]]:
        """The reward functions that TRL calls."""
        ...

    def tasks(self, inputs: list[dict[str, Any]]) -> list[int]:
        """Return the id of the task of each row of `inputs`, which are rows of the dataset. Called once for each generation, in
        the order of training."""
        ...

    def place(self, task: int) -> tuple[int, int]:
        """Return, for the task with the id `task` in the newest generation, the index of its environment and how many tasks this
        environment had before it."""
        ...

    def take_metrics(self) -> dict[str, float]:
        """Return metrics of the scores since the last call of this method, for each environment."""
        ...

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint, in plain numbers and tensors. `scored`, `failed` and `completions` are among its
        keys."""
        ...

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        ...
