"""The record that all taps of a model read: the environment of each row, which tokens are real, and which cotangent is passed on.

Shape letters: B rows, T tokens, S sampled tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

GOLDEN = (5**0.5 - 1) / 2
"""The inverse of the golden ratio. Its multiples modulo 1 spread evenly and never repeat."""


@dataclass(frozen=True, eq=False)
class Record:
    """Facts about a forward pass that its taps keep for the backward pass."""

    environment_ids_B: Tensor | None = None
    """Environment of each row, (B,) int64; None turns the taps off."""
    completions_B: Tensor | None = None
    """Number of the completion in each row, (B,) int64; None if rows are not measured one by one."""
    sample_S: Tensor | None = None
    """Flat indices of a sample of real tokens, (S,) int64."""
    sample_tokens: int = 0
    """The largest number of tokens in such a sample."""
    ablated: bool = False
    """Whether forward passes leave the quarantine out."""
    whole: bool = False
    """Whether a writer with a LoRA runs as it does without routing, unless the quarantine is ablated; see `Mode.whole`."""
    practising_B: Tensor | None = None
    """Rows that practise, (B,) bool: forward passes leave the quarantine out for them, and they enter no ledger. None: no row
    practises."""
    flagged_BT: Tensor | None = None
    """Flagged positions of the batch for routing by labels, (B, T), 1 or 0; None: no position is flagged."""
    contained: bool = True
    """Whether the cotangent that is passed on from rows of the policy is contained (without its part in the subspace) or open.
    From rows that practise it is always open."""
    control_draws: int = 0
    """Number of random bases that are measured in the backward passes of this step; 0 for none."""

    def routed(self, coordinates_BTK: Tensor) -> Tensor:
        """`coordinates_BTK` where the row is the policy's, and exactly 0 where the row practises. (T, K) holds the tokens of all
        rows."""
        if self.practising_B is None:
            return coordinates_BTK
        if coordinates_BTK.dim() == 2:
            return self.routed_tokens(coordinates_BTK)
        assert coordinates_BTK.dim() == 3 and len(coordinates_BTK) == len(self.practising_B), (
            f"{len(coordinates_BTK)} rows reached a writer but {len(self.practising_B)} are marked as practising or not")
        return coordinates_BTK.masked_fill(self.practising_B[:, None, None], 0.0)

    def routed_tokens(self, coordinates_TK: Tensor, rows_T: Tensor | None = None) -> Tensor:
        """As `routed`, for tokens that belong to the rows `rows_T`. None: they are the tokens of all rows, one row after
        another."""
        if self.practising_B is None:
            return coordinates_TK
        if rows_T is None:
            practising_T = self.practising_B.repeat_interleave(len(coordinates_TK) // len(self.practising_B))
        else:
            practising_T = self.practising_B[rows_T]
        return coordinates_TK.masked_fill(practising_T[:, None], 0.0)


class RoutingContext:
    """Holds the record for the coming forward passes, which all taps of one model share.

    The record of a loss must stay until the next loss, because gradient checkpointing repeats the forward pass in the backward
    pass.
    """

    def __init__(self) -> None:
        self.now = Record()

    def change(self, **fields: Any) -> None:
        """Change fields of the record for later forward passes. A forward pass that waits for its backward pass keeps its own
        record."""
        self.now = replace(self.now, **fields)

    @contextmanager
    def practising(self, practising_B: Tensor | None) -> Iterator[None]:
        """Inside the block, these rows practise in forward passes without gradients."""
        before = self.now.practising_B
        self.change(practising_B=practising_B)
        try:
            yield
        finally:
            self.change(practising_B=before)

    def set_batch(self, environment_ids_B: Tensor, mask_BT: Tensor, sample_tokens: int,
                  completions_B: Tensor | None = None, practising_B: Tensor | None = None) -> None:
        """Describe the rows of the next loss: `environment_ids_B` (B,), and `mask_BT` (B, T), which is 1 at real tokens. The
        sample of tokens, on which the quarantine's step is measured, is taken from the rows of the policy."""
        if practising_B is not None:
            practising_B = practising_B if practising_B.any() else None
        mask_BT = mask_BT if practising_B is None else mask_BT * ~practising_B[:, None]
        real = mask_BT.reshape(-1).nonzero().squeeze(1)
        stride = max(1, -(-real.shape[0] // sample_tokens))
        starts = torch.arange(0, real.shape[0], stride, device=real.device)
        # A plain stride would meet the same positions in every row, and the outliers at first tokens far too often.
        jitter = (0.5 + GOLDEN * torch.arange(starts.shape[0], device=real.device, dtype=torch.float64)) % 1 * stride
        self.change(sample_S=real[(starts + jitter.long()).clamp(max=max(real.shape[0] - 1, 0))], sample_tokens=sample_tokens,
                    environment_ids_B=environment_ids_B, completions_B=completions_B, practising_B=practising_B)
