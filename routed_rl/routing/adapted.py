"""Represents the frozen weight of a writer, in any dtype: either nothing of the writer is trained, or a LoRA on the weight is.

A LoRA of scaling s changes the weight by `s B A` (`lora_B`, `lora_A`). The retained change is `s (I - A_basis B_basisᵀ) B A` by
construction: `RoutedUp` leaves out the part of B inside the subspace, so no optimizer can move the retained change into the
subspace. (A_basis and B_basis are the matrices A and B of `BasisPair`.) PEFT's modules are recognised by their attributes only.
If processes hold pieces of the factors, both factors are gathered once a step, because they are small. Shape letters: D stream
width, R rank of the LoRA, K rank of the basis, N input width, M columns of `left`.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from routed_rl.routing.pair import BasisPair
from routed_rl.routing.rates import Rates
from routed_rl.routing.shards import piece_of, put, whole

NAME = "default"
"""The name of the LoRA that is trained. It is PEFT's default."""


class FrozenWeight:
    """The weight of a writer of which nothing is trained. Its methods have the names of methods of `WriterWeight`, but describe
    the change of the weight since training began, not the weight itself. In this class the change is 0; the subclass
    `AdapterWeight` has a LoRA that changes the weight."""

    bias = piece = None
    """`bias` is None because a frozen bias is not routed. `piece` is None because every process holds the whole weight."""
    transposed = False
    up: Any = None
    """The module with the LoRA's factor B, which writes to the stream; None without a LoRA."""

    def __init__(self, module: Any, *, transposed: bool = False, expert: int | None = None) -> None:
        """`transposed`, `expert`: see `WriterWeight`."""
        weight = module.weight if expert is None else module.down_proj[expert]
        self.rows, self.width = shape_of(weight)[::-1] if transposed else shape_of(weight)
        self.device, self.dtype = weight.device, torch.promote_types(weight.dtype, torch.float32)
        self.pair: BasisPair

    def begin(self, pair: BasisPair) -> Tensor:
        """Set the basis pair by which the weight is routed. Returns the reference for `inside`, (K, N), which is 0 because
        changes are measured from the frozen weight."""
        self.pair = pair
        return pair.read.new_zeros(pair.rank, self.width)

    def inside(self, reference_KN: Tensor) -> Tensor:
        """Return the change of the weight inside the subspace that the trained LoRA holds, (K, N); 0 without a LoRA.
        `reference_KN`: the result of `begin`."""
        return torch.zeros_like(reference_KN)

    def drift(self, reference_KN: Tensor) -> Tensor:
        """Return the change of the deployed model's weight inside the subspace, (K, N). It would be 0 without rounding errors.
        `reference_KN`: the result of `begin`."""
        return torch.zeros_like(reference_KN)

    def take_out(self, inside_KN: Tensor) -> None:
        """Remove from the trained LoRA everything that it holds inside the subspace; does nothing without a LoRA. `inside_KN`:
        the result of `inside`."""

    def square(self) -> Tensor:
        """Squared norm ‖ΔW‖² of the retained change, ()."""
        return self.pair.read.new_zeros(())

    moved = square

    def start(self) -> None:
        """Returns None in place of the copy that `WriterWeight.start` returns: `moved_from` needs no copy here, because it always
        measures from the frozen weight."""

    def moved_from(self, start: Any) -> Tensor:
        return self.moved()

    def measure_start(self) -> None:
        """Does nothing, because the change is always measured from the frozen weight."""

    def gradient_square(self) -> Tensor | None:
        """Squared norm of the change, to first order, that a gradient step at rate 1 would make to the writer's weight, (); None
        if there are no gradients."""
        return None

    def routed_square(self, ledger_KN: Tensor, *, whole: bool) -> Tensor:
        """Squared norm, (), of the change inside the subspace that a gradient step at rate 1 would make to the writer's weight if
        nothing were routed. `ledger_KN`: the target's ledger, summed over environments. `whole`: whether the LoRA runs unchanged
        (see `Mode.whole`), so that its own gradients contain that change."""
        return ledger_KN.square().sum()

    def pace(self, rates: Rates) -> float | None:
        """How far an entry of the weight moves, as a root mean square, in a step in which every trained number moves by its
        learning rate, divided by the largest rate; None if nothing is trained."""
        return None


class AdapterWeight(FrozenWeight):
    """The frozen weight of a writer with a LoRA on it. As in `FrozenWeight`, the methods describe the change of the weight, which
    the LoRA holds, and not the weight itself."""

    def __init__(self, module: Any) -> None:
        self.module, self.up, self.down = module, module.lora_B[NAME], module.lora_A[NAME]
        self.rows, self.width = len(self.up.weight), self.down.weight.shape[1]
        self.device, self.dtype = self.up.weight.device, self.up.weight.dtype
        self._held: tuple[Tensor, Tensor] | None = None

    @property
    def scaling(self) -> float:
        return self.module.scaling[NAME]

    @property
    def factors(self) -> tuple[Tensor, Tensor]:
        """The trained factors B (D, R) and A (R, N), in the dtype and on the device in which they were trained, also if the model
        was moved since. If they are in pieces, every process must read this property."""
        up_DR, down_RN = self._held or (whole(self.up.weight), whole(self.down.weight))
        return up_DR.to(self.device, self.dtype), down_RN.to(self.device, self.dtype)

    def hold(self) -> None:
        """If the LoRA's factors are in pieces, gather them, and keep the full tensors until `release` is called."""
        if piece_of(self.up.weight) is not None:
            self._held = self.factors

    def release(self) -> None:
        self._held = None

    def retained(self) -> tuple[Tensor, Tensor]:
        """Return two matrices, (D, R) and (R, N), whose product is the retained change. The first includes the LoRA's scaling."""
        up_DR, down_RN = self.factors
        return self.scaling * self.pair.outside(up_DR), down_RN

    def inside(self, reference_KN: Tensor) -> Tensor:
        up_DR, down_RN = self.factors
        return self.scaling * (self.pair.read.mT @ up_DR) @ down_RN

    def drift(self, reference_KN: Tensor) -> Tensor:
        up_DR, down_RN = self.retained()
        return (self.pair.read.mT @ up_DR) @ down_RN

    def take_out(self, inside_KN: Tensor) -> None:
        up_DR = self.pair.outside(self.factors[0])
        put(self.up.weight, up_DR)
        if self._held is not None:
            self._held = up_DR, self._held[1]

    def square(self) -> Tensor:
        return product_square(*self.retained())

    moved = square

    def gradient_square(self) -> Tensor | None:
        # Under ZeRO the parameters have no gradient here.
        return None if self.up.weight.grad is self.down.weight.grad is None else product_square(*self._step())

    def routed_square(self, ledger_KN: Tensor, *, whole: bool) -> Tensor:
        if whole:
            left_DM, right_MN = self._step()
            return product_square(self.pair.read.mT @ left_DM, right_MN)
        down_RN = self.scaling * self.factors[1]
        return product_square(ledger_KN @ down_RN.mT, down_RN)

    def _step(self) -> tuple[Tensor, Tensor]:
        """Return two matrices, (D, 2R) and (2R, N), whose product is `s (∂B A + B ∂A)`. This is how much `s B A` changes, to
        first order, if the LoRA's factors B and A move by their gradients ∂B and ∂A."""
        up_DR, down_RN = self.factors
        up_grad, down_grad = (torch.zeros_like(factor) if (grad := module.weight.grad) is None else whole(grad)
                              for module, factor in ((self.up, up_DR), (self.down, down_RN)))
        return self.scaling * torch.cat([up_grad, up_DR], 1), torch.cat([down_RN, down_grad])

    def pace(self, rates: Rates) -> float:
        up_DR, down_RN = self.factors
        by_up, by_down = rates.share(self.up.weight) ** 2, rates.share(self.down.weight) ** 2
        square = by_up * down_RN.square().sum() / self.width + by_down * up_DR.square().sum() / self.rows
        return self.scaling * square.item() ** 0.5


def shape_of(weight: Any) -> torch.Size:
    """The shape that a weight has as a matrix, also if it is stored packed in 4 bit."""
    return (getattr(weight, "quant_state", None) or weight).shape


@contextmanager
def holding(weights: Iterable[Any]) -> Iterator[None]:
    """Inside the block, each LoRA among `weights` keeps full tensors of its factors, gathered once at the start, if its factors
    are in pieces. `weights`: the attributes `weight` of targets; those without a LoRA are left alone."""
    adapters = [weight for weight in weights if isinstance(weight, AdapterWeight)]
    try:
        for weight in adapters:
            weight.hold()
        yield
    finally:
        for weight in adapters:
            weight.release()


def product_square(left_DM: Tensor, right_MN: Tensor) -> Tensor:
    """Squared Frobenius norm of the product `left right`, () float64, computed without forming the product."""
    left_DM, right_MN = left_DM.double(), right_MN.double()
    return ((left_DM.mT @ left_DM) * (right_MN @ right_MN.mT)).sum().clamp(min=0)


def has_adapter(module: nn.Module) -> bool:
    """Whether this module has a LoRA that is trained."""
    return NAME in getattr(module, "lora_B", ())
