"""The quarantine of a model: all its targets, their state for a checkpoint, and ways to leave all or a part of it out."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from numbers import Real

import torch
from torch import Tensor

from routed_rl.errors import ConfigError, SubspaceError
from routed_rl.routing.adapted import AdapterWeight
from routed_rl.routing.context import RoutingContext
from routed_rl.routing.experts import RoutedExperts
from routed_rl.routing.linear import RoutedUp, route_module, unroute_module
from routed_rl.routing.shards import put
from routed_rl.routing.target import Target


class Quarantine:
    """Holds all targets of one model. The constructor routes the targets' modules in place."""

    def __init__(self, targets: list[Target], environments: list[str], context: RoutingContext) -> None:
        self.targets, self.environments, self.context = targets, environments, context
        self.held = 0
        """The number of `with` blocks of `ablated`, `scaled` and `kept` that have been entered and not yet left."""
        self.replaced = 0
        """The number of `with` blocks of `scaled` and `kept` that have been entered and not yet left. While it is above 0, the
        targets' coefficients are not those that were learned."""
        self.frozen: list[torch.nn.Parameter] = []
        """Parameters that routing has frozen. They can be trained again after `remove`."""
        self._before: dict[str, Tensor] = {}
        """After `remove`, the factor B that each LoRA had until then, by the name of its target."""
        context.adapter = next((target.module for target in targets if target.weight.up is not None), context.adapter)
        for target in targets:
            if target.expert is None:
                route_module(target.module, target)
                if target.weight.up is not None:
                    route_module(target.weight.up, target, RoutedUp)
            elif target.expert == 0:
                experts = sorted((one for one in targets if one.module is target.module), key=lambda one: one.expert or 0)
                basis = target.pair.basis
                assert all(one.pair.basis.equal(basis) for one in experts), f"{target.name}: one basis for all its mixture"
                route_module(target.module, experts, RoutedExperts)

    def remove(self) -> None:
        """Discard the quarantine: give every routed module the class back that it had before, and remove from LoRAs what they
        hold inside the subspace, so that the model is the deployed model. Parameters that routing has frozen can be trained
        again. `state_dict` still describes the quarantine that was discarded. Calling this again has no effect."""
        for target in self.targets:
            for module in filter(None, (target.module, target.weight.up)):
                if hasattr(module, "routed_target"):
                    unroute_module(module)
            if isinstance(target.weight, AdapterWeight):
                self._before.setdefault(target.name, target.weight.factors[0].detach().clone())
            if target.frozen:
                target.take_out(target.inside())
        for parameter in self.frozen:
            parameter.requires_grad_(True)
        self.frozen = []

    @property
    def is_on(self) -> bool:
        """Whether the model's modules are routed to these targets; False after `remove`."""
        routed = [(target, getattr(target.module, "routed_target", None)) for target in self.targets]
        return all(target is found or (isinstance(found, list) and target in found) for target, found in routed)

    @contextmanager
    def ablated(self) -> Iterator[None]:
        """Inside the block, the model is the deployed model. Afterwards the policy is restored exactly."""
        before, self.held = self.context.now.ablated, self.held + 1
        self.context.change(ablated=True)
        try:
            yield
        finally:
            self.context.change(ablated=before)
            self.held -= 1

    @contextmanager
    def scaled(self, scale: float) -> Iterator[None]:
        """Inside the block, the quarantine's output is multiplied by `scale`: 1 gives the policy and 0 the deployed model, to the
        bit. Afterwards the policy is restored exactly. ConfigError if `scale` is no finite number."""
        if not _is_number(scale):
            raise ConfigError(f"scaled: {scale!r} is no finite number; give one such as .5, where 1 gives the policy and 0 the "
                              "deployed model")
        with self._holding([target.coefficients * scale for target in self.targets], nothing=scale == 0):
            yield

    @contextmanager
    def kept(self, shares: Mapping[str, float]) -> Iterator[None]:
        """Inside the block, the quarantine holds only a share of each environment's part, given by the environment's name in
        `shares`; a name that is missing has the share 0. If all shares are 1 the model is the policy (in mode `route`), and if
        all are 0 it is the deployed model, to the bit. Afterwards the policy is restored exactly. ConfigError for a name that is
        no environment's, and for a share that is no finite number."""
        for name, share in shares.items():
            if name not in self.environments or not _is_number(share):
                raise ConfigError(f"kept: {name}={share!r} is no share of an environment's part; give a number for some of "
                                  f"{', '.join(self.environments)}")
        share_of = [shares.get(name, 0.0) for name in self.environments]
        with self._holding([kept_of(target.parts, share_of) for target in self.targets], nothing=not any(share_of)):
            yield

    @contextmanager
    def _holding(self, coefficients: list[Tensor], *, nothing: bool) -> Iterator[None]:
        """Inside the block, the targets have `coefficients`, one tensor (K, N) per target, instead of those that were learned.
        `nothing`: whether all of these tensors are zero."""
        before, whole = [target.coefficients.clone() for target in self.targets], self.context.now.whole
        self.context.change(whole=False)
        self.held, self.replaced = self.held + 1, self.replaced + 1
        try:
            for target, inside in zip(self.targets, coefficients, strict=True):
                target.coefficients.copy_(inside)
            with self.ablated() if nothing else nullcontext():
                yield
        finally:
            self.held, self.replaced = self.held - 1, self.replaced - 1
            self.context.change(whole=whole)
            for target, inside in zip(self.targets, before, strict=True):
                target.coefficients.copy_(inside)

    def deployed_factors(self) -> dict[str, Tensor]:
        """Return the factors B (D, rank) that LoRAs have in the deployed model, by the names of their writers. Only LoRAs that
        have another B in the policy are included: in mode `observe`, the policy's B also holds the change inside the subspace
        (see `Mode.whole`)."""
        return {target.name: target.pair.outside(weight.factors[0]) for target in self.targets if (weight := _keeping(target))}

    def norm(self) -> float:
        """The Frobenius norm |C| of the coefficients of all targets together."""
        return sum(target.coefficients.square().sum().item() for target in self.targets) ** 0.5

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of all tensors that a checkpoint stores of the quarantine, under `<target>.<name>`: each target's basis,
        reference R, coefficients, parts and mean input, also the target's matrices A and B if a gain stands between writer and
        stream, and the policy's factor B of each LoRA that `deployed_factors` names."""
        # Cloned, because targets of one layer share a basis, which safetensors refuses.
        return {f"{target.name}.{key}": value.clone(memory_format=torch.contiguous_format) for target in self.targets
                for key, value in self._tensors(target).items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned. SubspaceError, which names the tensor, if a tensor of this quarantine is missing in
        `state` or has another shape there, because the model, the subspace or the number of environments differs."""
        ours = {f"{target.name}.{key}": value for target in self.targets for key, value in self._tensors(target).items()}
        for name, value in ours.items():
            found = tuple(state[name].shape) if name in state else None
            if found != tuple(value.shape):
                raise SubspaceError(f"checkpoint holds {found} for {name} where this run has {tuple(value.shape)}; "
                                    "resume with the same model, subspace and environments")
        for name, value in ours.items():
            value.copy_(state[name])
        for target in self.targets:
            if weight := _keeping(target):  # its factors may be in pieces
                put(weight.up.weight, state[f"{target.name}.up"])

    def _tensors(self, target: Target) -> dict[str, Tensor]:
        pair = target.pair
        both = {} if pair.gain_D is None else {"write": pair.write, "read": pair.read}
        if weight := _keeping(target):  # the checkpoint's adapter file has the factor of the deployed model
            both["up"] = self._before.get(target.name, weight.factors[0])
        return {"basis": pair.basis, **both, "reference": target.reference, "coefficients": target.coefficients,
                "parts": target.parts, "mean_input": target.tape.mean_input, "mean_weight": target.tape.mean_weight}


def kept_of(parts_EKN: Tensor, shares: Sequence[float]) -> Tensor:
    """Return the coefficients (K, N) of a target that keeps a share of each environment's part. `shares` has one number per
    environment. Parts are added in the same order as in mode `route`, so that shares of 1 give C to the bit."""
    kept_KN = torch.zeros_like(parts_EKN[0])
    for part_KN, share in zip(parts_EKN, shares, strict=True):
        kept_KN += share * part_KN
    return kept_KN


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and math.isfinite(value)


def _keeping(target: Target) -> AdapterWeight | None:
    """Return the target's weight if its LoRA now keeps the whole change, including the part inside the subspace (see
    `Mode.whole`); otherwise None."""
    return target.weight if isinstance(target.weight, AdapterWeight) and target.context.now.whole else None
