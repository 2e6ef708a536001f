"""A writer's own weight, however the model stores it: transposed, with a bias, as one expert of a mixture, whole or in pieces.

The class computes products with the weight, changes it, and measures how far it has moved. Shape letters: D stream width, N input
width (if there is a bias, it is the last column), M columns of `left`.
"""

from typing import Any

import torch
from torch import Tensor, nn

from routed_rl.ranks import RANKS
from routed_rl.routing.pair import BasisPair
from routed_rl.routing.shards import Piece, follow, piece_of

PROBES = 16
"""Number of random sign vectors by which the change of the weights is measured without a copy of them."""


class WriterWeight:
    """The weight of one writer, as a matrix W (D, N)."""

    up: Any = None
    """Always None, because there is no LoRA on the weight; see `AdapterWeight`."""

    def __init__(self, module: nn.Module, *, transposed: bool = False, expert: int | None = None) -> None:
        """`transposed`: the module stores (N, D), as GPT-2's Conv1D does. `expert`: W is this slice of `module.down_proj`."""
        self.module, self.transposed, self.expert = module, transposed, expert
        weight = self.matrix()
        self.rows, self.width = weight.shape
        """D, and N not counting the bias."""
        self.device = weight.device
        # At least float32, because in bf16 most of an orthogonal update is lost to rounding.
        self.dtype = torch.promote_types(weight.dtype, torch.float32)
        signs = torch.randint(2, (PROBES, weight.shape[0]), generator=torch.Generator().manual_seed(0))
        self._probes = (2 * signs - 1).to(weight.device, self.dtype) / PROBES**0.5
        self.measure_start()

    def begin(self, pair: BasisPair) -> Tensor:
        """Set the basis pair by which the weight is routed. Returns R = BᵀW, (K, N)."""
        self.pair = pair
        return self.read(pair.read)

    def inside(self, reference_KN: Tensor) -> Tensor:
        """BᵀW - R, (K, N): how far the weight has moved inside the subspace."""
        return self.read(self.pair.read) - reference_KN

    drift = inside

    def take_out(self, inside_KN: Tensor) -> None:
        """Subtract a change inside the subspace: `W -= A inside`."""
        self.add(self.pair.write, -inside_KN)

    @property
    def stored(self) -> Tensor:
        weight = self.module.weight if self.expert is None else self.module.down_proj
        assert isinstance(weight, Tensor)
        return weight

    @property
    def bias(self) -> Tensor | None:
        bias = None if self.expert is not None else self.module.bias
        assert bias is None or isinstance(bias, Tensor)
        return bias

    @property
    def piece(self) -> Piece | None:
        """This process' piece of a weight in pieces; None if the process holds the whole weight, which `matrix` returns."""
        return piece_of(self.stored)

    def matrix(self) -> Tensor:
        """The weight as (D, N) without the bias, as a view. It must not be called for a weight in pieces."""
        weight = self.stored.data if self.expert is None else self.stored.data[self.expert]
        return weight.mT if self.transposed else weight

    def square(self) -> Tensor:
        """Squared norm ‖W‖² of the entries held here."""
        piece = self.piece
        return (self.matrix() if piece is None else piece.flat).square().sum()

    def gradient_square(self) -> Tensor | None:
        """Squared norm of the gradient of the entries held here; None if there is no gradient, as under ZeRO."""
        gradient = self.stored.grad
        if gradient is None:
            return None
        if (piece := piece_of(gradient)) is not None:
            return piece.flat.square().sum()
        return (gradient if self.expert is None else gradient[self.expert]).square().sum()

    def routed_square(self, ledger_KN: Tensor, *, whole: bool) -> Tensor:
        """Squared norm of the part of the gradient inside the subspace."""
        return ledger_KN.square().sum()

    def pace(self) -> float:
        """How far an entry of the weight moves in a step in which every trained number moves by 1."""
        return 1.0

    def read(self, left_DM: Tensor) -> Tensor:
        """`leftᵀ W`, (M, N), with the bias as the last column. For a weight in pieces it is summed over the processes."""
        piece, bias = self.piece, self.bias
        if piece is not None:
            share = piece.product(left_DM, transposed=self.transposed)
            if bias is not None and (held := piece_of(bias)) is not None:
                share = torch.cat([share, held.product(left_DM, transposed=False)], dim=1)
            RANKS.sum_([share])
            return share
        inside = left_DM.mT @ self.matrix().to(left_DM.dtype)
        return inside if bias is None else torch.cat([inside, (left_DM.mT @ bias.data.to(inside.dtype)).unsqueeze(1)], dim=1)

    @torch.no_grad()
    def add(self, left_DM: Tensor, inside_MN: Tensor) -> None:
        """Add `left inside` to W, whose last column is the bias. Each process changes the entries that it holds."""
        piece, bias, width = self.piece, self.bias, self.width
        if piece is not None:
            piece.add(left_DM, inside_MN[:, :width], transposed=self.transposed)
            if bias is not None and (held := piece_of(bias)) is not None:
                held.add(left_DM, inside_MN[:, width:], transposed=False)
            return
        weight = self.matrix()
        weight.addmm_(left_DM.to(weight.dtype), inside_MN[:, :width].to(weight.dtype))
        follow(self.stored)
        if bias is not None:
            bias.data.addmv_(left_DM.to(weight.dtype), inside_MN[:, width].to(weight.dtype))
            follow(bias)

    def start(self) -> Tensor:
        """A copy of the weight, from which `moved_from` measures."""
        return self.matrix().clone()

    def moved_from(self, start: Any) -> Tensor:
        """Squared norm ‖W - start‖², for a weight that this process holds whole."""
        return (self.matrix() - start).square().sum()

    def measure_start(self) -> None:
        """From now on, measure `moved` from the weight's present value."""
        self._start = self._seen()

    def moved(self) -> Tensor:
        """Squared norm ‖W - W at the start‖² of the entries held here, estimated without bias by random signs; exactly 0 at the
        start."""
        return (self._seen() - self._start).square().sum()

    def _seen(self) -> Tensor:
        """Products of the random sign vectors with the weight, (PROBES, N); for a weight in pieces, with the rows held here."""
        piece = self.piece
        if piece is None:
            return self._probes @ self.matrix().to(self._probes.dtype)
        return piece.product(self._probes.mT, transposed=self.transposed)
