"""Coordinates along the axes are those of the stream, and are compared at the base model's length."""

import pytest
import torch

from routed_rl.audit.probe import Coordinates, coordinates, shift_between
from routed_rl.model.targets import decoder_layers
from routed_rl.subspace import Provenance, Subspace
from tests.builders import random_bases, tiny


def subspace(layers: int = 2, width: int = 16) -> Subspace:
    bases = random_bases(layers, width, 2)
    return Subspace(bases, bases, ["persona", "second"], torch.tensor([[2.0, 1.0]] * layers), torch.ones(layers),
                    torch.zeros(layers, 4, width), Provenance("pca", "m", "h", width, layers, 2))


def test_coordinates_are_the_streams_at_the_last_tokens_of_each_prompt():
    model, found = tiny("llama"), subspace()
    sequences = [(3, 4, 5, 6, 7), (8, 9)]
    seen = coordinates(model, sequences, found, positions=3, batch_size=2)
    streams: list[torch.Tensor] = []
    for layer in decoder_layers(model):
        layer.register_forward_hook(lambda _m, _a, out: streams.append(out))
    expected = []
    for ids in sequences:
        with torch.no_grad():
            model(input_ids=torch.tensor([ids]))
        expected.append([(stream[0].flip(0)[:3] @ axes) for stream, axes in zip(streams, found.axes, strict=True)])
        streams.clear()
    for layer in range(2):
        rows = torch.cat([one[layer] for one in expected])
        assert rows.shape[0] == 5  # 3 of the long prompt, 2 of the short one.
        torch.testing.assert_close(seen.along_LRJ[layer], rows, rtol=1e-4, atol=1e-5)


def test_a_model_does_not_shift_against_itself_and_a_longer_stream_alone_is_no_shift():
    here = Coordinates(torch.randn(2, 5, 2), torch.rand(2, 5) + 1)
    assert not shift_between(here, here, torch.ones(2, 2)).normalised.any()
    longer = Coordinates(3 * here.along_LRJ, 3 * here.rms_LR)
    shift = shift_between(here, longer, torch.ones(2, 2))
    assert shift.normalised.abs().max() < 1e-6 < 1e-2 < shift.raw.abs().max()


def test_a_shrinking_rest_of_the_stream_is_a_shift_although_no_coordinate_moved():
    here = Coordinates(torch.ones(1, 5, 1), torch.full((1, 5), 2.0))
    shrunk = Coordinates(here.along_LRJ, here.rms_LR / 2)
    shift = shift_between(here, shrunk, torch.tensor([[4.0]]))
    assert shift.raw.item() == 0 and shift.normalised.item() == pytest.approx(1 / 4)  # In units of the gap.
