"""Communication between the processes of a run. If there is only one process, nothing is sent and nothing is copied. Every
process gets the same bits, because each sum is computed once and then distributed."""

from itertools import groupby
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Ranks:
    """The processes that train together."""

    def __init__(self) -> None:
        self.bytes = 0
        """Number of bytes that this process has sent in `sum_` so far."""

    @property
    def count(self) -> int:
        return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1

    @property
    def rank(self) -> int:
        return dist.get_rank() if self.count > 1 else 0

    @torch.no_grad()
    def sum_(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its sum over all processes, with one message for each dtype. All processes must pass tensors of
        the same shapes."""
        if self.count == 1:
            return
        for _, group in groupby(sorted(tensors, key=lambda tensor: str(tensor.dtype)), key=lambda tensor: tensor.dtype):
            together = list(group)
            flat = torch.cat([tensor.reshape(-1) for tensor in together])
            self.bytes += flat.numel() * flat.element_size()
            dist.all_reduce(flat)
            for tensor, part in zip(together, flat.split([tensor.numel() for tensor in together]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def gather(self, value: Any) -> list[Any]:
        """The `value` of every process, in the order of ranks."""
        values = [value] * self.count
        if self.count > 1:
            dist.all_gather_object(values, value)
        return values

    def first(self, value: Any) -> Any:
        """The `value` of the first process, in every process. The values of the others are ignored."""
        values = [value]
        if self.count > 1:
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def wait(self) -> None:
        """Wait until every process has called this method."""
        self.gather(None)


RANKS = Ranks()
"""The only instance in a process, because a process has one default process group."""
