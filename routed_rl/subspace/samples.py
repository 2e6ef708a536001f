"""Activations under two personas, row by row. A fit takes them block by block, and only a bounded reservoir is kept.

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
    """The stream under the positive persona, (L, R, D), float32 on the CPU."""
    negative: Tensor
    """The stream under the negative persona, (L, R, D). Each row is the counterpart of the same row of `positive`."""
    pair_R: Tensor
    """Index of each row's pair."""
    kind_R: Tensor
    """Index of the pair's kind. A pair without a kind is a kind of its own."""
    offset_R: Tensor
    """Position counted from the end: 0 is the last token, or the mean over a response."""
    last_weight: float = 1.0
    """Weight of the last position; every other position has weight 1."""
    fold_R: Tensor | None = None
    """The half to which each row belongs: 0, 1, or -1 for neither. None: halves are drawn at random."""

    def rows(self, keep: Tensor) -> "Samples":
        """The rows that `keep` (a mask or indices) selects."""
        return Samples(self.positive[:, keep], self.negative[:, keep], self.pair_R[keep], self.kind_R[keep],
                       self.offset_R[keep], self.last_weight, None if self.fold_R is None else self.fold_R[keep])

    def of_pairs(self, pairs: Tensor) -> "Samples":
        """The rows of `pairs` (indices) only."""
        return self.rows(torch.isin(self.pair_R, pairs))

    def from_layer(self, first: int) -> "Samples":
        """The same samples without the layers below `first`."""
        return replace(self, positive=self.positive[first:], negative=self.negative[first:])

    def weights(self, offsets: Tensor) -> Tensor:
        return torch.where(offsets == 0, self.last_weight, 1.0).double()


def concatenated(blocks: Sequence[Samples]) -> Samples:
    """Several `Samples` as one, in their order."""
    folds = [block.fold_R for block in blocks if block.fold_R is not None]
    return Samples(torch.cat([block.positive for block in blocks], dim=1),
                   torch.cat([block.negative for block in blocks], dim=1),
                   torch.cat([block.pair_R for block in blocks]), torch.cat([block.kind_R for block in blocks]),
                   torch.cat([block.offset_R for block in blocks]), blocks[0].last_weight,
                   torch.cat(folds) if folds else None)


class Reservoir:
    """Keeps a bounded part of all blocks: the rows of pairs that are chosen beforehand, and a small sample of all activations."""

    def __init__(self, pairs: Tensor, rows: int, most: int, sample: int = 64) -> None:
        """At most `most` of `pairs` (indices) are kept, and `sample` activations. `rows` is the number of rows of all blocks
        together. The random draw is always the same."""
        generator = torch.Generator().manual_seed(0)
        # Drawn and not strided, because a stride may meet the same position of every pair.
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
        """The pairs that were kept, for the held-out figures."""
        return concatenated(self._kept)

    def stream(self) -> Tensor:
        """The sample of activations of both personas, centred: (L, S, D)."""
        stream = self.activations()
        return stream - stream.mean(dim=1, keepdim=True)

    def activations(self) -> Tensor:
        """The sample of activations of both personas, not centred: (L, S, D)."""
        return torch.cat(self._sampled, dim=1)
