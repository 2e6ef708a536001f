"""Computes p values from the effects of steering along axes and along random directions, corrected for the number of axes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Effects:
    """How the score changes when the stream is pushed along a direction (`more`), when it is pushed the other way (`less`), and
    when the direction is removed from it (`ablated`)."""

    more: float
    less: float
    ablated: float

    @property
    def steering(self) -> float:
        """Half the difference between the effects of both signs. Effects that do not depend on the sign (any push harms) cancel
        in it."""
        return (self.more - self.less) / 2


def judge(names: Sequence[str], real: Sequence[Effects], drawn: Sequence[Effects]) -> dict[str, Any]:
    """The result as plain JSON. `axes` has for each axis its effects, `p` and `p_corrected` of steering, `ablation_p` and
    `ablation_p_corrected`; `random` has the effects of the random directions.

    Both p values are two-sided ranks among the random directions, (1 + the number of directions with at least that effect) / (1 +
    the number of directions), so they are exact if the axis and the random directions are exchangeable. They are corrected over
    the axes by Holm's method (1979).
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
    """Share of the numbers `value` and `others` that are at least as far from zero as `value`."""
    return (1 + sum(abs(other) >= abs(value) for other in others)) / (1 + len(others))


def holm(p_values: Sequence[float]) -> list[float]:
    """P values after Holm's step-down correction, in the order of `p_values`."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected
