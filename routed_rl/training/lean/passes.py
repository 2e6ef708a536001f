"""Divides rows into forward passes over rows of similar length, if the padding that is saved would cost more than a further
pass."""

from collections.abc import Sequence

PASS_COST = {"cpu": 256, "cuda": 4096}
"""For each kind of device, the cost of one more forward and backward pass, in tokens. A pass takes a certain time even if it has
few tokens; the cost is about the number of tokens that could be computed in this time. It is larger on a GPU, which is mostly
idle in a pass with few tokens."""


def pass_cost(device: str) -> int:
    """The cost of a pass on a kind of device, in tokens; that of a GPU for a device that `PASS_COST` does not name."""
    return PASS_COST.get(device, PASS_COST["cuda"])


def split_by_length(lengths: Sequence[int], cost: int) -> list[list[int]]:
    """Return the indices of the rows in each pass, for rows of these `lengths`. A pass costs its number of rows times the length
    of its longest row, plus `cost`; the division is the one with the smallest sum. The rows of a pass are neighbours in the order
    of length."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    ends = [place + 1 for place, row in enumerate(order)
            if place + 1 == len(order) or lengths[order[place + 1]] > lengths[row]]
    best: dict[int, tuple[int, list[int]]] = {0: (0, [])}
    for end in ends:
        best[end] = min((spent + (end - begin) * lengths[order[end - 1]] + cost, [*borders, end])
                        for begin, (spent, borders) in best.items())
    borders = [0, *best[len(order)][1]]
    return [order[begin:end] for begin, end in zip(borders, borders[1:], strict=False)]
