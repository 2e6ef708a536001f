"""Writers of every known family are found; everything else is refused with what was found."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.utils import parametrizations, prune
from transformers import T5Config, T5ForConditionalGeneration
from transformers.pytorch_utils import Conv1D

from routed_rl.errors import ModelError
from routed_rl.model.targets import decoder_layers, family, find_writers, freeze, unrouted
from tests.builders import FAMILIES, FROZEN, WIDTH, batch, tiny


@pytest.mark.parametrize("name", FAMILIES)
def test_every_layer_has_two_writers_as_wide_as_the_stream(name):
    model = tiny(name, layers=3)
    writers = find_writers(model)
    places = list(dict.fromkeys((writer.layer, id(writer.module)) for writer in writers))
    assert [layer for layer, _ in places] == [0, 0, 1, 1, 2, 2] and len(decoder_layers(model)) == 3
    for writer in writers:
        if writer.expert is not None:
            continue
        assert model.get_submodule(writer.name) is writer.module
        weight = writer.module.weight.mT if writer.transposed else writer.module.weight
        assert weight.shape[0] == WIDTH
        assert writer.transposed == isinstance(writer.module, Conv1D) == (name == "gpt2")
        assert (writer.gain_D is not None) == (name in ("gemma2", "gemma3", "olmo2"))


def test_every_expert_of_a_mixture_is_a_writer_and_a_plain_layer_among_them_has_its_own():
    kinds = {name: [writer.expert for writer in find_writers(tiny(name))] for name in ("mixtral", "qwen3_moe")}
    assert kinds == {"mixtral": 2 * [None, 0, 1, 2, 3], "qwen3_moe": [None, None, None, 0, 1, 2]}
    for writer in find_writers(tiny("mixtral")):
        assert writer.name.endswith(f"mlp.experts.{writer.expert}.down_proj" if writer.active == 2 else "self_attn.o_proj")


@pytest.mark.parametrize("name", FAMILIES)
def test_writers_are_all_that_writes_to_the_stream(name):
    """With the writers' weights at zero every layer's output is its input; with any of them it is not."""
    model, rows = tiny(name), batch()
    streams = []
    for layer in decoder_layers(model):
        layer.register_forward_hook(lambda _m, args, out: streams.append((args[0], out)))
    writers = find_writers(model)
    kept = [p.detach().clone() for writer in writers for p in writer.parameters()]
    with torch.no_grad():
        for writer in writers:
            for parameter in writer.parameters():
                parameter.zero_()
        model(input_ids=rows.ids, attention_mask=rows.mask)
        assert all(out.equal(into) for into, out in streams)
        for writer in writers:
            for parameter in writer.parameters():
                parameter.copy_(kept.pop(0))
            streams.clear()
            model(input_ids=rows.ids, attention_mask=rows.mask)
            into, out = streams[writer.layer]
            assert not out.equal(into)
            for parameter in writer.parameters():
                parameter.zero_()


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "olmo2"])
def test_the_gain_is_what_stands_between_the_writer_and_the_stream(name):
    model, rows, seen = tiny(name), batch(), {}
    for writer in find_writers(model)[:2]:
        layer = decoder_layers(model)[0]
        norm = layer.post_attention_layernorm if "o_proj" in writer.name else layer.post_feedforward_layernorm
        norm.register_forward_hook(lambda _m, args, out: seen.update(into=args[0], out=out))
        with torch.no_grad():
            model(input_ids=rows.ids, attention_mask=rows.mask)
        rms = (seen["into"].square().mean(-1, keepdim=True) + writer.norm_eps).sqrt()
        torch.testing.assert_close(seen["out"], seen["into"] / rms * writer.gain_D)


def test_biases_of_writers_come_with_the_module():
    model = tiny("llama", attention_bias=True, mlp_bias=True)
    assert all(writer.module.bias is not None for writer in find_writers(model))


def test_a_model_with_an_encoder_is_refused():
    model = T5ForConditionalGeneration(T5Config(d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, vocab_size=32))
    with pytest.raises(ModelError, match=r"no writers are recognised in a model of type 't5': it has an encoder"):
        find_writers(model)


def test_a_peft_wrapped_model_is_refused():
    wrapped = get_peft_model(tiny("llama"), LoraConfig(target_modules=["o_proj"], r=2))
    with pytest.raises(ModelError, match=r"wrapped by PEFT.*merge the adapter"):
        find_writers(wrapped)


def test_a_model_that_holds_an_adapter_is_refused():
    model = tiny("llama")
    model.add_adapter(LoraConfig(target_modules=["o_proj"], r=2))
    with pytest.raises(ModelError, match=r"wrapped by PEFT.*merge the adapter"):
        find_writers(model)


def shared_layer(model):
    model.model.layers[1] = model.model.layers[0]


def shared_weight(model):
    model.model.layers[1].mlp.down_proj.weight = model.model.layers[0].mlp.down_proj.weight


@pytest.mark.parametrize(("change", "why"), [
    (lambda model: parametrizations.weight_norm(model.model.layers[0].mlp.down_proj), "down_proj is computed from other tensor"),
    (lambda model: prune.random_unstructured(model.model.layers[1].self_attn.o_proj, "weight", 0.5), "o_proj is computed"),
    (shared_layer, r"layers\.0\.self_attn\.o_proj and model\.layers\.1\.self_attn\.o_proj share one weight"),
    (shared_weight, r"layers\.0\.mlp\.down_proj and model\.layers\.1\.mlp\.down_proj share one weight")])
def test_a_writer_without_a_weight_of_its_own_is_refused(change, why):
    model = tiny("llama")
    change(model)
    with pytest.raises(ModelError, match=why) as refusal:
        find_writers(model)
    assert "\n" not in str(refusal.value)


def test_dropout_between_writer_and_stream_is_refused_and_elsewhere_is_not():
    with pytest.raises(ModelError, match=r"transformer\.h\.0\.attn\.resid_dropout drops out 0\.1.*disable_dropout"):
        find_writers(tiny("gpt2", resid_pdrop=0.1))
    assert len(find_writers(tiny("gpt2", attn_pdrop=0.1, embd_pdrop=0.1))) == 4
    with pytest.raises(ModelError, match=r"model\.layers\.0\.resid_attn_dropout drops out 0\.2"):
        find_writers(tiny("phi3", resid_pdrop=0.2))


@pytest.mark.parametrize(("norm", "writer"), [("post_attention_layernorm", "o_proj"),
                                              ("post_feedforward_layernorm", "down_proj")])
@pytest.mark.parametrize(("family", "zero"), [("gemma2", -1.0), ("olmo2", 0.0)])
def test_a_gain_near_zero_behind_a_writer_is_refused(norm, writer, family, zero):
    model = tiny(family)
    with torch.no_grad():
        decoder_layers(model)[1].get_submodule(norm).weight[5] = zero + 1e-5
    with pytest.raises(ModelError, match=rf"gain of {norm} behind model\.layers\.1\..*{writer} is nearly zero at index 5"):
        find_writers(model)


def test_a_gain_near_zero_elsewhere_is_fine():
    model = tiny("gemma2")
    with torch.no_grad():
        decoder_layers(model)[1].input_layernorm.weight[5] = -1.0
    assert len(find_writers(model)) == 4


@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_is_frozen_or_a_target_or_named_with_a_reason(name):
    model = tiny(name)
    writers = find_writers(model)
    frozen = freeze(model, FROZEN)
    reasons = unrouted(model, writers)
    routed = {id(parameter) for writer in writers for parameter in writer.parameters()}
    targets = {parameter for parameter, value in model.named_parameters() if id(value) in routed}
    groups = [set(frozen), targets, set(reasons)]
    everything = {parameter for parameter, _ in model.named_parameters()}
    assert set.union(*groups) == everything and sum(map(len, groups)) == len(everything)
    assert all(model.get_parameter(name).requires_grad != (name in frozen) for name in everything)
    assert all(reason for reason in reasons.values())
    layer_norms = [key for key in reasons if "norm" in key or ".ln_" in key]
    assert layer_norms and all("norm" in reasons[key] for key in layer_norms)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_trained_embedding_is_named_as_a_writer_that_is_not_routed(name):
    model = tiny(name)
    reasons = unrouted(model, find_writers(model))
    embedding = next(key for key, p in model.named_parameters() if p is model.get_input_embeddings().weight)
    assert "writes to the stream" in reasons[embedding]


def test_each_group_freezes_its_own_parameters_only():
    expected = {"embedding": {"transformer.wte.weight", "transformer.wpe.weight"},
                "final_norm": {"transformer.ln_f.weight", "transformer.ln_f.bias"}, "post_norm": set()}
    for group, names in expected.items():
        assert set(freeze(tiny("gpt2"), [group])) == names
    assert set(freeze(tiny("llama"), ["unembedding"])) == {"lm_head.weight"}
    assert not freeze(tiny("llama"), [])
    assert set(freeze(tiny("gemma3"), ["post_norm"])) == {
        f"model.layers.{i}.{norm}.weight" for i in (0, 1) for norm in ("post_attention_layernorm", "post_feedforward_layernorm")}


def test_a_known_type_is_recognised_by_its_config():
    assert family(tiny("gemma3")) is family(tiny("gemma2")) and family(tiny("gpt2")).transposed
