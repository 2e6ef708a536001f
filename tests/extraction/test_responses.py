"""Responses and hook points: what is read while a response is written is what reading it afterwards gives."""

import pytest
import torch

from routed_rl.errors import SubspaceError
from routed_rl.extraction.responses import Respond, require_responses, respond
from routed_rl.model.stream import HOOK_POINTS, capturing, resuming
from routed_rl.model.targets import decoder_layers
from tests.causal_models import tiny_causal
from tests.chat import chat_tokenizer
from tests.test_extraction import make_model

PROMPTS = [(5, 6, 7), (8, 9, 10, 11, 12, 13), (4,), (7, 7)]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("hook", sorted(HOOK_POINTS))
def test_the_mean_is_over_exactly_the_tokens_of_each_response_read_alone(kind, hook):
    model = make_model(kind).eval()
    settings = Respond(6, 1.0, (1, 2))
    responses, means = respond(model, PROMPTS, settings, torch.Generator().manual_seed(0), hook)
    assert len({len(response) for response in responses}) > 1, "a draw in which responses differ in length"
    for row, (prompt, response) in enumerate(zip(PROMPTS, responses, strict=True)):
        assert 1 <= len(response) <= 6 and not set(response) & {1, 2}
        ids = torch.tensor([[*prompt, *response]])
        positions = torch.arange(len(prompt), ids.shape[1]).unsqueeze(0)
        with torch.no_grad(), capturing(model, positions, hook) as alone:
            model(input_ids=ids)
        for layer, mean in enumerate(means):
            torch.testing.assert_close(mean[row], alone[layer][0].mean(0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_greedy_responses_are_those_of_the_library(kind):
    model = make_model(kind).eval()
    responses, _ = respond(model, PROMPTS[:1], Respond(5, 0.0, (31,)), torch.Generator())
    ids = torch.tensor(PROMPTS[:1])
    theirs = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False,
                            eos_token_id=31, pad_token_id=31, min_new_tokens=1, disable_compile=True)[0, 3:].tolist()
    assert responses[0] == [token for token in theirs if token != 31]


def test_the_same_seed_draws_the_same_responses_and_another_does_not():
    model = make_model().eval()
    one, again, other = (respond(model, PROMPTS, Respond(6, 1.0, (1,)), torch.Generator().manual_seed(seed))[0]
                         for seed in (0, 0, 1))
    assert one == again != other


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_hook_points_stand_where_their_names_say(kind):
    model, ids = make_model(kind).eval(), torch.tensor([[5, 6, 7, 8]])
    streams = {}
    for hook in HOOK_POINTS:
        with torch.no_grad(), capturing(model, torch.arange(4).unsqueeze(0), hook) as streams[hook]:
            hidden = model(input_ids=ids, output_hidden_states=True).hidden_states
    for layer in range(3):
        torch.testing.assert_close(streams["resid_pre"][layer], hidden[layer])
    for layer in range(2):
        torch.testing.assert_close(streams["resid_post"][layer], streams["resid_pre"][layer + 1])
    for layer in range(3):
        assert not torch.allclose(streams["resid_mid"][layer], streams["resid_pre"][layer])
        assert not torch.allclose(streams["resid_mid"][layer], streams["resid_post"][layer])


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_going_on_from_a_changed_layer_is_changing_that_layer_in_a_whole_forward(kind):
    model, ids = make_model(kind).eval(), torch.tensor([[5, 6, 7, 8], [9, 8, 7, 6]])
    push = torch.randn(32)
    with torch.no_grad():
        with capturing(model, torch.arange(4).repeat(2, 1)) as captured:
            before = model(input_ids=ids).logits
        hook = decoder_layers(model)[1].register_forward_hook(
            lambda _module, _inputs, output: (output[0] + push, *output[1:]) if isinstance(output, tuple) else output + push)
        whole = model(input_ids=ids).logits
        hook.remove()
        with resuming(model, 1, captured[1] + push):
            resumed = model(input_ids=ids).logits
        after = model(input_ids=ids).logits
    torch.testing.assert_close(resumed, whole, rtol=0, atol=1e-5)
    assert not torch.allclose(resumed, before, atol=1e-3) and torch.equal(after, before)


def test_a_forward_that_a_script_has_put_on_a_layer_is_there_after_a_resumed_one():
    model, ids = make_model().eval(), torch.tensor([[5, 6, 7, 8]])
    layer = decoder_layers(model)[1]
    layer.forward = own = lambda hidden_states, *_args, **_named: 2 * hidden_states
    with torch.no_grad():
        before = model(input_ids=ids).logits
        with resuming(model, 1, torch.zeros(1, 4, 32)):
            assert not torch.equal(model(input_ids=ids).logits, before)
        assert layer.forward is own and torch.equal(model(input_ids=ids).logits, before)


def test_what_writes_no_responses_is_refused():
    tokenizer = chat_tokenizer()
    require_responses(make_model(), tokenizer)
    with pytest.raises(SubspaceError, match="a mamba model does not keep its states in past_key_values.*prompt_end"):
        require_responses(tiny_causal("mamba"), tokenizer)
    tokenizer.eos_token = None
    with pytest.raises(SubspaceError, match="no eos token, so no response would end; set tokenizer.eos_token"):
        require_responses(make_model(), tokenizer)


def test_a_prompt_that_leaves_no_room_for_a_response_is_refused():
    model = make_model("gpt2")
    with pytest.raises(SubspaceError, match="a prompt of 62 tokens and subspace.response_tokens=3 are more than .* takes, 64"):
        respond(model, [(5,), (5,) * 62], Respond(3, 1.0, (1,)), torch.Generator())
