"""Blocks of samples give the rows that all of them at once give, in memory that does not grow with their number."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from routed_rl.linalg import principal_cosines
from routed_rl.subspace import Samples, Size
from routed_rl.subspace.methods import METHODS, find
from routed_rl.subspace.rows import CAPACITY, DifferenceRows, sketched
from routed_rl.subspace.samples import Reservoir, concatenated

LAYERS, WIDTH = 2, 12


def samples_of(pairs: int, kinds: int | None, seed: int = 0, width: int = WIDTH) -> Samples:
    generator = torch.Generator().manual_seed(seed)
    pair = torch.arange(pairs).repeat_interleave(2)
    positive, negative = torch.randn(2, LAYERS, len(pair), width, generator=generator)
    kind = pair if kinds is None else pair % kinds
    return Samples(positive + torch.arange(width) / 4, negative, pair, kind, torch.arange(len(pair)) % 2, 3.0)


def streamed(method: str, samples: Samples, size: int, alone: torch.Tensor):
    gathering = METHODS[method].gather(alone)
    for pairs in torch.arange(int(samples.pair_R.max()) + 1).split(size):
        gathering.add(samples.of_pairs(pairs))
    return gathering.rows()


@given(size=st.integers(1, 50), kinds=st.sampled_from([None, 1, 3]), method=st.sampled_from(["mean_difference", "pca"]))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_a_stream_of_blocks_gives_the_subspace_of_all_samples_at_once(size, kinds, method):
    samples = samples_of(50, kinds)
    alone = samples.kind_R.unique() if kinds is None else torch.tensor([], dtype=torch.long)
    whole = find(method, samples, Size(2), 0)
    parts = METHODS[method].name(streamed(method, samples, size, alone), Size(2), (), 0)
    for one, other in zip(whole.directions, parts.directions, strict=True):
        assert principal_cosines(one, other).min() > 1 - 1e-6
    torch.testing.assert_close(whole.scales, parts.scales, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(whole.units, parts.units, rtol=1e-5, atol=0)
    torch.testing.assert_close(torch.stack([axes[:, 0] for axes in whole.axes]), torch.stack([axes[:, 0] for axes in parts.axes]),
                               rtol=0, atol=1e-5)


def test_a_sketch_of_many_rows_keeps_their_second_moments_and_no_more_than_its_capacity():
    rows, sketch = torch.randn(LAYERS, 3000, WIDTH, generator=torch.Generator().manual_seed(0)), None
    for part in rows.split(70, dim=1):
        sketch = sketched(sketch, part)
    assert sketch is not None and sketch.shape[1] <= CAPACITY
    torch.testing.assert_close(sketch.mT @ sketch, rows.mT @ rows, rtol=1e-4, atol=1e-2)


def test_in_a_wide_stream_a_sketch_keeps_the_strong_directions():
    generator = torch.Generator().manual_seed(0)
    width = CAPACITY
    strong = torch.linalg.qr(torch.randn(width, 3, generator=generator)).Q
    rows = torch.randn(1, 2000, 3, generator=generator) * 5 @ strong.mT + 0.1 * torch.randn(1, 2000, width, generator=generator)
    found = torch.linalg.svd(sketched(None, rows)[0])[2][:3].mT
    assert principal_cosines(found, strong).min() > 0.999


def test_rows_of_pairs_without_a_kind_do_not_pile_up():
    gathering = DifferenceRows(torch.arange(5000))
    for start in range(0, 5000, 500):
        block = samples_of(500, None, start)
        gathering.add(Samples(block.positive, block.negative, block.pair_R + start, block.kind_R + start, block.offset_R))
    assert gathering.rows().rows_LGD.shape[1] <= 2 * CAPACITY


def test_a_reservoir_keeps_whole_pairs_of_those_that_it_may_and_a_sample_of_both_personas():
    samples = samples_of(40, None)
    reservoir = Reservoir(torch.arange(0, 40, 2), len(samples.pair_R), most=7, sample=30)
    for pairs in torch.arange(40).split(9):
        reservoir.add(samples.of_pairs(pairs))
    kept = reservoir.samples()
    assert len(kept.pair_R.unique()) == 7 and len(kept.pair_R) == 14 and not (kept.pair_R % 2).any()
    everything = torch.cat([samples.positive, samples.negative], dim=1)
    drawn = reservoir.activations()
    assert drawn.shape[1] == 30
    assert all(any(torch.equal(row, other) for other in everything[0]) for row in drawn[0])


@pytest.mark.parametrize("size", [1, 7, 100])
def test_concatenating_blocks_is_the_inverse_of_cutting(size):
    samples = samples_of(20, 2)
    again = concatenated([samples.of_pairs(pairs) for pairs in torch.arange(20).split(size)])
    assert torch.equal(again.positive, samples.positive) and torch.equal(again.kind_R, samples.kind_R)
