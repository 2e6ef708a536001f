"""Activations under two personas, row by row. Blocks of them stream through a fit; only a bounded reservoir is kept.

Shape letters: L layers, R sample rows (one per pair and position), G rows of a fit, D stream width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Samples:
    """The stream at one hook point of every layer under both personas, one row per (pair, position)."""

    positive: Tensor
    """(L, R, D), float32 on the CPU."""
    negative: Tensor
    """(L, R, D), row by row the counterpart of `positive`."""
    pair_R: Tensor
    """Index of the pair."""
    kind_R: Tensor
    """Index of the pair's kind; a pair without one is a kind of its own."""
    offset_R: Tensor
    """Position counted from the end, 0 is the last token; 0 for a mean over a response."""
    last_weight: float = 1.0
    """Weight of the last position against 1 for the others."""
    fold_R: Tensor | None = None
    """Where halves are not to be drawn: 0 or 1 for the half that a row belongs to, -1 for neither."""

    def rows(self, keep: Tensor) -> "Samples":
        """The rows that `keep` (a mask or indices) picks."""
        return Samples(self.positive[:, keep], self.negative[:, keep], self.pair_R[keep], self.kind_R[keep],
                       self.offset_R[keep], self.last_weight, None if self.fold_R is None else self.fold_R[keep])

    def of_pairs(self, pairs: Tensor) -> "Samples":
        """The rows of `pairs` (indices) only."""
        return self.rows(torch.isin(self.pair_R, pairs))

    def from_layer(self, first: int) -> "Samples":
        """Without the layers before `first`."""
        return replace(self, positive=self.positive[first:], negative=self.negative[first:])

    def weights(self, offsets: Tensor) -> Tensor:
        return torch.where(offsets == 0, self.last_weight, 1.0).double()


def concatenated(blocks: Sequence[Samples]) -> Samples:
    """One `Samples` of several, in their order."""
    folds = [block.fold_R for block in blocks if block.fold_R is not None]
    return Samples(torch.cat([block.positive for block in blocks], dim=1),
                   torch.cat([block.negative for block in blocks], dim=1),
                   torch.cat([block.pair_R for block in blocks]), torch.cat([block.kind_R for block in blocks]),
                   torch.cat([block.offset_R for block in blocks]), blocks[0].last_weight,
                   torch.cat(folds) if folds else None)


class Reservoir:
    """What is kept of a stream of blocks: the rows of pairs chosen beforehand, and a small sample of all activations."""

    def __init__(self, pairs: Tensor, rows: int, most: int, sample: int = 64) -> None:
        """At most `most` of `pairs` (indices) are kept, and `sample` activations; the stream has `rows` rows. Always one draw."""
        generator = torch.Generator().manual_seed(0)
        # Drawn, not strided: a stride may meet the same position of every pair.
        self._drawn = torch.randperm(2 * rows, generator=generator)[:sample]
        self._pairs = pairs[torch.randperm(len(pairs), generator=generator)[:most]]
        self._rows, self._seen = rows, 0
        self._kept: list[Samples] = []
        self._sampled: list[Tensor] = []

    def add(self, block: Samples) -> None:
        here = len(block.pair_R)
        self._kept.append(block.of_pairs(self._pairs))
        for side, first in ((block.positive, self._seen), (block.negative, self._seen + self._rows)):
            drawn = self._drawn[(self._drawn >= first) & (self._drawn < first + here)] - first
            self._sampled.append(side[:, drawn])
        self._seen += here

    def samples(self) -> Samples:
        """The kept pairs, for what must be held out of a fit."""
        return concatenated(self._kept)

    def stream(self) -> Tensor:
        """The sample of activations of both personas, centred: (L, S, D)."""
        stream = self.activations()
        return stream - stream.mean(dim=1, keepdim=True)

    def activations(self) -> Tensor:
        """The same as they are."""
        return torch.cat(self._sampled, dim=1)
