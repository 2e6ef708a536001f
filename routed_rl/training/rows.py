"""What a trainer asks of whoever knows its rows: which environment and task each is of, what was paid for it, how that went.

The commands' answer is `tasks.RewardFunction`, a mixture of environments, and the library's `library.labelled.LabelledRows`, a
dataset and reward functions as TRL takes them."""

from collections.abc import Callable
from typing import Any, Protocol

from routed_rl.training.baselines import Payment
from routed_rl.training.completions import CompletionFiles


class Rows(Protocol):
    """A task is a group of completions of one prompt, and has a number."""

    completions: CompletionFiles
    practising: list[bool]
    """Of the rows that are scored next, which ones the deployed model rolled out; empty for none."""
    payment: Payment | None
    """What scores become before they are paid; None: what they are."""
    failed: list[bool]
    """Rows of those that were scored last that teach nothing: they could not be scored, or were screened."""

    @property
    def names(self) -> list[str]:
        """Of the environments, in the order of the quarantine's."""
        ...

    @property
    def functions(self) -> list[Callable[..., Any]]:
        """The reward functions that TRL is to call."""
        ...

    def tasks(self, inputs: list[dict[str, Any]]) -> list[int]:
        """The number of each row's task; asked once for each generation, in the order of training."""
        ...

    def place(self, task: int) -> tuple[int, int]:
        """(environment's index, how many tasks it had before) of a task of the newest generation."""
        ...

    def take_metrics(self) -> dict[str, float]:
        """What was scored since the last call, by environment."""
        ...

    def state(self) -> dict[str, Any]:
        """For a checkpoint, in plain numbers and tensors; `scored`, `failed` and `completions` are among it."""
        ...

    def load(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        ...
