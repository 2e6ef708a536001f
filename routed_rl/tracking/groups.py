"""Which completions a step encourages: those that were paid more than the mean of their group."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def encouraged(environments: Sequence[str], tasks: Sequence[int], rewards: Sequence[float | None]) -> np.ndarray:
    """Of each completion whether it was paid more than the mean of its group, the completions of one task; True where it is
    alone, False where all of a group were paid alike, and where it was not paid (None, nan)."""
    paid = np.array(rewards, dtype=float)
    groups = {pair: place for place, pair in enumerate(dict.fromkeys(zip(environments, tasks, strict=True)))}
    group = np.array([groups[pair] for pair in zip(environments, tasks, strict=True)], dtype=int)
    known = ~np.isnan(paid)
    sizes = np.bincount(group, known, len(groups))
    means = np.bincount(group, np.where(known, paid, 0.0), len(groups)) / np.maximum(sizes, 1)
    least = np.full(len(groups), np.inf)
    np.minimum.at(least, group[known], paid[known])
    # A mean of equal numbers may be rounded below them.
    return known & ((paid > means[group]) & (paid > least[group]) | (sizes[group] == 1))
