"""Computes p values for the effects of steering the stream along axes, by comparison with steering along random directions. The p
values are corrected for the number of axes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Effects:
    """The changes of a score when a vector along a direction is added to the stream (`more`), when the negated vector is added
    (`less`), and when the stream's component along the direction is removed (`ablated`)."""

    more: float
    less: float
    ablated: float

    @property
    def steering(self) -> float:
        """Half the difference between `more` and `less`. An effect that does not depend on the sign, such as the harm that any
        added vector does, cancels."""
        return (self.more - self.less) / 2


def judge(names: Sequence[str], real: Sequence[Effects], drawn: Sequence[Effects]) -> dict[str, Any]:
    """Return p values of the axes' effects as plain JSON. `names`, `real`: the axes and their effects; `drawn`: the effects of
    random directions. The result's `axes` has for each axis its effects, `p` and `p_corrected` of steering, `ablation_p` and
    `ablation_p_corrected` of the removal, and `as_signed` (whether steering raised the score); its `random` has the effects of
    the random directions.

    A p value is two-sided: (1 + the number of random directions with an effect of at least that size) / (1 + the number of random
    directions). It is exact if the axis and the random directions are exchangeable. Corrected p values are corrected over the
    axes by Holm's method (1979).
    """
    random = {"steering": [other.steering for other in drawn], "ablated": [other.ablated for other in drawn]}
    steering = [place(effect.steering, random["steering"]) for effect in real]
    ablation = [place(effect.ablated, random["ablated"]) for effect in real]
    rows = zip(names, real, steering, holm(steering), ablation, holm(ablation), strict=True)
    return {"axes": [{"axis": name, "more": effect.more, "less": effect.less, "steering": effect.steering,
                      "ablated": effect.ablated, "p": p, "p_corrected": corrected, "ablation_p": other,
                      "ablation_p_corrected": other_corrected, "as_signed": effect.steering > 0}
                     for name, effect, p, corrected, other, other_corrected in rows], "random": random}


def place(value: float, others: Sequence[float]) -> float:
    """Return the share of numbers that are at least as far from zero as `value`, among `value` itself and `others`."""
    return (1 + sum(abs(other) >= abs(value) for other in others)) / (1 + len(others))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p values after Holm's step-down correction, in the order of `p_values`."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected
