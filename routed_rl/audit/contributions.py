"""How much of a difference between two models each group carries, from the models in between. Not covered: pairs of groups.

Groups interact, so the effects of putting each back alone do not sum to the difference. The effects of putting them back one
after another do: a group carries the step that it makes. That depends on the order, so the mean over the order and its reverse
is reported, which sums to the difference too.
"""

from dataclasses import dataclass
from itertools import accumulate

Measures = dict[str, float]
Measured = dict[frozenset[str], Measures]
"""The measures of each model, by the set of parameters that were put back."""


@dataclass(frozen=True)
class Contribution:
    """The contribution of one group to one measure."""

    carried: float
    """The group's step on the way from the deployed to the base model. Over all groups the steps sum to deployed minus base."""
    alone: float
    """The measure of the deployed model minus that of the deployed model with only this group put back."""


def models_to_measure(groups: dict[str, list[str]]) -> list[frozenset[str]]:
    """Every set of parameters that must be put back for `contributions`, with the empty and the full set, without repeats."""
    sets = [*_way(groups, list(groups)), *_way(groups, list(groups)[::-1]), *(frozenset(names) for names in groups.values())]
    return list(dict.fromkeys(sets))


def contributions(groups: dict[str, list[str]], measured: Measured) -> dict[str, dict[str, Contribution]]:
    """{group: {measure: Contribution}} for every measure that all models have."""
    deployed = measured[frozenset()]
    shared = [name for name in deployed if all(name in measured[put_back] for put_back in models_to_measure(groups))]
    steps: dict[str, dict[str, float]] = {group: dict.fromkeys(shared, 0.0) for group in groups}
    for order in (list(groups), list(groups)[::-1]):
        way = _way(groups, order)
        for group, before, after in zip(order, way, way[1:], strict=False):
            for name in shared:
                steps[group][name] += (measured[before][name] - measured[after][name]) / 2
    return {group: {name: Contribution(steps[group][name], deployed[name] - measured[frozenset(names)][name])
                    for name in shared} for group, names in groups.items()}


def _way(groups: dict[str, list[str]], order: list[str]) -> list[frozenset[str]]:
    """The sets that are put back one after another: nothing, the first group, the first two, ... all groups."""
    return list(accumulate((frozenset(groups[group]) for group in order), frozenset.union, initial=frozenset()))
