"""A prompt that several rows of a generation share is computed once, and the generation is the same."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from routed_rl.model.prefill import drops_out, sharing_prompts
from tests.builders import Run, tiny
from tests.causal_models import TYPES, tiny_causal

ROWS = [0, 0, 1, 2, 2, 2, 1, 0]
"""Which of three prompts each row of a generation has."""
UNSTEADY = {"big_bird": "gives other completions with the same seed"}


def generated(model: Any, *, share: bool, context: Any = None, practising: Tensor | None = None, **settings: Any
              ) -> tuple[Tensor, Tensor, list[int]]:
    """The tokens and logits of one generation, and how many rows each of its forward passes ran."""
    vocabulary = model.config.get_text_config().vocab_size
    prompts = torch.randint(3, min(vocabulary, 90), (3, 9),
                            generator=torch.Generator().manual_seed(0))
    ids, mask = prompts[ROWS], torch.ones(len(ROWS), 9, dtype=torch.long)
    mask[:, :4] = (torch.tensor(ROWS) != 1).long()[:, None]  # one prompt is shorter
    chosen = GenerationConfig(max_new_tokens=5, do_sample=True, top_k=0, pad_token_id=0, eos_token_id=[vocabulary - 1],
                              disable_compile=True, output_logits=True, return_dict_in_generate=True, **settings)
    seen = list[int]()
    handle = model.register_forward_hook(lambda _model, _args, inputs, _output: seen.append(len(inputs["input_ids"])),
                                         with_kwargs=True)
    torch.manual_seed(1)
    with (context.practising(practising) if context else nullcontext(),
          sharing_prompts(model, context) if share else nullcontext()):
        found = model.generate(input_ids=ids * mask, attention_mask=mask, generation_config=chosen)
        assert context is None or context.now.practising_B is practising
    handle.remove()
    return found.sequences, torch.stack(found.logits), seen


def require_same(model: Any, shared: bool = True, **given: Any) -> None:
    expected, logits, rows = generated(model, share=False, **given)
    assert set(rows) == {len(ROWS)}
    found, ours, rows = generated(model, share=True, **given)
    assert rows[0] == (len(set(ROWS)) if shared else len(ROWS)) and set(rows[1:]) == {len(ROWS)}
    assert found.equal(expected) and (ours - logits).abs().max() < 2e-5


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_a_generation_that_shares_its_prompts_is_the_one_that_does_not(family):
    require_same(tiny(family))


def test_a_prompt_in_pieces_is_generated_from_as_without_sharing():
    require_same(tiny("llama"), prefill_chunk_size=4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(set(TYPES) - set(UNSTEADY)))
def test_every_causal_model_that_generates_generates_the_same(kind):
    try:
        model = tiny_causal(kind)
        expected, logits, _ = generated(model, share=False)
    except Exception as error:  # it cannot be built, or transformers cannot generate with it
        pytest.skip(f"{type(error).__name__}: {str(error)[:80]}")
    found, ours, _ = generated(model, share=True)
    assert found.equal(expected) and (ours - logits).abs().max() < 2e-5


def test_rows_that_practise_share_nothing_with_rows_that_do_not():
    run = Run(tiny("llama")).train(3)
    practising = torch.tensor([place == 2 or row == 2 for place, row in enumerate(ROWS)])
    practising[0] = True  # one of the three rows that have its prompt
    expected, logits, _ = generated(run.model, share=False, context=run.context, practising=practising)
    found, ours, rows = generated(run.model, share=True, context=run.context, practising=practising)
    assert rows[0] == 5 and found.equal(expected) and (ours - logits).abs().max() < 2e-5
    without = generated(run.model, share=False, context=run.context)[1]
    assert (without - logits).abs().max() > 1e-3  # else practice would change nothing here


@pytest.mark.parametrize("change", ["dropout", "attention_dropout", "stateful", "static cache"])
def test_nothing_is_shared_where_that_would_change_what_is_computed(change):
    model: Any = tiny("llama")
    settings: dict[str, Any] = {}
    if change == "dropout":
        model.model.layers[0].mlp.down_proj = nn.Sequential(model.model.layers[0].mlp.down_proj, nn.Dropout(0.5))
    if change == "attention_dropout":
        model.model.layers[0].self_attn.attention_dropout = 0.5
    if change == "static cache":
        settings["cache_implementation"] = "static"
    if change == "stateful":
        model._is_stateful = True
    if "dropout" in change:
        require_same(model.eval())  # in this mode nothing is dropped
        assert drops_out(model.train())
        torch.manual_seed(1)
    expected, logits, rows = generated(model, share=False, **settings)
    found, ours, rows = generated(model, share=True, **settings)
    assert set(rows) == {len(ROWS)} and found.equal(expected) and ours.equal(logits)


def test_after_an_error_the_model_has_no_hooks_and_runs_all_rows():
    model: Any = tiny("llama")
    with pytest.raises(RuntimeError, match="stop"), sharing_prompts(model):
        raise RuntimeError("stop")
    assert not model._forward_pre_hooks and not model._forward_hooks
