"""A weight of which each process holds a piece: products with it, and changes to it, without putting it together.

A product `leftᵀ W` is made of the rows held here and summed over the processes: (M, N) goes over the wire and never (D, N).
Pieces are rows of the stored matrix (FSDP2) or a stretch of its flattened form (ZeRO-3), which is filled up with zeros to
whole rows. ZeRO-1 and -2 hold every weight whole, and a stretch of the optimizer's own copy, which must follow it. Shape
letters: D stream width, N input width, M columns of `left`. Not covered: the experts of a mixture where weights are in pieces.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from routed_rl.routing.ranks import RANKS


@dataclass
class Piece:
    """Entries `start` to `start + len(flat)` of a stored matrix of `rows` x `columns`, flattened."""

    flat: Tensor
    """This process' entries, float32, a view where it can be."""
    start: int
    rows: int
    columns: int
    store: Callable[[Tensor], None]
    """Take new entries."""

    def __post_init__(self) -> None:
        end = min(self.start + len(self.flat), self.rows * self.columns)
        self.flat = self.flat[:max(end - self.start, 0)]  # what lies behind the end is padding
        self.first, self.last = self.start // self.columns, -(-end // self.columns)

    def whole_rows(self) -> Tensor:
        """Rows `first` to `last`, zero where another process holds the entry."""
        if not len(self.flat):
            return self.flat.new_zeros(0, self.columns)
        padded = self.flat.new_zeros((self.last - self.first) * self.columns)
        padded[self._place()] = self.flat
        return padded.view(-1, self.columns)

    def _place(self) -> slice:
        offset = self.start - self.first * self.columns
        return slice(offset, offset + len(self.flat))

    def product(self, left_DM: Tensor, *, transposed: bool) -> Tensor:
        """This process' share of `leftᵀ W`, (M, N); over all processes they add up to it."""
        held = self.whole_rows().to(left_DM.dtype)
        if not transposed:
            return left_DM[self.first:self.last].mT @ held if len(held) else left_DM.new_zeros(left_DM.shape[1], self.columns)
        share = left_DM.new_zeros(left_DM.shape[1], self.rows)
        if len(held):
            share[:, self.first:self.last] = (held @ left_DM).mT
        return share

    def add(self, left_DM: Tensor, inside_MN: Tensor, *, transposed: bool) -> None:
        """`W += left inside`, for the entries held here."""
        if not len(self.flat):
            return
        rows = slice(self.first, self.last)
        change = (inside_MN[:, rows].mT @ left_DM.mT) if transposed else left_DM[rows] @ inside_MN
        self.store(self.flat + change.reshape(-1)[self._place()].to(self.flat.dtype))


def piece_of(parameter: Tensor) -> Piece | None:
    """What this process holds of a weight or bias (a bias is one column); None where it holds all of it."""
    if hasattr(parameter, "device_mesh"):
        return _rows_held(parameter)
    if hasattr(parameter, "ds_tensor"):
        return _stretch_held(parameter)
    return None


def _rows_held(parameter: Any) -> Piece | None:
    """Of a DTensor that FSDP2 made: rows of dimension 0."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    local = parameter.to_local().detach()
    _, offset = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    columns = parameter.shape[1] if parameter.dim() > 1 else 1
    return Piece(local.reshape(-1), offset[0] * columns, parameter.shape[0], columns,
                 lambda entries: local.copy_(entries.view_as(local)))


def _stretch_held(parameter: Any) -> Piece:
    """Of a parameter that ZeRO-3 partitioned: what this process' optimizer holds of it, in float32."""
    from deepspeed.utils import safe_get_local_fp32_param, safe_set_local_fp32_param

    rows, columns = parameter.ds_shape[0], parameter.ds_shape[1] if len(parameter.ds_shape) > 1 else 1
    held = parameter.ds_tensor if not parameter.requires_grad else safe_get_local_fp32_param(parameter)
    partition = parameter.ds_tensor.ds_numel

    def store(entries: Tensor) -> None:
        whole = torch.cat([entries, held.reshape(-1)[len(entries):].to(entries.dtype)])
        if parameter.requires_grad:
            safe_set_local_fp32_param(parameter, whole)
        parameter.ds_tensor.data.copy_(whole)

    return Piece(held.detach().reshape(-1), RANKS.rank * partition, rows, columns, store)


def follow(parameter: Any) -> None:
    """Tell the optimizer's own copy of a weight that is held whole (ZeRO-1 and -2) what the weight is now."""
    mapping = getattr(parameter, "_hp_mapping", None)
    if mapping is not None:
        place = mapping.lp_fragment_address
        mapping.get_hp_fragment().copy_(parameter.data.reshape(-1)[place.start:place.start + place.numel])
