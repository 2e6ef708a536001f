"""Reads and changes weights of which each process holds a local shard, here called a piece. Neither products with a weight nor
changes to it gather the full tensor.

Each process computes its share of a product `leftᵀ W` from the rows that it holds, and the shares are summed over the processes:
(M, N) is communicated and never (D, N). A piece is a block of rows of the stored matrix (FSDP2) or a stretch of its flattened
form (ZeRO-3). For products, a stretch is padded with zeros to whole rows. Under ZeRO-1 and -2 each process holds every weight
whole. The optimizer then has its own copy of the weight, of which each process holds a stretch, and `follow` keeps this copy
equal to the weight. Shape letters: D stream width, N input width, M columns of `left`. Not covered: the experts of a mixture if
weights are in pieces.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from routed_rl.ranks import RANKS


@dataclass
class Piece:
    """The entries of a weight that this process holds. The weight is stored as a matrix of `rows` x `columns`, and the process
    holds entries `start` to `start + len(flat)` (exclusive) of the flattened matrix."""

    flat: Tensor
    """The entries that this process holds. If possible it is a view of the parameter or of the optimizer's copy."""
    start: int
    rows: int
    columns: int
    store: Callable[[Tensor], object]
    """Function that stores new entries, of the size of `flat`, where this process holds the old ones."""

    def __post_init__(self) -> None:
        end = min(self.start + len(self.flat), self.rows * self.columns)
        self.flat = self.flat[:max(end - self.start, 0)]  # entries behind the end are padding
        self.first, self.last = self.start // self.columns, -(-end // self.columns)

    def whole_rows(self) -> Tensor:
        """Return the rows of the matrix of which this process holds entries, `first` to `last` (exclusive), with 0 for entries
        that another process holds."""
        if not len(self.flat):
            return self.flat.new_zeros(0, self.columns)
        padded = self.flat.new_zeros((self.last - self.first) * self.columns)
        padded[self._place()] = self.flat
        return padded.view(-1, self.columns)

    def _place(self) -> slice:
        offset = self.start - self.first * self.columns
        return slice(offset, offset + len(self.flat))

    def whole(self) -> Tensor:
        """Return the full matrix (rows, columns), gathered from all processes in one message of the matrix's size. Every process
        must call this. It is meant for checkpoints and engines."""
        everything = self.flat.new_zeros(self.rows * self.columns)
        everything[self.start:self.start + len(self.flat)] = self.flat
        RANKS.sum_([everything])
        return everything.view(self.rows, self.columns)

    def take(self, whole: Tensor) -> None:
        """Store the entries that this process holds, out of the full tensor `whole`; the inverse of the method `whole`."""
        self.store(whole.reshape(-1)[self.start:self.start + len(self.flat)].to(self.flat))

    def product(self, left_DM: Tensor, *, transposed: bool) -> Tensor:
        """Return this process' share of the product `leftᵀ W`, (M, N); the shares of all processes sum to the product.
        `transposed`: whether the matrix is stored as Wᵀ, (N, D)."""
        held = self.whole_rows().to(left_DM.dtype)
        if not transposed:
            return left_DM[self.first:self.last].mT @ held if len(held) else left_DM.new_zeros(left_DM.shape[1], self.columns)
        share = left_DM.new_zeros(left_DM.shape[1], self.rows)
        if len(held):
            share[:, self.first:self.last] = (held @ left_DM).mT
        return share

    def add(self, left_DM: Tensor, inside_MN: Tensor, *, transposed: bool) -> None:
        """Add the product `left inside`, (D, N), to the entries of W that this process holds. `transposed`: as in `product`."""
        if not len(self.flat):
            return
        rows = slice(self.first, self.last)
        change = (inside_MN[:, rows].mT @ left_DM.mT) if transposed else left_DM[rows] @ inside_MN
        self.store(self.flat + change.reshape(-1)[self._place()].to(self.flat.dtype))


def piece_of(parameter: Tensor) -> Piece | None:
    """Return this process' piece of a weight or bias (a bias is a matrix of one column); None if every process holds the whole
    tensor."""
    if hasattr(parameter, "device_mesh"):
        return _rows_held(parameter)
    if hasattr(parameter, "ds_tensor"):
        return _stretch_held(parameter)
    return None


def whole(parameter: Any) -> Tensor:
    """Return the full tensor of a weight or bias, detached, in the shape that it has in a single process. Every process must call
    this."""
    piece = piece_of(parameter)
    return parameter.detach() if piece is None else piece.whole().view(getattr(parameter, "ds_shape", parameter.shape))


@torch.no_grad()
def put(parameter: Any, entries: Tensor) -> None:
    """Set a parameter to the full tensor `entries`; the inverse of `whole`. Each process stores its piece, and the optimizer's
    own copy of the parameter is updated."""
    if (piece := piece_of(parameter)) is not None:
        piece.take(entries)
    else:
        parameter.data.copy_(entries)
        follow(parameter)


def _rows_held(parameter: Any) -> Piece:
    """Return this process' piece of a DTensor made by FSDP2: the rows that `torch.chunk` along dimension 0 would give it."""
    local, mesh = parameter.to_local().detach(), parameter.device_mesh
    rows, columns = _matrix(parameter.shape)
    first = min(mesh.get_local_rank() * -(-parameter.shape[0] // mesh.size()), parameter.shape[0])
    return Piece(local.reshape(-1), first * columns, rows, columns, lambda entries: local.copy_(entries.view_as(local)))


def _stretch_held(parameter: Any) -> Piece:
    """Return this process' piece of a parameter that ZeRO-3 has partitioned: the float32 stretch that this process' optimizer
    holds, or, if the parameter is frozen, this process' stretch of the parameter itself. New entries are always written to the
    parameter too."""
    from deepspeed.utils import safe_get_local_fp32_param  # pyright: ignore[reportMissingImports]

    copies = [parameter.ds_tensor.data]
    if parameter.requires_grad:
        copies.insert(0, safe_get_local_fp32_param(parameter))

    def store(entries: Tensor) -> None:
        for copy in copies:
            copy.reshape(-1)[:len(entries)].copy_(entries)

    rows, columns = _matrix(parameter.ds_shape)
    return Piece(copies[0].detach().reshape(-1), RANKS.rank * parameter.ds_tensor.ds_numel, rows, columns, store)


def state_piece(parameter: Any, state: Any, key: str) -> Piece:
    """Return this process' piece of the optimizer's state named `key`, such as `exp_avg`, of a parameter.

    `state`: under FSDP2 the optimizer's state of this parameter; under ZeRO-1 and -2 a list, with the optimizer's state of the
    flat partition of each parameter group; not used under ZeRO-3, which attaches the state to the parameter.
    """
    if hasattr(parameter, "device_mesh"):
        return _rows_held(state[key])
    if hasattr(parameter, "ds_tensor"):
        from deepspeed.utils import safe_get_local_optimizer_state  # pyright: ignore[reportMissingImports]

        held = safe_get_local_optimizer_state(parameter, key).reshape(-1)
        start, shape = RANKS.rank * parameter.ds_tensor.ds_numel, parameter.ds_shape
    elif (mapping := parameter._hp_mapping) is None:
        held, start, shape = parameter.data.new_zeros(0), 0, parameter.shape
    else:
        place, start, shape = mapping.get_hp_fragment_address(), mapping.lp_fragment_address.start, parameter.shape
        held = state[mapping.param_group_index][key].narrow(0, place.start, place.numel)
    return Piece(held, start, *_matrix(shape), lambda entries: held[:len(entries)].copy_(entries))


def _matrix(shape: torch.Size) -> tuple[int, int]:
    """Return the rows and columns of the matrix as which a tensor of this shape is flattened: its first dimension, and all others
    together."""
    return (shape[0], shape.numel() // shape[0]) if len(shape) else (1, 1)


def follow(parameter: Any) -> None:
    """Bring the optimizer's own copy of a weight to the weight's present value. Only DeepSpeed (ZeRO-1 and -2) keeps such a copy
    of a weight that every process holds whole."""
    if "deepspeed" in sys.modules:
        from deepspeed.utils import safe_set_full_fp32_param  # pyright: ignore[reportMissingImports]

        safe_set_full_fp32_param(parameter, parameter.data)
