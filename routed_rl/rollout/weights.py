"""What an engine must hold to be the policy, or the deployed model: built out of place, one tensor at a time. Where processes
hold pieces of the weights all of them must ask, for the same, to the end. Shape letters: D stream width, K rank, N input width of
a target, R rank of the adapter. Not covered: mixtures of experts."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from routed_rl.errors import RolloutError
from routed_rl.routing import Target
from routed_rl.routing.shards import whole

NamedTensors = Iterable[tuple[str, Tensor]]


class PolicyWeights:
    """The weights of a model whose writers are routed; `targets` is empty in mode `none`."""

    def __init__(self, model: nn.Module, targets: Sequence[Target]) -> None:
        if mixed := [target.name for target in targets if target.expert is not None]:
            raise RolloutError(f"{mixed[0]} is an expert of a mixture, whose quarantine is not pushed to vLLM; set "
                               "rollout=transformers")
        self.model, self.targets = model, {target.name: target for target in targets}

    @property
    def rank(self) -> int:
        """The largest rank of a target."""
        return max((target.rank for target in self.targets.values()), default=0)

    @property
    def has_bias(self) -> bool:
        return any(target.has_bias for target in self.targets.values())

    def policy(self) -> Iterator[tuple[str, Tensor]]:
        """Everything that may differ from the base model: `W + A C` of targets, and what trains. Frozen tensors are left out. A
        tied weight comes under each of its names: a packed copy of an unembedding does not follow its embedding."""
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            module = name.rpartition(".")[0]
            if module in self.targets:
                yield name, self._with_quarantine(name, whole(parameter))
            elif parameter.requires_grad:
                yield name, whole(parameter)

    def writers(self, *, deployed: bool) -> Iterator[tuple[str, Tensor]]:
        """The targets' own parameters alone: of the deployed model, or of the policy."""
        for name, parameter in self.model.named_parameters():
            if name.rpartition(".")[0] in self.targets:
                yield name, whole(parameter) if deployed else self._with_quarantine(name, whole(parameter))

    def minus_quarantine(self, rank: int) -> dict[str, Tensor]:
        """The tensors of a LoRA of `rank` that turns the policy into the deployed model, under PEFT's names. `lora_A` is C (R,
        N), `lora_B` is -A (D, R), both filled up with zeros, since vLLM knows one rank for all."""
        assert not self.has_bias and rank >= self.rank
        tensors: dict[str, Tensor] = {}
        for target in self.targets.values():
            fill = (0, rank - target.rank)
            key = f"base_model.model.{target.name}"
            tensors[f"{key}.lora_A.weight"] = nn.functional.pad(target.coefficients, (0, 0, *fill)).cpu().contiguous()
            tensors[f"{key}.lora_B.weight"] = nn.functional.pad(-target.pair.write, fill).cpu().contiguous()
        return tensors

    @torch.no_grad()
    def _with_quarantine(self, name: str, value: Tensor) -> Tensor:
        # Out of place: merging and unmerging would change weights that training never touched.
        module, _, what = name.rpartition(".")
        target = self.targets[module]
        if what == "bias":
            bias = target.bias_part(value.dtype)
            assert bias is not None
            return value + target.pair.write.to(value.dtype) @ bias
        added = target.pair.write @ target.weight_part()
        return value + (added.mT if target.weight.transposed else added).to(value.dtype)
