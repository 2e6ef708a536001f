"""Advantages within groups of completions of the same prompt, as TRL makes them.

Shape letter: B rows, which stand group by group.
"""

from torch import Tensor

EPS = 1e-4
"""Added to a standard deviation, as TRL does."""


def in_group(paid_B: Tensor, size: int, unit: Tensor | None = None) -> Tensor:
    """Advantages (B,): each reward less the mean of its group of `size`, over `unit`, (B / size, 1), or over the group's standard
    deviation."""
    groups = paid_B.view(-1, size)
    spread = groups.std(1, keepdim=True) if unit is None else unit
    return ((groups - groups.mean(1, keepdim=True)) / (spread + EPS)).flatten()
