"""95 % intervals over seeds, by Student's t on the values or on paired differences. The module needs only the standard
library."""

import math
import statistics
from typing import Any

LEVEL = 0.95
Cells = dict[tuple[str, str], dict[int, float]]
"""Maps (environment, metric) to a mapping from seeds to values. Two `Cells` that are compared have the same environments and
metrics."""


def interval(values: list[float]) -> dict[str, Any]:
    """{mean, low, high, seeds} for the values of one figure, where `seeds` are the values themselves. One value has no interval:
    low and high are None."""
    mean, count = statistics.fmean(values), len(values)
    if count < 2:
        return {"mean": mean, "low": None, "high": None, "seeds": values}
    half = student_t(count - 1) * statistics.stdev(values) / math.sqrt(count)
    return {"mean": mean, "low": mean - half, "high": mean + half, "seeds": values}


def intervals(cells: Cells, only: str | None = None) -> dict[str, Any]:
    """The interval of each cell that has values, as {environment: {metric: interval}}. With `only`, the cells of this metric
    alone."""
    found: dict[str, Any] = {}
    for (env, metric), values in cells.items():
        if values and only in (None, metric):
            found.setdefault(env, {})[metric] = interval([values[seed] for seed in sorted(values)])
    return found


def minus(first: Cells, second: Cells) -> Cells:
    """The differences of two `Cells`, under the seeds that both have."""
    return {cell: {seed: values[seed] - second[cell][seed] for seed in values.keys() & second[cell].keys()}
            for cell, values in first.items()}


def over(first: Cells, second: Cells) -> Cells:
    """The ratios of two `Cells`, under the seeds that both have. A cell is kept only if its value in `second` is positive under
    all of these seeds."""
    shared = {cell: values.keys() & second[cell].keys() for cell, values in first.items()}
    return {cell: {seed: first[cell][seed] / second[cell][seed] for seed in seeds} for cell, seeds in shared.items()
            if all(second[cell][seed] > 0 for seed in seeds)}


def student_t(freedom: int) -> float:
    """The value t with P(|T| < t) = `LEVEL` at `freedom` degrees of freedom, found by bisection."""
    low, high = 0.0, math.pi / 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _two_sided(middle, freedom) < LEVEL else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _two_sided(angle: float, freedom: int) -> float:
    """P(|T| < sqrt(freedom) tan(angle)): the finite series 26.7.3 and 26.7.4 of Abramowitz and Stegun."""
    cosine, sine, odd = math.cos(angle), math.sin(angle), freedom % 2
    term, total = cosine if odd else 1.0, 0.0
    for k in range(freedom // 2):
        total += term
        term *= cosine**2 * (2 * k + 1 + odd) / (2 * k + 2 + odd)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def fold(trees: list[Any]) -> Any:
    """Combine nested mappings of numbers, one mapping for each seed, into one mapping. It has an interval at each place where all
    of them have a number.

    Anything else (text, None, lists) is left out; the result is None if nothing is left.
    """
    if all(isinstance(tree, (int, float)) and not isinstance(tree, bool) for tree in trees):
        return interval([float(tree) for tree in trees])
    if not all(isinstance(tree, dict) for tree in trees):
        return None
    shared = [key for key in trees[0] if all(key in tree for tree in trees)]
    folded = {key: fold([tree[key] for tree in trees]) for key in shared}
    return {key: value for key, value in folded.items() if value is not None} or None
