"""One routed writer: its basis, its coefficients, each environment's part of them, and the tape of one step's backward.

Shape letters: D stream width, K rank, N input width of a target (one more where the writer has a bias: its input is 1),
E environments, S sampled tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from routed_rl.errors import SubspaceError
from routed_rl.ranks import RANKS
from routed_rl.routing.linear import RoutingContext
from routed_rl.routing.shards import Piece, follow, piece_of
from routed_rl.routing.tape import Tape

PROBES = 16


@dataclass(eq=False)
class Target:
    """One routed writer. `basis` V (D, K) lives in the stream; the writer itself is written with A and read with B."""

    name: str
    layer: int
    module: nn.Module
    basis: Tensor
    unit: float
    """Length in the stream that counts as 1: the gap between the personas at this layer."""
    context: RoutingContext
    environments: int
    transposed: bool = False
    """True where the module keeps its weight as (N, D), as GPT-2's Conv1D does."""
    gain_D: Tensor | None = None
    """Gain of a norm between this writer and the stream; None where the writer adds to the stream directly."""
    norm_eps: float = 1e-6
    """Of that norm."""
    expert: int | None = None
    """Which expert of a mixture's `module` this is, whose weight is a slice of `module.down_proj`; None for a plain writer."""
    active: int = 1
    """Experts of `module` that a token goes through."""
    write: Tensor = field(init=False)
    """A (D, K): V, or `diag(1/gain) V`."""
    read: Tensor = field(init=False)
    """B (D, K): V, or `diag(gain) V`; `BᵀA = I`."""
    reference: Tensor = field(init=False)
    """R = BᵀW at the start, (K, N)."""
    coefficients: Tensor = field(init=False)
    """C (K, N)."""
    parts: Tensor = field(init=False)
    """C_e (E, K, N); they sum to C in `route`."""
    tape: Tape = field(init=False)
    probes: Tensor = field(init=False)
    """Random signs (PROBES, D), through which the weights' change is measured without a copy of them."""
    start: Tensor = field(init=False)
    """The weights at the start as the probes see them, (PROBES, N)."""

    def __post_init__(self) -> None:
        weight = self.weight_DN()
        if self.basis.shape[0] != weight.shape[0]:
            raise SubspaceError(f"the basis for {self.name} has {self.basis.shape[0]} rows but the model's stream is "
                                f"{weight.shape[0]} wide; was the subspace extracted from another model?")
        if self.basis.shape[1] > weight.shape[0]:
            raise SubspaceError(f"the basis for {self.name} has rank {self.basis.shape[1]}, more than the stream's width "
                                f"{weight.shape[0]}; lower subspace.rank")
        # float32 at least: in bf16 most of an orthogonal update is lost to rounding.
        dtype = torch.promote_types(weight.dtype, torch.float32)
        self.basis = self.basis.to(weight.device, dtype)
        gain = None if self.gain_D is None else self.gain_D.detach().to(dtype).unsqueeze(1)
        self.write = self.basis if gain is None else self.basis / gain
        self.read = self.basis if gain is None else self.basis * gain
        self.reference = self.read_weights()
        self.coefficients = torch.zeros_like(self.reference)
        self.parts = self.reference.new_zeros(self.environments, *self.reference.shape)
        signs = torch.randint(2, (PROBES, weight.shape[0]), generator=torch.Generator().manual_seed(0))
        self.probes = (2 * signs - 1).to(weight.device, dtype) / PROBES**0.5
        self.start = self.seen()
        self.tape = Tape(self.environments, self.write, weight.shape[1], has_bias=self.has_bias, gain_D=self.gain_D)

    @property
    def rank(self) -> int:
        return self.basis.shape[1]

    @property
    def has_bias(self) -> bool:
        return self.expert is None and self.module.bias is not None

    @property
    def in_pieces(self) -> bool:
        """Each process holds a piece of the weight; where it is whole, `weight_DN` is."""
        return piece_of(self._weight()) is not None

    def weight_DN(self) -> Tensor:
        """The weight as (D, N), a view, whichever way the module keeps it. Not for a weight in pieces."""
        weight = self._weight().data
        weight = weight if self.expert is None else weight[self.expert]
        return weight.mT if self.transposed else weight

    def _piece(self) -> Piece | None:
        return piece_of(self._weight())

    def gradient_square(self) -> Tensor | None:
        """Energy of the gradient of the entries held here; None where there is no gradient, as under ZeRO."""
        gradient = self._weight().grad
        if gradient is None:
            return None
        if (piece := piece_of(gradient)) is not None:
            return piece.flat.square().sum()
        return (gradient if self.expert is None else gradient[self.expert]).square().sum()

    def weight_square(self) -> Tensor:
        """‖W‖² of the entries held here."""
        piece = self._piece()
        return (self.weight_DN() if piece is None else piece.flat).square().sum()

    def _weight(self) -> Tensor:
        weight = self.module.weight if self.expert is None else self.module.down_proj
        assert isinstance(weight, Tensor)
        return weight

    def _bias(self) -> Tensor:
        assert isinstance(self.module.bias, Tensor)
        return self.module.bias

    def read_weights(self) -> Tensor:
        """BᵀW now, (K, N), the bias as the last column; of a weight in pieces, summed over the processes."""
        piece = self._piece()
        if piece is not None:
            share = piece.product(self.read, transposed=self.transposed)
            if self.has_bias and (bias := piece_of(self._bias())) is not None:
                share = torch.cat([share, bias.product(self.read, transposed=False)], dim=1)
            RANKS.sum_([share])
            return share
        inside = self.read.mT @ self.weight_DN().to(self.read.dtype)
        if not self.has_bias:
            return inside
        return torch.cat([inside, (self.read.mT @ self._bias().data.to(inside.dtype)).unsqueeze(1)], dim=1)

    def drift(self) -> Tensor:
        """BᵀW - R, (K, N): how far the weights have moved inside the subspace."""
        return self.read_weights() - self.reference

    def seen(self) -> Tensor:
        """The weights as the probes see them, (PROBES, N); of a weight in pieces, the rows held here."""
        piece = self._piece()
        if piece is None:
            return self.probes @ self.weight_DN().to(self.probes.dtype)
        return piece.product(self.probes.mT, transposed=self.transposed)

    def moved(self) -> Tensor:
        """‖W - W at the start‖² of the entries held here, estimated without bias by the probes; exactly 0 at the start."""
        return (self.seen() - self.start).square().sum()

    def decay(self, weights: float) -> Tensor:
        """The optimizer's decay by column, (N,): `weights` everywhere but for a bias, which trainers spare."""
        decay = self.coefficients.new_full((self.coefficients.shape[1],), weights)
        if self.has_bias:
            decay[-1] = 0.0
        return decay

    @torch.no_grad()
    def move_weights(self, inside_KN: Tensor) -> None:
        """`W += A inside`, the bias by its column; each process moves what it holds."""
        piece, width = self._piece(), self.tape.width
        if piece is not None:
            piece.add(self.write, inside_KN[:, :width], transposed=self.transposed)
            if self.has_bias and (bias := piece_of(self._bias())) is not None:
                bias.add(self.write, inside_KN[:, width:], transposed=False)
            return
        weight = self.weight_DN()
        weight.addmm_(self.write.to(weight.dtype), inside_KN[:, :width].to(weight.dtype))
        follow(self._weight())
        if self.has_bias:
            self._bias().data.addmv_(self.write.to(weight.dtype), inside_KN[:, width].to(weight.dtype))
            follow(self._bias())

    def weight_part(self) -> Tensor:
        """The columns of C that multiply the input, (K, N)."""
        return self.coefficients[:, :-1] if self.has_bias else self.coefficients

    def bias_part(self, dtype: torch.dtype) -> Tensor | None:
        """The column of C that stands for the bias, (K,), or None."""
        return self.coefficients[:, -1].to(dtype) if self.has_bias else None

    def stream_effect(self, coefficients: Tensor, inputs_SN: Tensor) -> Tensor:
        """What `coefficients` (..., K, N) add to the stream for the tape's inputs (S, N), in the basis: (..., S, K)."""
        return inputs_SN.to(coefficients.dtype) @ coefficients.mT
