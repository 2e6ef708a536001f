"""The interface by which a trainer asks about its rows: which environment and task each belongs to, and how each was scored and
paid.

The commands implement it by `tasks.RewardFunction`, a mixture of environments; the library by `library.labelled.LabelledRows`, a
dataset and reward functions as TRL takes them."""

from collections.abc import Callable
from typing import Any, Protocol

from routed_rl.training.baselines import Payment
from routed_rl.training.completions import CompletionFiles


class Rows(Protocol):
    """A task is a group of completions of one prompt, and has a number."""

    completions: CompletionFiles
    practising: list[bool]
    """Which of the rows that are scored next the deployed model rolled out; empty for none."""
    payment: Payment | None
    """The change of scores before they are paid; None leaves them as they are."""
    failed: list[bool]
    """Which of the rows that were scored last teach nothing, because they could not be scored or were screened."""

    @property
    def names(self) -> list[str]:
        """The names of the environments, in the quarantine's order."""
        ...

    @property
    def functions(self) -> list[Callable[..., Any]]:
        """The reward functions that TRL is to call."""
        ...

    def tasks(self, inputs: list[dict[str, Any]]) -> list[int]:
        """The number of each row's task; called once for each generation, in the order of training."""
        ...

    def place(self, task: int) -> tuple[int, int]:
        """(index of the environment, how many tasks it had before) for a task of the newest generation."""
        ...

    def take_metrics(self) -> dict[str, float]:
        """Metrics of what was scored since the last call, by environment."""
        ...

    def state(self) -> dict[str, Any]:
        """The state for a checkpoint, in plain numbers and tensors, with `scored`, `failed` and `completions` among its keys."""
        ...

    def load(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        ...
