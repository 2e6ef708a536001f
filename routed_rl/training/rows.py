"""The interface through which a trainer asks about its rows: to which environment and task each row belongs, and how it was
scored and paid.

The commands implement it by `tasks.RewardFunction`, a mixture of environments; the library by `library.labelled.LabelledRows`, a
dataset and reward functions as TRL takes them.
"""

from collections.abc import Callable
from typing import Any, Protocol

from routed_rl.training.baselines import Payment
from routed_rl.training.completions import CompletionFiles


class Rows(Protocol):
    """The rows of a trainer. A task is a group of completions of one prompt, and has a number."""

    completions: CompletionFiles
    practising: list[bool]
    """For each of the rows that are scored next, whether the deployed model rolled it out; empty if none."""
    payment: Payment | None
    """The change of scores before they are paid; None leaves them as they are."""
    failed: list[bool]
    """For each of the rows that were scored last, whether nothing is learned from it, because it could not be scored or was
    screened."""

    @property
    def names(self) -> list[str]:
        """The names of the environments, in the quarantine's order."""
        ...

    @property
    def functions(self) -> list[Callable[..., Any]]:
        """The reward functions that TRL calls."""
        ...

    def tasks(self, inputs: list[dict[str, Any]]) -> list[int]:
        """The number of each row's task; called once for each generation, in the order of training."""
        ...

    def place(self, task: int) -> tuple[int, int]:
        """(index of the environment, how many tasks it had before) for a task of the newest generation."""
        ...

    def take_metrics(self) -> dict[str, float]:
        """Metrics of the scores since the last call, for each environment."""
        ...

    def state(self) -> dict[str, Any]:
        """The state for a checkpoint, in plain numbers and tensors, with `scored`, `failed` and `completions` among its keys."""
        ...

    def load(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        ...
