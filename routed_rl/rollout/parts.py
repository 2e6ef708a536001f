"""The quarantine at each module in the form that an engine needs: two factors, whose product is added to the module's weight.

"Part" means here the quarantine at one module, caused by all environments. Letters of shapes: D outputs, K rank, N inputs, R rank
of a LoRA that is trained.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from routed_rl.errors import RolloutError
from routed_rl.routing import Quarantine, Target
from routed_rl.routing.labels import LabelAdapter, LabelQuarantine

BELOW = ".base_layer"
"""Ending that PEFT adds to the name of a module when it puts a LoRA around that module."""


@dataclass(frozen=True, eq=False)
class Part:
    """The quarantine at one module. Its functions return the present values at each call, because the factors change at each
    step."""

    name: str
    factors: Callable[[], tuple[Tensor, Tensor]]
    """Function that returns the factors (D, K) and (K, N)."""
    bias: Callable[[torch.dtype], Tensor | None]
    """Function that returns the vector (D,) that is added to the module's bias; None if nothing is added."""
    retained: Callable[[Tensor], Tensor]
    """Function that maps the up factor (D, R) of a LoRA on the module to its retained component, which is the up factor in the
    deployed model."""
    transposed: bool
    """Whether the module stores its weight as (N, D)."""


def parts_of(quarantine: Quarantine) -> list[Part]:
    """The quarantine at each module of a model. RolloutError if a target is an expert of a mixture of experts."""
    if isinstance(quarantine, LabelQuarantine):
        return [_of_labels(quarantine, name, adapter) for name, adapter in quarantine.adapters.items()]
    return [part_of(target) for target in quarantine.targets]


def part_of(target: Target) -> Part:
    """The quarantine at one routed writer. RolloutError if `target` is an expert of a mixture of experts."""
    if target.expert is not None:
        raise RolloutError(f"{target.name} is an expert of a mixture, whose quarantine is not pushed to vLLM; set "
                           "rollout=transformers")
    return Part(target.name, lambda: (target.pair.write, target.weight_part()), partial(_bias, target), target.pair.outside,
                target.weight.transposed)


def named(parts: Sequence[Part | Target]) -> dict[str, Part]:
    """Maps the name of each module to the quarantine there. A target is converted by `part_of`."""
    found = [part_of(each) if isinstance(each, Target) else each for each in parts]
    return {part.name: part for part in found}


def _bias(target: Target, dtype: torch.dtype) -> Tensor | None:
    bias_K = target.bias_part(dtype)
    return None if bias_K is None else target.pair.write.to(dtype) @ bias_K


def _of_labels(quarantine: LabelQuarantine, name: str, adapter: LabelAdapter) -> Part:
    """The quarantine of label routing at one module, whose adapter is `adapter`. In label routing the whole change of a LoRA that
    is trained is retained."""
    return Part(name.removesuffix(BELOW), lambda: adapter.product(quarantine.gates.scale), lambda _dtype: None,
                lambda up_DR: up_DR, quarantine.sites[name].transposed)
