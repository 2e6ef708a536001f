"""The response to a push is what the model itself does with it, in every family, and its derivatives agree with each other."""

import pytest
import torch
from torch.func import jvp, vjp

from routed_rl.model.pushed import Pushed, eager_attention
from routed_rl.model.stream import eval_mode, reading
from routed_rl.model.targets import decoder_layers, family
from tests.families import FAMILIES, WIDTH, tiny

PROMPTS = [(2, 3, 4, 5), (6, 7, 8)]


def streams(model, ids, push, layer: int) -> list[torch.Tensor]:
    """What each layer puts out for one prompt without padding, where a hook of ours adds the push."""
    def add(_module, _inputs, output):
        return (output[0] + push, *output[1:]) if isinstance(output, tuple) else output + push

    handle, kept = decoder_layers(model)[layer].register_forward_hook(add), []
    with torch.no_grad(), reading(model, kept.append):
        model(input_ids=torch.tensor([ids]))
    handle.remove()
    return kept


@pytest.mark.parametrize("name", ["llama", "gpt2", *(
    pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES if name not in ("llama", "gpt2"))])
def test_effects_are_what_a_hook_does_derivatives_are_adjoint_and_the_model_is_left_as_it_was(name):
    model = tiny(name, layers=3)
    pushes = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(1))
    with eval_mode(model), eager_attention(model):
        pushed = Pushed(model, PROMPTS, 0, 2, 4)
        effects, response = pushed.effects(pushes), pushed.response(pushes, 1)
        for place, push in enumerate(pushes):
            changes = [[(with_it - without)[0, -2:].mean(0) for with_it, without in
                        zip(streams(model, ids, push, 0), streams(model, ids, 0.0, 0), strict=True)] for ids in PROMPTS]
            for layer in range(3):
                mean = torch.stack([change[layer] for change in changes]).mean(0)
                torch.testing.assert_close(effects[layer, place], mean, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(response.mean(1) + pushes, effects[1], rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            tangent, cotangent = pushes.flip(0), torch.randn_like(response)
            _, forward = jvp(lambda x: pushed.response(x, 1), (pushes,), (tangent,))
            backward = vjp(lambda x: pushed.response(x, 1), pushes)[1](cotangent)[0]
        torch.testing.assert_close((forward * cotangent).sum(), (backward * tangent).sum(), rtol=1e-3, atol=1e-3)
    assert model.config._attn_implementation == "sdpa" and family(model)
    assert not any("forward" in vars(module) or module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
