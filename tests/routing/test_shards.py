"""A weight in pieces: what the pieces say adds up to what the whole weight says, wherever it is cut."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from routed_rl.routing.shards import Piece
from tests.builders import PROPERTY


def cut(matrix: torch.Tensor, places: list[int], padding: int = 0) -> list[Piece]:
    """The flattened matrix cut at `places`; the last piece has `padding` entries more than there are."""
    flat = torch.cat([matrix.reshape(-1), matrix.new_full((padding,), 7.0)])
    edges = [0, *sorted(min(place, matrix.numel()) for place in places), len(flat)]
    pieces = []
    for start, end in zip(edges, edges[1:], strict=False):
        held = flat[start:end].clone()
        pieces.append(Piece(held, start, *matrix.shape, lambda entries, held=held: held[:len(entries)].copy_(entries)))
        pieces[-1].memory = held
    return pieces


def joined(pieces: list[Piece], shape: torch.Size) -> torch.Tensor:
    return torch.cat([piece.memory for piece in pieces])[:shape.numel()].view(shape)


@PROPERTY
@given(rows=st.integers(1, 5), columns=st.integers(1, 4), places=st.lists(st.integers(0, 20), max_size=3),
       padding=st.integers(0, 3), transposed=st.booleans(), seed=st.integers(0, 99))
def test_products_and_changes_of_the_pieces_are_those_of_the_whole(rows, columns, places, padding, transposed, seed):
    generator = torch.Generator().manual_seed(seed)
    stored = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    weight = stored.mT if transposed else stored
    left = torch.randn(weight.shape[0], 2, generator=generator, dtype=torch.float64)
    inside = torch.randn(2, weight.shape[1], generator=generator, dtype=torch.float64)
    pieces = cut(stored, places, padding)
    assert torch.allclose(sum(piece.product(left, transposed=transposed) for piece in pieces), left.mT @ weight)
    for piece in pieces:
        piece.add(left, inside, transposed=transposed)
    changed = weight + left @ inside
    assert torch.allclose(joined(pieces, stored.shape), changed.mT if transposed else changed)


@pytest.mark.parametrize("places", [[], [3], [1, 5], [4, 8]])
def test_whole_and_take_are_inverse(places):
    stored = torch.arange(12.0).view(4, 3)
    pieces = cut(torch.zeros(4, 3), places, padding=2)
    for piece in pieces:
        piece.take(stored)
    assert joined(pieces, stored.shape).equal(stored)
    assert all(piece.memory[len(piece.flat):].eq(7.0).all() for piece in pieces), "padding is left alone"
    assert cut(stored, [])[0].whole().equal(stored)
