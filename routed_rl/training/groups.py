"""Computes advantages within groups of completions of the same prompt, as TRL does.

Shape letter: B rows, in which the rows of a group are neighbours.
"""

from torch import Tensor, where

EPS = 1e-4
"""The number that is added to a standard deviation before it divides something, as in TRL."""


def in_group(paid_B: Tensor, size: int, unit: Tensor | None = None) -> Tensor:
    """Return advantages (B,) of rows that are paid `paid_B`: each reward minus the mean reward of its group of `size` rows,
    divided by the group's entry of `unit` (B / size, 1). If `unit` is None, it is the standard deviation within the group."""
    groups = paid_B.view(-1, size)
    spread = groups.std(1, keepdim=True) if unit is None else unit
    return ((groups - groups.mean(1, keepdim=True)) / (spread + EPS)).flatten()


def neutral(values_B: Tensor, failed_B: Tensor, size: int) -> Tensor:
    """Return `values_B` (B,), in which the value of each failed row is replaced by the mean over those rows of its group that did
    not fail, so that a failed row does not change the group's mean. In a group in which every row failed, all values are 0.
    `failed_B`: (B,) bool. `size`: rows per group."""
    means = values_B.masked_fill(failed_B, float("nan")).view(-1, size).nanmean(1).nan_to_num().repeat_interleave(size)
    return where(failed_B, means, values_B)
