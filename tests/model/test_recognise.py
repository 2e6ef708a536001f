"""The writers of a model of any type are found by probing, and checked when they are named; the rest is refused in one line."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from routed_rl.errors import ModelError
from routed_rl.model.families import FAMILIES as ROWS
from routed_rl.model.families import Family
from routed_rl.model.recognise import recognise
from routed_rl.model.stream import reading
from routed_rl.model.targets import decoder_layers, family, find_writers, freeze, name_writers
from tests.builders import FAMILIES, Run, batch, merged, random_bases, relative, tiny
from tests.causal_models import DOCS, TYPES, WIDTH, line_of, tiny_causal

DIVERSE = {"falcon": "parallel, layers return tuples", "bloom": "a norm behind the embedding", "granite": "a constant scale",
           "glm4": "norms behind writers", "opt": "a writer that is given tokens without rows", "mamba": "no attention",
           "granitemoe": "a scaled mixture, all in one tensor", "deepseek_v3": "a shared expert beside the mixture"}


def routed(kind: str) -> Run:
    """Two steps of a routed model of a type."""
    model = tiny_causal(kind)
    return Run(model, bases=random_bases(len(decoder_layers(model)), WIDTH)).train(2)


def require_routed(kind: str) -> None:
    """Every tap fires (the router refuses silent ones), BᵀW = R, and the quarantine is what a merged model has."""
    run = routed(kind)
    assert run.drift() < 1e-5, run.drift()
    rows, plain = batch(9), merged(run.model, run.targets)
    with torch.no_grad():
        policy = run.model(input_ids=rows.ids, attention_mask=rows.mask, use_cache=False).logits
        found = plain(input_ids=rows.ids, attention_mask=rows.mask, use_cache=False).logits
        with run.quarantine.ablated():
            deployed = run.model(input_ids=rows.ids, attention_mask=rows.mask, use_cache=False).logits
    real = rows.mask.bool()
    assert relative(found[real], policy[real]) < 1e-4 < relative(deployed[real], policy[real])


@pytest.mark.parametrize("kind", DIVERSE)
def test_a_family_that_no_row_names_is_found_and_routed(kind):
    assert kind not in ROWS
    require_routed(kind)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_row_is_what_a_probe_finds(name):
    model = tiny(name)
    row, probed = family(model), copy.deepcopy(model)
    found = name_writers(probed, [])
    assert set(found.writers) <= set(row.writers)
    for field in ("layers", "final_norm", "embeddings", "post_norms", "gain_offset", "scales", "transposed", "before_mlp",
                  "mixers", "experts", "returns"):
        assert getattr(found, field) == getattr(row, field), field
    for ours, theirs in zip(find_writers(model), find_writers(probed), strict=True):
        assert [getattr(ours, field) for field in ("name", "layer", "expert", "active", "transposed")] == [
            getattr(theirs, field) for field in ("name", "layer", "expert", "active", "transposed")]
        assert (ours.gain_D is None) == (theirs.gain_D is None) and (ours.gain_D is None or (
            ours.gain_D.equal(theirs.gain_D) and ours.norm_eps == theirs.norm_eps))


def test_a_probe_leaves_the_model_and_the_random_numbers_as_they_were():
    model = tiny_causal("granite")
    model.lm_head.weight.requires_grad_(False)
    model.model.layers[1].train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    recognise(model)
    assert torch.get_rng_state().equal(state) and [module.training for module in model.modules()] == modes
    assert [name for name, parameter in model.named_parameters() if not parameter.requires_grad] == ["lm_head.weight"]
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_constant_scale_is_a_gain_without_a_norm():
    writers = find_writers(tiny_causal("granite"))
    assert len(writers) == 8
    for writer in writers:
        assert writer.norm_eps is None
        torch.testing.assert_close(writer.gain_D, torch.full((WIDTH,), 0.22))


def test_what_makes_the_first_layers_input_is_frozen_as_an_embedding():
    frozen = freeze(tiny_causal("bloom"), ["embedding"])
    assert set(frozen) == {"transformer.word_embeddings.weight", "transformer.word_embeddings_layernorm.weight",
                           "transformer.word_embeddings_layernorm.bias"}


def test_a_family_survives_a_checkpoint():
    row = family(tiny_causal("deepseek_v3"))
    assert Family.from_json(row.to_json()) == row


def test_parallel_blocks_have_no_stream_between_attention_and_mlp():
    with pytest.raises(ModelError, match=r"subspace\.hook=resid_mid: no module of a layer of a falcon.*resid_post"), reading(
            tiny_causal("falcon"), lambda _: None, "resid_mid"):
        pass


def scaled_by_a_parameter(model: nn.Module) -> None:
    """A trainable 1 between a writer and the stream."""
    model.model.layers[2].mlp.scale = nn.Parameter(torch.ones(()))
    model.model.layers[2].mlp.register_forward_hook(lambda module, _, output: output * module.scale)


def gated(model: nn.Module) -> None:
    model.model.layers[0].mlp.register_forward_hook(lambda _, args, output: output * args[0].detach().mean(-1, keepdim=True))


def stream_scaled(model: nn.Module) -> None:
    model.model.layers[1].register_forward_hook(lambda _, args, output: output * 0.5)


def written_besides(model: nn.Module) -> None:
    model.model.layers[1].register_forward_hook(lambda _, args, output: output + 1.0)


def shared(model: nn.Module) -> None:
    model.model.layers[3].mlp.down_proj = model.model.layers[1].mlp.down_proj


@pytest.mark.parametrize(("break_it", "why"), [
    (shared, r"model\.layers\.1 shares its writer mlp\.down_proj with another layer"),
    (scaled_by_a_parameter, r"in model\.layers\.2 the parameters mlp\.scale change the stream other than through linear"),
    (gated, r"the output of model\.layers\.0\.mlp\.down_proj reaches the stream multiplied by something that is not constant"),
    (stream_scaled, r"model\.layers\.1 does not only add to the stream"),
    (written_besides, r"in model\.layers\.1 self_attn\.o_proj, mlp\.down_proj do not add up")])
def test_what_is_not_only_added_to_the_stream_is_refused(break_it, why):
    model = tiny_causal("granite")
    break_it(model)
    with pytest.raises(ModelError, match=rf"recognised in a model of type 'granite': {why}.*model\.writers=") as error:
        find_writers(model)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("kind", "why"), [
    ("bert", r"attention\.output\.LayerNorm\.weight.* change the stream"),
    ("qwen2_moe", r"mlp\.shared_expert_gate\.weight.* change the stream"),
    ("gpt_oss", r"mlp\.experts are no gated experts without biases"),
    ("xlm", r"no one list of layers"), ("hrm_text", r"run 6 times")])
def test_a_stock_model_that_cannot_be_routed_is_refused_with_what_was_found(kind, why):
    with pytest.raises(ModelError, match=rf"type '{kind}': .*{why}"):
        find_writers(tiny_causal(kind))


def test_dropout_between_a_writer_and_the_stream_is_refused_and_elsewhere_is_not():
    with pytest.raises(ModelError, match=r"in training model\.decoder\.layers\.0 drops out.*self_attn\.out_proj.*disable"):
        find_writers(tiny_causal("opt", dropout=0.1))
    assert len(find_writers(tiny_causal("opt", attention_dropout=0.1))) == 8


def test_writers_named_by_hand_are_checked_as_found_ones_are():
    model = tiny_causal("starcoder2")
    assert name_writers(model, ["mlp.c_proj", "self_attn.o_proj"]) == recognise(model) == family(copy.deepcopy(model))


@pytest.mark.parametrize(("kind", "names", "why"), [
    ("starcoder2", "self_attn.o_proj,mlp.down_proj", r"no layer of model\.layers has 'mlp\.down_proj'; linear modules there: s"),
    ("starcoder2", "self_attn.o_proj,mlp.act", r"'mlp\.act' in model\.layers is a .*, which is no linear module"),
    ("starcoder2", "self_attn.o_proj", r"in model\.layers\.0 the parameters .*mlp\.c_fc.* other than through these writers"),
    ("starcoder2", "self_attn.o_proj,mlp.c_proj,self_attn.q_proj", r"self_attn\.q_proj in model\.layers\.0 does not write"),
    ("llama", "self_attn.o_proj,mlp.up", r"no layer of model\.layers has 'mlp\.up'")])
def test_wrong_names_of_writers_are_refused_in_one_line(kind, names, why):
    with pytest.raises(ModelError, match=rf"with model\.writers=\[{names}\]: {why}.*leave model\.writers out") as error:
        name_writers(tiny_causal(kind), names.split(","))
    assert "\n" not in str(error.value)


def test_a_writer_that_is_no_linear_of_torch_can_be_named():
    class Own(nn.Module):
        def __init__(self, like: nn.Linear) -> None:
            super().__init__()
            self.weight, self.bias = like.weight, None

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.weight.mT

    model = tiny_causal("granite")
    for layer in model.model.layers:
        layer.mlp.down_proj = Own(layer.mlp.down_proj)
    with pytest.raises(ModelError, match=r"mlp\.down_proj\.weight"):
        find_writers(model)
    name_writers(model, ["self_attn.o_proj", "mlp.down_proj"])
    assert Run(model, bases=random_bases(4, WIDTH)).train(2).drift() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("kind", TYPES)
def test_every_causal_model_routes_as_the_page_of_models_says_or_is_refused_in_one_line(kind):
    table, line = line_of(kind)
    assert line in DOCS.read_text() and line.count("\n") == 1
    if table == "found":
        require_routed(kind)


@pytest.mark.slow
def test_a_lora_that_a_model_comes_with_is_no_writer():
    plain, model = tiny_causal("granite"), tiny_causal("granite")
    wrapped = get_peft_model(model, LoraConfig(target_modules="all-linear"))
    before, modules = list(wrapped.state_dict()), dict(wrapped.named_modules())
    found = find_writers(model)
    assert family(model) == family(plain) and [writer.name for writer in found] == [each.name for each in find_writers(plain)]
    assert all(hasattr(writer.module, "lora_B") for writer in found)
    assert list(wrapped.state_dict()) == before and all(modules[name] is each for name, each in wrapped.named_modules())


class SideLayer(LlamaDecoderLayer):
    """A layer of a user's own, in a model whose type a row names: a third module adds to the stream."""

    def __init__(self, config, layer):
        super().__init__(config, layer)
        self.side = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, hidden_states, **others):
        return super().forward(hidden_states, **others) + self.side(hidden_states)


def test_layers_of_a_users_own_class_are_probed_also_where_a_row_names_the_type():
    """By the row of its type alone, what such a layer adds would be routed by nothing."""
    model, stock = tiny("llama"), tiny("llama")
    for place in range(len(model.model.layers)):
        model.model.layers[place] = SideLayer(model.config, place)
    assert model.config.model_type in ROWS and "side" in family(model).writers
    assert {writer.name.rpartition(".")[2] for writer in find_writers(model)} == {"o_proj", "down_proj", "side"}
    assert family(stock) is ROWS["llama"]
