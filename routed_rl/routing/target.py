"""The target: one routed writer with its weight and basis, its coefficients and each environment's part of them, and the tape of
its backward passes.

Shape letters: D stream width, K rank, N input width of a target (one more if the writer has a bias, whose input is 1), E
environments.
"""

import torch
from torch import Tensor, nn

from routed_rl.errors import SubspaceError
from routed_rl.routing.adapted import AdapterWeight, FrozenWeight, has_adapter
from routed_rl.routing.context import Record, RoutingContext
from routed_rl.routing.pair import BasisPair
from routed_rl.routing.rates import Rates
from routed_rl.routing.tape import Tape
from routed_rl.routing.weight import WriterWeight


class Target:
    """One routed writer, which may be one expert of a mixture. It holds all that routing needs of the writer."""

    def __init__(self, name: str, layer: int, module: nn.Module, basis: Tensor, unit: float, context: RoutingContext,
                 environments: int, *, transposed: bool = False, gain_D: Tensor | None = None, norm_eps: float | None = 1e-6,
                 expert: int | None = None, active: int = 1, place: int | None = None) -> None:
        """`basis`: the subspace's basis (D, K) at this writer; SubspaceError if it does not fit. `unit`: the gap between the
        personas at `place`, which is the length in the stream that counts as 1. `context`: the record that all taps of the model
        share. `environments`: the number of environments. `transposed`, `expert`: see `WriterWeight`. `gain_D`, `norm_eps`: see
        `BasisPair`. `active`: the number of experts of `module` that a token goes through. `place`: the first layer at which the
        subspace was extracted after this writer had added its output; None: `layer`."""
        self.place = layer if place is None else place
        self.name, self.layer, self.module, self.unit, self.context = name, layer, module, unit, context
        self.expert, self.active = expert, active
        self.weight = _weight(module, transposed=transposed, expert=expert)
        width = self.weight.rows
        if basis.shape[0] != width:
            raise SubspaceError(f"the basis for {name} has {basis.shape[0]} rows but the model's stream is {width} wide; "
                                "was the subspace extracted from another model?")
        if basis.shape[1] > width:
            raise SubspaceError(f"the basis for {name} has rank {basis.shape[1]}, more than the stream's width {width}; "
                                "lower subspace.rank")
        self.pair = BasisPair.of(basis.to(self.weight.device, self.weight.dtype), gain_D, norm_eps)
        self.reference = self.weight.begin(self.pair)
        """The reference R (K, N) from which changes inside the subspace are measured: `BᵀW` at the start, or 0 if W is frozen."""
        self.coefficients = torch.zeros_like(self.reference)
        """The coefficients C (K, N) of the quarantine."""
        self.parts = self.reference.new_zeros(environments, *self.reference.shape)
        """The environments' parts C_e (E, K, N) of the coefficients. In mode `route` they sum to C."""
        self.tape = Tape(environments, self.pair, self.weight.width, has_bias=self.has_bias)

    @property
    def rank(self) -> int:
        return self.pair.rank

    @property
    def has_bias(self) -> bool:
        return self.weight.bias is not None

    @property
    def frozen(self) -> bool:
        """Whether the weight itself is frozen. A LoRA on it may still be trained."""
        return isinstance(self.weight, FrozenWeight)

    def is_whole(self, record: Record) -> bool:
        """Whether a forward pass with this record runs the module unchanged. The module's LoRA, and not C, then holds what is
        learned inside the subspace."""
        return record.whole and not record.ablated and self.frozen

    def adds(self, record: Record) -> bool:
        """Whether a forward pass with this record adds the quarantine's output `A C x`."""
        return not record.ablated and not self.is_whole(record)

    def inside(self) -> Tensor:
        """Return `BᵀW - R`, (K, N), the change that the weight has learned inside the subspace."""
        return self.weight.inside(self.reference)

    def drift(self) -> Tensor:
        """Return `BᵀW - R` for the weight W of the deployed model, (K, N). After a step it would be 0 without rounding errors."""
        return self.weight.drift(self.reference)

    def take_out(self, inside_KN: Tensor) -> None:
        """Subtract from the weight what it has learned inside the subspace: `W -= A inside`. `inside_KN` is the result of
        `inside()`."""
        self.weight.take_out(inside_KN)

    def decay(self, rates: Rates) -> Tensor:
        """Return the factor by which weight decay shrinks each column of C in this step, (N,): as it shrinks the weight, and for
        the column that stands for a bias, as it shrinks the bias. It is 0 if the weight is frozen."""
        decay = self.coefficients.new_zeros(self.coefficients.shape[1])
        if isinstance(self.weight, WriterWeight):
            decay += rates.decay(self.weight.stored)
            if self.weight.bias is not None:
                decay[-1] = rates.decay(self.weight.bias, bias=True)
        return decay

    def weight_part(self) -> Tensor:
        """Return the columns of C that multiply the input: (K, N) without the column for a bias."""
        return self.coefficients[:, :-1] if self.has_bias else self.coefficients

    def bias_part(self, like: Tensor | torch.dtype) -> Tensor | None:
        """Return the column of C that stands for the bias, (K,), in the dtype `like`, or in the dtype and on the device of the
        tensor `like`; None if the writer has no bias."""
        return self.coefficients[:, -1].to(like) if self.has_bias else None


def _weight(module: nn.Module, *, transposed: bool, expert: int | None) -> WriterWeight | FrozenWeight:
    """Make the object that represents the weight of a module. Its class depends on whether the weight, a LoRA on it, or nothing
    is trained."""
    if expert is None and has_adapter(module):
        return AdapterWeight(module)
    if any(parameter.requires_grad for parameter in module.parameters()):
        return WriterWeight(module, transposed=transposed, expert=expert)
    return FrozenWeight(module, transposed=transposed, expert=expert)
