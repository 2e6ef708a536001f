"""An environment class as TRL's documentation writes them. Not a test, and it knows nothing of routed_rl."""

from __future__ import annotations


class Counting:
    def __init__(self, step: int = 1) -> None:
        self.step, self.value, self.target = step, 0, 0

    def reset(self, start: int = 0, target: int = 5, **kwargs) -> str | None:
        self.value, self.target = start, target
        return f" You start at {start}." if start else None

    def add(self, amount: int) -> str:
        """
        Add to the counter.

        Args:
            amount: How much to add.

        Returns:
            What the counter shows.
        """
        self.value += self.step * amount
        return f"It shows {self.value}."

    def explode(self) -> str:
        """
        Never press this.

        Returns:
            Nothing, ever.
        """
        raise RuntimeError("boom")

    def get_reward(self) -> float:
        return float(self.value == self.target)

    def _private(self) -> None:
        raise AssertionError("no tool")


class Dealing:
    """Owns its data: `reset` makes the problem from a seed."""

    def reset(self, seed: int = 0, **kwargs) -> str:
        self.value, self.target = 0, seed % 7
        return f"Reach {self.target}."

    def reach(self, value: int) -> str:
        """
        Set the counter.

        Args:
            value: Where to set it.
        """
        self.value = value
        return "done"

    def get_reward(self) -> float:
        return float(self.value == self.target)
