"""The student's start: shrunk, and noised once."""

from __future__ import annotations

import math

import pytest
import torch

from routed_rl.distillation.noise import add_noise
from tests.builders import tiny


def noised(alpha: float, beta: float = 0.1, seed: int = 0, **model):
    found = tiny("llama", **model)
    before = {name: value.detach().clone() for name, value in found.named_parameters()}
    add_noise(dict(found.named_parameters()), alpha, beta, seed)
    return before, dict(found.named_parameters()), found


def test_nothing_changes_at_zero_and_nothing_is_left_at_one():
    before, after, _ = noised(0.0)
    assert all(torch.equal(before[name], after[name]) for name in before)
    before, after, _ = noised(1.0)
    for value in after.values():
        if value.dim() == 1:
            assert not value.any(), "the noise of a vector is 0"
            continue
        bound = 0.1 * math.sqrt(6 / sum(value.shape[-2:]))
        assert 0.8 * bound < value.abs().max() <= bound
        assert value.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.2), "uniform, not normal"


def test_between_them_it_is_the_weighted_sum():
    before, half, _ = noised(0.4)
    _, noise, _ = noised(1.0)
    for name, value in half.items():
        torch.testing.assert_close(value.detach(), 0.6 * before[name] + 0.4 * noise[name].detach())
    _, other, _ = noised(0.4, seed=1)
    assert not torch.equal(other["model.embed_tokens.weight"], half["model.embed_tokens.weight"])


def test_tied_weights_are_noised_once():
    before, after, model = noised(0.5, beta=0.0, tie_word_embeddings=True)
    name = "model.embed_tokens.weight"
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    torch.testing.assert_close(after[name].detach(), 0.5 * before[name])
