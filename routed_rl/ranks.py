"""What the processes of a run tell each other. In one process nothing happens and nothing is copied. Every process gets the same
bits, since each sum is made once and then handed out; `bytes` counts what was handed in."""

from itertools import groupby
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Ranks:
    """The processes that train together."""

    def __init__(self) -> None:
        self.bytes = 0
        """Payload of the sums so far, of this process."""

    @property
    def count(self) -> int:
        return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1

    @property
    def rank(self) -> int:
        return dist.get_rank() if self.count > 1 else 0

    @torch.no_grad()
    def sum_(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its sum over all processes, with one message for each dtype; all give the same shapes."""
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
        """Every process' `value`, in order."""
        values = [value] * self.count
        if self.count > 1:
            dist.all_gather_object(values, value)
        return values

    def first(self, value: Any) -> Any:
        """The first process' `value`; what the others give does not matter."""
        values = [value]
        if self.count > 1:
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def wait(self) -> None:
        """Until every process is here."""
        self.gather(None)


RANKS = Ranks()
"""One for a process, as torch's process group is."""
