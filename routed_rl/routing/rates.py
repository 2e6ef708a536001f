"""The learning rate and weight decay of each parameter in the step that an optimizer has just made. Optimizers may have several
groups of parameters with different rates: LoRA+ (Hayou et al., 2024, arXiv:2402.12354) moves the factors B of a LoRA faster than
the factors A."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor


class Rates:
    """Knows the rate and decay of each parameter. A parameter that is in no group, as under ZeRO, whose groups hold pieces of
    their own, is taken to be in the first group."""

    def __init__(self, groups: Sequence[Mapping[str, Any]]) -> None:
        """`groups`: the `param_groups` of the optimizer, with their values in this step."""
        self._groups = {id(parameter): group for group in groups for parameter in group["params"]}
        self._first = groups[0]
        self.most = max(float(group["lr"]) for group in [group for group in groups if len(group["params"])] or groups)
        """The largest learning rate of all groups that have parameters."""
        self.weight_decay = float(self._first.get("weight_decay", 0.0))
        """The weight decay of the first group."""

    def share(self, parameter: Tensor) -> float:
        """Return the learning rate of a parameter divided by `most`; 1 if all rates are 0."""
        rate = float(self._groups.get(id(parameter), self._first)["lr"])
        return rate / self.most if self.most else 1.0

    def decay(self, parameter: Tensor, *, bias: bool = False) -> float:
        """Return the factor by which weight decay shrinks a parameter in this step, its learning rate times its weight decay.
        `bias`: whether the parameter is a bias, which is not decayed if it is in no group."""
        group = self._groups.get(id(parameter), {"lr": 0.0} if bias else self._first)
        return float(group["lr"]) * float(group.get("weight_decay", 0.0))
