"""Gathers the rows for a fit, which are difference vectors or activations, from blocks of samples. The memory does not grow with
the number of samples, but it does grow with the number of kinds that have several pairs.

Shape letters: L layers, G rows, D stream width.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from routed_rl.errors import SubspaceError
from routed_rl.subspace.samples import Samples

NULL = 1e-6
"""A singular value below this share of the largest one counts as rounding. So does a gap below this share of the stream's
length."""
CAPACITY = 512
"""The largest number of rows that `sketched` keeps. When there are more, it compresses them to half of this number."""


@dataclass(frozen=True, eq=False)
class Rows:
    """A summary of all samples as a bounded number of weighted rows, to which a method fits a subspace."""

    rows_LGD: Tensor
    """The rows, float32. Their weighted second moments are those of all rows that were gathered, except for the losses that
    `sketched` describes."""
    weights_G: Tensor
    """The weight of each row, float64."""
    total_weight: float
    """The sum of the weights of all rows that were gathered, including rows that `sketched` has merged."""
    gap_LD: Tensor
    """The weighted mean of the differences positive - negative, float64; it points to the positive persona."""
    norm_L: Tensor
    """The mean length of the activations under the positive persona."""
    kinds_G: Tensor
    """The index of each row's kind, or -1 if a row stands for several kinds."""


def sketched(before: Tensor | None, rows_LGD: Tensor) -> Tensor:
    """Add `rows_LGD` to a sketch, and return the new sketch. A sketch is a summary of rows: at most `CAPACITY` rows (L, G, D)
    whose second moments are those of all rows that were added. `before`: the sketch so far; None for the first rows.

    The moments are exact as long as at most `CAPACITY` rows have been added, and always if D <= CAPACITY / 2. Otherwise the
    weakest directions of a layer are lost.
    """
    for part in rows_LGD.split(CAPACITY // 2, dim=1):
        rows = part.clone() if before is None else torch.cat([before, part], dim=1)
        before = torch.stack([_strongest(layer, CAPACITY // 2) for layer in rows]) if rows.shape[1] > CAPACITY else rows
    assert before is not None
    return before


def _strongest(rows_GD: Tensor, keep: int) -> Tensor:
    """Return `keep` rows whose second moments are those of `rows_GD`, except that the weakest directions may be lost. If fewer
    rows suffice, the others are 0."""
    _, singular, right = torch.linalg.svd(rows_GD.double(), full_matrices=False)
    kept = (singular.unsqueeze(1) * right)[:keep].float()
    return torch.nn.functional.pad(kept, (0, 0, 0, keep - len(kept)))


class DifferenceRows:
    """Gathers the differences positive - negative. They are averaged over the pairs of the same kind at the same position, so
    that there is one row for each kind and position. Differences of kinds with a single pair are compressed by `sketched`
    instead. `add` takes a block of samples and may be called any number of times; `rows` returns the rows of all blocks so
    far."""

    def __init__(self, alone: Tensor | None = None) -> None:
        """`alone`: the indices of the kinds that have a single pair; None: no difference is compressed."""
        self._alone = torch.tensor([], dtype=torch.long) if alone is None else alone
        self._sums: dict[tuple[int, int], tuple[Tensor, int]] = {}
        self._sketches: dict[float, Tensor] = {}
        self._alone_gap: Tensor | float = 0.0
        self._alone_weight = 0.0
        self._last_weight = 1.0
        self._norms: Tensor | float = 0.0
        self._seen = 0

    def add(self, block: Samples) -> None:
        self._last_weight = block.last_weight
        self._norms, self._seen = self._norms + block.positive.norm(dim=2).sum(dim=1), self._seen + len(block.pair_R)
        single = torch.isin(block.kind_R, self._alone)
        self._add_single(block.rows(single))
        shared = block.rows(~single)
        keys = torch.stack([shared.kind_R, shared.offset_R], dim=1)
        groups, group_R, counts = torch.unique(keys, dim=0, return_inverse=True, return_counts=True)
        differences = shared.positive - shared.negative
        sums = differences.new_zeros(differences.shape[0], len(groups), differences.shape[2])
        sums.index_add_(1, group_R, differences)
        for place, (kind, offset) in enumerate(groups.tolist()):
            before, count = self._sums.get((kind, offset), (0.0, 0))
            # Copied, because a view would keep the sums of the whole block alive.
            self._sums[kind, offset] = (before + sums[:, place].clone(), count + int(counts[place]))

    def _add_single(self, block: Samples) -> None:
        differences, weights = block.positive - block.negative, block.weights(block.offset_R)
        self._alone_gap = self._alone_gap + torch.einsum("r,lrd->ld", weights, differences.double())
        self._alone_weight += weights.sum().item()
        for weight in weights.unique().tolist():
            self._sketches[weight] = sketched(self._sketches.get(weight), differences[:, weights == weight])

    def rows(self) -> Rows:
        groups = sorted(self._sums)
        parts = [(self._sums[group][0] / self._sums[group][1]).unsqueeze(1) for group in groups]
        weights = [self._last_weight if offset == 0 else 1.0 for _, offset in groups]
        grouped = sum((weight * row.squeeze(1).double() for weight, row in zip(weights, parts, strict=True)), 0.0)
        total = sum(weights) + self._alone_weight
        kinds = [kind for kind, _ in groups]
        for weight, rows in sorted(self._sketches.items()):
            parts.append(rows)
            weights += [weight] * rows.shape[1]
            kinds += [-1] * rows.shape[1]
        if total == 0:
            raise SubspaceError("subspace.last_weight=0 leaves nothing to fit: the prompts of each pair share their last "
                                "token only; set it above 0")
        gap = torch.as_tensor(grouped + self._alone_gap) / total
        return Rows(torch.cat(parts, dim=1), torch.tensor(weights, dtype=torch.float64), total, gap,
                    torch.as_tensor(self._norms) / self._seen, torch.tensor(kinds))


class CentredRows(DifferenceRows):
    """Gathers the activations of both personas together, centred separately at each position (counted from the end). The rows are
    compressed by `sketched`. The gap is computed as in `DifferenceRows`."""

    def __init__(self, alone: Tensor | None = None) -> None:
        super().__init__(alone)
        self._means: dict[int, tuple[Tensor, int]] = {}
        self._centred: dict[float, Tensor] = {}
        self._total = 0.0

    def add(self, block: Samples) -> None:
        super().add(block)
        both, offsets = torch.cat([block.positive, block.negative], dim=1), block.offset_R.repeat(2)
        self._total += block.weights(offsets).sum().item()
        for offset in offsets.unique().tolist():
            rows = both[:, offsets == offset]
            mean, count = rows.double().mean(dim=1, keepdim=True), rows.shape[1]
            before, earlier = self._means.get(offset, (mean, 0))
            moved = mean - before
            # The second moments of two parts about their common mean are those about their own means and of one row between them.
            between = moved * (earlier * count / (earlier + count)) ** 0.5
            weight = block.last_weight if offset == 0 else 1.0
            self._centred[weight] = sketched(self._centred.get(weight), torch.cat([rows - mean, between], dim=1).float())
            self._means[offset] = (before + moved * (count / (earlier + count)), earlier + count)

    def rows(self) -> Rows:
        sketches = sorted(self._centred.items())
        weights = [weight for weight, rows in sketches for _ in range(rows.shape[1])]
        return replace(super().rows(), rows_LGD=torch.cat([rows for _, rows in sketches], dim=1), total_weight=self._total,
                       weights_G=torch.tensor(weights, dtype=torch.float64), kinds_G=torch.full((len(weights),), -1))
