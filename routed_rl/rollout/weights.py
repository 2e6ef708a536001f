"""The weights and the adapter that an engine gets when the weights are trained. Tensors are made one at a time, and the model is
not changed. If processes hold shards of the weights, all processes must ask for the same tensors, to the end. Letters of shapes:
D stream width, K rank, N input width of a target. Not covered: mixtures of experts."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from routed_rl.rollout.parts import Part, named
from routed_rl.routing import Target
from routed_rl.routing.shards import whole

NamedTensors = Iterable[tuple[str, Tensor]]
POLICY, DEPLOYED = ADAPTERS = ("policy", "deployed")
"""Names of the adapters that an engine may hold. Each adapter, added to the engine's weights, gives the model of its name."""


class Models(Protocol):
    """Gives an engine what it needs to serve the policy and the deployed model: weights, and for each of the two models an
    adapter on top of them if it needs one."""

    model: nn.Module
    """The trainer's model."""

    def policy(self) -> NamedTensors | None:
        """The weights that are sent to the engine; None if the engine keeps those with which it was started."""
        ...

    def adapter(self, *, deployed: bool) -> str | None:
        """The name of the adapter that turns the engine's weights into the policy, or into the deployed model. None if the
        weights are this model already."""
        ...

    def tensors(self, adapter: str) -> dict[str, Tensor]:
        """The present tensors of an adapter, under PEFT's names. They need no further scaling: the alpha of the adapter equals
        its rank."""
        ...


def keys(module: str) -> tuple[str, str]:
    """PEFT's names for the two factors of a LoRA on this module, `lora_A` and `lora_B`."""
    return f"base_model.model.{module}.lora_A.weight", f"base_model.model.{module}.lora_B.weight"


class PolicyWeights:
    """The weights of a model with a quarantine. `parts` has the quarantine at each module; it is empty in mode `none`. An adapter
    that subtracts the quarantine turns the policy into the deployed model, so that changing between them replaces no weight."""

    def __init__(self, model: nn.Module, parts: Sequence[Part | Target]) -> None:
        self.model, self.parts = model, named(parts)

    def policy(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor that may differ from the base model: the writers' weights with the quarantine added, and everything
        else that is trained. Frozen tensors are left out. A tied weight comes under each of its names, because a packed copy of
        an unembedding does not follow its embedding."""
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            module = name.rpartition(".")[0]
            if module in self.parts:
                yield name, self._with_quarantine(name, whole(parameter))
            elif parameter.requires_grad:
                yield name, whole(parameter)

    def writers(self, *, deployed: bool) -> Iterator[tuple[str, Tensor]]:
        """Yield the parameters of the modules at which there is a quarantine, for the deployed model or for the policy."""
        for name, parameter in self.model.named_parameters():
            if name.rpartition(".")[0] in self.parts:
                yield name, whole(parameter) if deployed else self._with_quarantine(name, whole(parameter))

    def adapter(self, *, deployed: bool) -> str | None:
        return DEPLOYED if deployed and self.parts else None

    def tensors(self, adapter: str) -> dict[str, Tensor]:
        """The adapter that subtracts the quarantine: `lora_A` is the factor (K, N), `lora_B` is minus the factor (D, K)."""
        tensors: dict[str, Tensor] = {}
        for part in self.parts.values():
            assert adapter == DEPLOYED and part.bias(torch.float32) is None
            up_DK, down_KN = part.factors()
            down, up = keys(part.name)
            tensors[down], tensors[up] = down_KN, -up_DK
        return tensors

    @torch.no_grad()
    def _with_quarantine(self, name: str, value: Tensor) -> Tensor:
        # Out of place: merging and unmerging would change weights that training never touched.
        module, _, what = name.rpartition(".")
        part = self.parts[module]
        if what == "bias":
            bias = part.bias(value.dtype)
            return value if bias is None else value + bias
        up_DK, down_KN = part.factors()
        added = up_DK @ down_KN
        return value + (added.mT if part.transposed else added).to(value.dtype)
