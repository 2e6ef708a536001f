"""Gives access to a writer's own weight, however the model stores it: transposed, with a bias, as one expert of a mixture, whole
or in pieces.

Shape letters: D stream width, N input width (one more if there is a bias, which is the last column), M columns of `left`.
"""

from typing import Any

import torch
from torch import Tensor, nn

from routed_rl.ranks import RANKS
from routed_rl.routing.pair import BasisPair
from routed_rl.routing.rates import Rates
from routed_rl.routing.shards import Piece, follow, piece_of

PROBES = 16
"""Number of random sign vectors by which the change of the weights is measured without a copy of them."""


class WriterWeight:
    """The trained weight of one writer, as a matrix W (D, N). Computes products with W, changes W, and measures how far W has
    moved."""

    up: Any = None
    """Always None, because there is no LoRA on the weight; see `AdapterWeight`."""

    def __init__(self, module: nn.Module, *, transposed: bool = False, expert: int | None = None) -> None:
        """`transposed`: whether the module stores Wᵀ (N, D), as GPT-2's Conv1D does. `expert`: the index of an expert, if W is
        the slice of `module.down_proj` at this index; None: W is `module.weight`."""
        self.module, self.transposed, self.expert = module, transposed, expert
        weight = self.matrix()
        self.rows, self.width = weight.shape
        """`rows` is D, and `width` is N without the bias."""
        self.device = weight.device
        # At least float32, because in bf16 most of an orthogonal update is lost to rounding.
        self.dtype = torch.promote_types(weight.dtype, torch.float32)
        signs = torch.randint(2, (PROBES, weight.shape[0]), generator=torch.Generator().manual_seed(0))
        self._probes = (2 * signs - 1).to(weight.device, self.dtype) / PROBES**0.5
        self.measure_start()

    def begin(self, pair: BasisPair) -> Tensor:
        """Set the basis pair by which the weight is routed. Returns the reference R = BᵀW, (K, N)."""
        self.pair = pair
        return self.read(pair.read)

    def inside(self, reference_KN: Tensor) -> Tensor:
        """Return `BᵀW - R`, (K, N), the change of the weight inside the subspace since `begin` returned R = `reference_KN`."""
        return self.read(self.pair.read) - reference_KN

    drift = inside

    def take_out(self, inside_KN: Tensor) -> None:
        """Subtract a change inside the subspace from the weight: `W -= A inside`."""
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
        """The piece of the weight that this process holds; None if every process holds the whole weight, which `matrix`
        returns."""
        return piece_of(self.stored)

    def matrix(self) -> Tensor:
        """Return a view of the weight as a matrix (D, N) without the bias. Must not be called for a weight in pieces."""
        weight = self.stored.data if self.expert is None else self.stored.data[self.expert]
        return weight.mT if self.transposed else weight

    def square(self) -> Tensor:
        """Squared norm ‖W‖² of the entries that this process holds, without the bias."""
        piece = self.piece
        return (self.matrix() if piece is None else piece.flat).square().sum()

    def gradient_square(self) -> Tensor | None:
        """Squared norm of the gradient of the entries that this process holds, without the bias; None if there is no gradient, as
        under ZeRO."""
        gradient = self.stored.grad
        if gradient is None:
            return None
        if (piece := piece_of(gradient)) is not None:
            return piece.flat.square().sum()
        return (gradient if self.expert is None else gradient[self.expert]).square().sum()

    def routed_square(self, ledger_KN: Tensor, *, whole: bool) -> Tensor:
        """Squared norm of the part of the weight's gradient inside the subspace, from `ledger_KN`, the target's ledger summed
        over environments. `whole` is used only by `AdapterWeight`."""
        return ledger_KN.square().sum()

    def pace(self, rates: Rates) -> float:
        """How far an entry of the weight moves in a step in which every trained number moves by its learning rate, divided by the
        largest rate: by its own rate, because the entry is itself trained."""
        return rates.share(self.stored)

    def read(self, left_DM: Tensor) -> Tensor:
        """Return `leftᵀ W`, (M, N), with the bias as the last column of W. If the weight is in pieces, every process must call
        this, and gets the product with the full weight."""
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
        """Add the product `left inside` to W, whose last column is the bias. Each process changes the entries that it holds."""
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
        """Return a copy of the weight, for `moved_from`. The weight must not be in pieces."""
        return self.matrix().clone()

    def moved_from(self, start: Any) -> Tensor:
        """Return the squared norm ‖W - start‖², where `start` is an earlier result of `start()`. The weight must not be in
        pieces."""
        return (self.matrix() - start).square().sum()

    def measure_start(self) -> None:
        """Take the present value of the weight as the one from which `moved` measures."""
        self._start = self._seen()

    def moved(self) -> Tensor:
        """Return the squared norm of the weight's change since `measure_start`, for the entries that this process holds. It is an
        unbiased estimate by random signs, and exactly 0 if nothing has changed."""
        return (self._seen() - self._start).square().sum()

    def _seen(self) -> Tensor:
        """Return the products of the random sign vectors with the weight, (PROBES, N). If the weight is in pieces, the result is
        this process' share; the shares of all processes sum to the products."""
        piece = self.piece
        if piece is None:
            return self._probes @ self.matrix().to(self._probes.dtype)
        return piece.product(self._probes.mT, transposed=self.transposed)
