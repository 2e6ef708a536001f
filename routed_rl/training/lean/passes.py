"""Splits rows into forward passes of similar length, if the padding that this saves would cost more than a further pass."""

from collections.abc import Sequence

PASS_COST = {"cpu": 256, "cuda": 4096}
"""The cost of one more forward and backward pass, in tokens. It is an order of magnitude for the time that a pass takes even with
few tokens; on a GPU, few tokens leave most of it idle."""


def split_by_length(lengths: Sequence[int], cost: int) -> list[list[int]]:
    """The indices of the rows in each pass, chosen so that the sum over passes of (rows times longest row) plus `cost` is
    smallest. Each pass has rows that are neighbours in the order of length, so only the borders between passes are chosen, from
    the shortest row on."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    ends = [place + 1 for place, row in enumerate(order)
            if place + 1 == len(order) or lengths[order[place + 1]] > lengths[row]]
    best: dict[int, tuple[int, list[int]]] = {0: (0, [])}
    for end in ends:
        best[end] = min((spent + (end - begin) * lengths[order[end - 1]] + cost, [*borders, end])
                        for begin, (spent, borders) in best.items())
    borders = [0, *best[len(order)][1]]
    return [order[begin:end] for begin, end in zip(borders, borders[1:], strict=False)]
