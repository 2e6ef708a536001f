"""The record that all taps of a model read. It says from which environment each row comes, which tokens are sampled, and whether
taps pass on a contained or an open cotangent.

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
    """Index of each row's environment, (B,) int64; None turns the taps off."""
    completions_B: Tensor | None = None
    """The number by which the trainer knows the completion in each row, (B,) int64; None if rows are not measured one by one."""
    sample_S: Tensor | None = None
    """A sample of the tokens that are not padding, as indices into the flattened (B, T) batch, (S,) int64."""
    sample_tokens: int = 0
    """The largest number of tokens that `sample_S` may have."""
    ablated: bool = False
    """Whether forward passes leave the quarantine out."""
    whole: bool = False
    """Whether a writer with a LoRA runs as it does without routing, unless `ablated` is True; see `Mode.whole`."""
    practising_B: Tensor | None = None
    """Whether each row practises, (B,) bool. Forward passes leave the quarantine out of such a row, and it enters no ledger.
    None: no row practises."""
    flagged_BT: Tensor | None = None
    """For label routing: 1 at each flagged position of the batch and 0 elsewhere, (B, T); None: no position is flagged."""
    contained: bool = True
    """True: the cotangent that is passed on is contained, which means without its part inside the subspace; False: it is open.
    The cotangent from rows that practise is always open."""
    control_draws: int = 0
    """Number of random bases that are measured in the backward passes of this step; 0 for none."""

    def routed(self, coordinates_BTK: Tensor) -> Tensor:
        """Return `coordinates_BTK` with exactly 0 in the rows that practise. Coordinates (T, K), with the tokens of all rows one
        row after another, are accepted too."""
        if self.practising_B is None:
            return coordinates_BTK
        if coordinates_BTK.dim() == 2:
            return self.routed_tokens(coordinates_BTK)
        assert coordinates_BTK.dim() == 3 and len(coordinates_BTK) == len(self.practising_B), (
            f"{len(coordinates_BTK)} rows reached a writer but {len(self.practising_B)} are marked as practising or not")
        return coordinates_BTK.masked_fill(self.practising_B[:, None, None], 0.0)

    def routed_tokens(self, coordinates_TK: Tensor, rows_T: Tensor | None = None) -> Tensor:
        """Return `coordinates_TK` with exactly 0 at the tokens of rows that practise. `rows_T`: the index of each token's row;
        None: the tokens are those of all rows, one row after another."""
        if self.practising_B is None:
            return coordinates_TK
        if rows_T is None:
            practising_T = self.practising_B.repeat_interleave(len(coordinates_TK) // len(self.practising_B))
        else:
            practising_T = self.practising_B[rows_T]
        return coordinates_TK.masked_fill(practising_T[:, None], 0.0)


class RoutingContext:
    """Holds, for all taps of one model, the record that the coming forward passes read.

    The record must not change between a forward pass and the end of its backward pass if gradients are checkpointed, because the
    backward pass then repeats the forward pass and reads the record again.
    """

    def __init__(self) -> None:
        self.now = Record()
        self.adapter: Any = None
        """Any one of the model's modules with a LoRA that is trained; None if the weights are trained."""

    @property
    def without_adapter(self) -> bool:
        """Whether PEFT's `disable_adapter` has switched the LoRA off. The model is then the base model, without the quarantine,
        also at writers that have no LoRA."""
        return getattr(self.adapter, "disable_adapters", False)

    def change(self, **fields: Any) -> None:
        """Change fields of the record, by name, for later forward passes. A forward pass that waits for its backward pass keeps
        the record with which it was run, unless gradients are checkpointed."""
        self.now = replace(self.now, **fields)

    def end_batch(self) -> None:
        """Turn the taps off until the next `set_batch`, so that what the model computes between two losses, for example in a
        callback, is not recorded, and no row of it practises."""
        self.change(environment_ids_B=None, completions_B=None, sample_S=None, practising_B=None)

    def end_step(self) -> None:
        """As `end_batch`, and measure no random bases any more: after training, or after an error in training."""
        self.end_batch()
        self.change(control_draws=0)

    @contextmanager
    def practising(self, practising_B: Tensor | None) -> Iterator[None]:
        """Inside the block, the rows at which `practising_B` (B,) is True practise; None: no row practises. The block must hold
        only forward passes without gradients."""
        before = self.now.practising_B
        self.change(practising_B=practising_B)
        try:
            yield
        finally:
            self.change(practising_B=before)

    def set_batch(self, environment_ids_B: Tensor, mask_BT: Tensor, sample_tokens: int,
                  completions_B: Tensor | None = None, practising_B: Tensor | None = None) -> None:
        """Describe the rows of the next loss. `mask_BT` is 1 at real tokens and 0 at padding; the other tensors are those of
        `Record`. At most `sample_tokens` real tokens are sampled, from rows that do not practise. The shift by the quarantine's
        step is measured at these tokens."""
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
