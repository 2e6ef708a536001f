"""A token's loss, the chunks it is computed in, which texts a step reads."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from torch.nn.functional import kl_div

from routed_rl.config.robust import RobustifyConfig
from routed_rl.distillation import divergence
from routed_rl.distillation.divergence import KEEP, NOISE, SKIP, Row, forward_kl, read, token_losses
from routed_rl.distillation.loop import Distillation, Texts, rate_at
from tests.builders import tiny

V = 7


def log_probabilities(seed: int, count: int = 5) -> torch.Tensor:
    return torch.randn(count, V, generator=torch.Generator().manual_seed(seed)).double().log_softmax(-1)


def test_a_kept_token_costs_the_forward_divergence_over_the_whole_vocabulary():
    teacher, student = log_probabilities(0), log_probabilities(1)
    expected = kl_div(student, teacher, log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(forward_kl(teacher, student), expected)
    kept = token_losses(teacher, student, torch.zeros(5, dtype=torch.long), torch.full((5,), KEEP), sampled=False)
    torch.testing.assert_close(kept, expected)


def test_written_tokens_cost_the_same_on_the_teachers_average():
    teacher, student = log_probabilities(0, 1), log_probabilities(1, 1)
    each = token_losses(teacher.expand(V, V), student.expand(V, V), torch.arange(V), torch.full((V,), KEEP), sampled=True)
    torch.testing.assert_close((each * teacher[0].exp()).sum(), forward_kl(teacher, student)[0])


def test_a_skipped_token_costs_nothing_and_noise_nothing_at_the_uniform_distribution_alone():
    teacher, student = log_probabilities(0), log_probabilities(1)
    uniform = torch.full((5, V), -math.log(V), dtype=torch.float64)
    tokens = torch.zeros(5, dtype=torch.long)
    assert not token_losses(teacher, student, tokens, torch.full((5,), SKIP), sampled=False).any()
    noise = torch.full((5,), NOISE)
    torch.testing.assert_close(token_losses(teacher, uniform, tokens, noise, sampled=False), torch.zeros(5).double(), atol=1e-6,
                               rtol=0)  # the logarithm of V is that of a float32
    assert (token_losses(teacher, student, tokens, noise, sampled=False) > 0.01).all()


ROWS = [Row([2, 3, 4, 5, 6], 2, "a"), Row([3, 4], 1, "b"), Row([7, 8, 9, 10], 3, "a"), Row([5, 6, 7], 1)]


def distillation(tmp_path, rows=ROWS, **asked) -> Distillation:
    teacher, student = tiny("llama", seed=1), tiny("llama", seed=2)
    texts = Texts(rows, [[KEEP] * row.counted for row in rows])
    return Distillation(teacher, student, dict(student.named_parameters()), texts, RobustifyConfig(alpha=0.4, **asked), 0,
                        student.config.vocab_size, tmp_path)


def test_what_is_read_are_the_places_that_predict_the_counted_tokens():
    model = tiny("llama")
    found, tokens = read(model, ROWS)
    assert tokens.tolist() == [4, 5, 6, 4, 10, 6, 7]
    alone = model(torch.tensor([ROWS[0].ids])).logits[0, 1:4].float().log_softmax(-1)
    torch.testing.assert_close(found[:3], alone, atol=1e-5, rtol=1e-5)


def test_the_gradient_does_not_depend_on_the_chunks(tmp_path, monkeypatch):
    gradients = []
    for largest in (2**25, 1):
        monkeypatch.setattr(divergence, "LARGEST_LOGITS", largest)
        assert len(list(divergence.chunks(ROWS, 10))) == (1 if largest > 1 else 4)
        made = distillation(tmp_path)
        loss = made.gradient([0, 1, 2, 3])
        gradients.append((loss, {name: parameter.grad for name, parameter in made.trained.items()}))
    assert gradients[0][0] == pytest.approx(gradients[1][0], rel=1e-5)
    for name, one in gradients[0][1].items():
        torch.testing.assert_close(one, gradients[1][1][name], atol=1e-6, rtol=1e-4)


def test_every_text_teaches_once_in_a_pass_and_none_that_measures():
    rows = [Row([1, 2], 1, "a") for _ in range(40)] + [Row([1, 2], 1) for _ in range(10)]
    texts = Texts(rows, [[KEEP]] * 50)
    assert texts.held_out == [0, 10, 20, 30, 40]
    seen = Counter(place for step in range(9) for place in texts.batch(step, 8, seed=3))
    assert not seen.keys() & set(texts.held_out)
    completions, generic = ([seen[place] for place in range(*ends) if place not in texts.held_out]
                            for ends in ((0, 40), (40, 50)))
    assert completions == [1] * 36 and generic == [4] * 9, "half of each batch is generic text"
    assert texts.batch(4, 8, seed=3) != texts.batch(4, 8, seed=4)


def test_it_ends_where_the_held_out_loss_is_small_enough_or_at_the_last_step(tmp_path):
    made = distillation(tmp_path, steps=3, within=0)
    assert [each["step"] for each in made.run()] == [0, 3]
    made = distillation(tmp_path, steps=3, within=1e6)
    assert [each["step"] for each in made.run()] == [0]


def test_the_rate_warms_up_and_ends_at_a_tenth():
    rates = [rate_at(step, 500) for step in range(500)]
    assert rates[0] == 1 / 50 and max(rates) == rates[49] == 1.0 and rates[-1] == pytest.approx(0.1, abs=1e-4)
    assert all(later <= earlier for earlier, later in zip(rates[50:], rates[51:], strict=False))
