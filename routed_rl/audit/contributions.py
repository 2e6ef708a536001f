"""What each group carries of a difference between two models, from the models in between. Not covered: pairs of groups.

Groups interact, so putting each back alone does not add up. What adds up is putting them back one after another: what group i
carries is the step it makes. That depends on the order; the mean over the order and its reverse is reported, which still adds up.
"""

from dataclasses import dataclass
from itertools import accumulate

Measures = dict[str, float]
Measured = dict[frozenset[str], Measures]
"""By the set of parameters that were put back."""


@dataclass(frozen=True)
class Contribution:
    """Of one group and one measure."""

    carried: float
    """Its step on the way from the deployed to the base model; over the groups these sum to deployed minus base."""
    alone: float
    """Deployed minus the deployed model with this group alone put back."""


def models_to_measure(groups: dict[str, list[str]]) -> list[frozenset[str]]:
    """Every set of parameters that `contributions` needs put back, the empty and the full one included, without repeats."""
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
    """Nothing put back, the first group, the first two, ... all."""
    return list(accumulate((frozenset(groups[group]) for group in order), frozenset.union, initial=frozenset()))
