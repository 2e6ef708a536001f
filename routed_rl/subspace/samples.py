"""Activations under two personas. The rows of a fit are gathered from them block by block, and only a bounded part of the
activations is kept, in a `Reservoir`.

Shape letters: L layers, R sample rows (one per pair and position), S sampled activations, D stream width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Samples:
    """The stream at one hook point of every layer under both personas, with one row for each pair and position."""

    positive: Tensor
    """The stream under the positive persona, (L, R, D), float32 on the CPU."""
    negative: Tensor
    """The stream under the negative persona, (L, R, D). Each row is the counterpart of the same row of `positive`."""
    pair_R: Tensor
    """The index of each row's pair."""
    kind_R: Tensor
    """The index of the kind of each row's pair. A pair without a kind is a kind of its own."""
    offset_R: Tensor
    """Each row's position in its prompt, counted from the end: 0 is the last token, or the mean over a response."""
    last_weight: float = 1.0
    """The weight of rows at position 0; rows at other positions have weight 1."""
    fold_R: Tensor | None = None
    """The half of the pairs to which each row belongs in held-out figures: 0, 1, or -1 for neither. None: halves are drawn at
    random."""

    def rows(self, keep: Tensor) -> "Samples":
        """Return the samples with only the rows that `keep` (a mask or indices) selects."""
        return Samples(self.positive[:, keep], self.negative[:, keep], self.pair_R[keep], self.kind_R[keep],
                       self.offset_R[keep], self.last_weight, None if self.fold_R is None else self.fold_R[keep])

    def of_pairs(self, pairs: Tensor) -> "Samples":
        """Return the samples with only the rows of the pairs whose indices are in `pairs`."""
        return self.rows(torch.isin(self.pair_R, pairs))

    def from_layer(self, first: int) -> "Samples":
        """Return the samples without the layers below `first`."""
        return replace(self, positive=self.positive[first:], negative=self.negative[first:])

    def weights(self, offsets: Tensor) -> Tensor:
        return torch.where(offsets == 0, self.last_weight, 1.0).double()


def concatenated(blocks: Sequence[Samples]) -> Samples:
    """Join several `Samples` into one, row after row in their order."""
    folds = [block.fold_R for block in blocks if block.fold_R is not None]
    return Samples(torch.cat([block.positive for block in blocks], dim=1),
                   torch.cat([block.negative for block in blocks], dim=1),
                   torch.cat([block.pair_R for block in blocks]), torch.cat([block.kind_R for block in blocks]),
                   torch.cat([block.offset_R for block in blocks]), blocks[0].last_weight,
                   torch.cat(folds) if folds else None)


class Reservoir:
    """Keeps a bounded part of the samples that are added block by block: all rows of some pairs, which are drawn beforehand, and
    a small sample of all activations."""

    def __init__(self, pairs: Tensor, rows: int, most: int, sample: int = 64) -> None:
        """`pairs`: the indices of the pairs that may be kept; at most `most` of them, drawn at random, are kept. `rows`: the
        number of rows that all blocks will have together. `sample`: the number of activations that are kept. The random draws are
        the same in every run."""
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
        """Return all rows of the pairs that were kept, from which the held-out figures of quality are measured."""
        return concatenated(self._kept)

    def stream(self) -> Tensor:
        """Return the sample of activations of both personas, centred at each layer, (L, S, D)."""
        stream = self.activations()
        return stream - stream.mean(dim=1, keepdim=True)

    def activations(self) -> Tensor:
        """Return the sample of activations of both personas, not centred, (L, S, D)."""
        return torch.cat(self._sampled, dim=1)
