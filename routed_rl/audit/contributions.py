"""How much of the difference between the deployed and the base model each group of parameters carries. To find this out, models
are measured in which some groups have the base model's values. Not covered: pairs of groups.

To put a group back is to give its parameters the base model's values. Groups interact, so the effects of putting back each group
alone do not sum to the difference. If the groups are put back one after another, their effects do sum to it, but the effect of a
group depends on the order. The contribution that is reported is therefore the mean over one order and its reverse; these means
sum to the difference too.
"""

from dataclasses import dataclass
from itertools import accumulate

Measures = dict[str, float]
Measured = dict[frozenset[str], Measures]
"""The measures of each model, keyed by the set of parameters that have the base model's values."""


@dataclass(frozen=True)
class Contribution:
    """The contribution of one group to one measure."""

    carried: float
    """How much the measure falls when the group is put back after all groups that precede it in the order; the mean over one
    order and its reverse. Over all groups this sums to the measure of the deployed model minus that of the base model."""
    alone: float
    """The measure of the deployed model minus that of the deployed model in which only this group has the base model's values."""


def models_to_measure(groups: dict[str, list[str]]) -> list[frozenset[str]]:
    """The models that `contributions` needs, each given by the set of parameters that have the base model's values. No set comes
    twice; the empty set (the deployed model) and the full set (the base model) are among them. `groups` maps the name of a group
    to its parameters."""
    sets = [*_way(groups, list(groups)), *_way(groups, list(groups)[::-1]), *(frozenset(names) for names in groups.values())]
    return list(dict.fromkeys(sets))


def contributions(groups: dict[str, list[str]], measured: Measured) -> dict[str, dict[str, Contribution]]:
    """{group: {measure: Contribution}} for every measure that all models have. `groups` maps the name of a group to its
    parameters; `measured` must have an entry for each set of `models_to_measure(groups)`."""
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
    """Put the groups back one after another in the `order`, and return the set of parameters that are put back before the first
    step and after each step: none, those of the first group, those of the first two, ... those of all groups."""
    return list(accumulate((frozenset(groups[group]) for group in order), frozenset.union, initial=frozenset()))
