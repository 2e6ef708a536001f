"""Advantages within groups of completions of the same prompt, computed as in TRL.

Shape letter: B rows, sorted by group.
"""

from torch import Tensor

EPS = 1e-4
"""Number that is added to a standard deviation, as in TRL."""


def in_group(paid_B: Tensor, size: int, unit: Tensor | None = None) -> Tensor:
    """Advantages (B,): each reward minus the mean of its group of `size`, divided by `unit`, (B / size, 1), or by the group's
    standard deviation if `unit` is None."""
    groups = paid_B.view(-1, size)
    spread = groups.std(1, keepdim=True) if unit is None else unit
    return ((groups - groups.mean(1, keepdim=True)) / (spread + EPS)).flatten()
