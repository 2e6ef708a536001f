"""Groups are partitions of what changed, and putting them back writes the base model's weights and nothing else."""

import pytest
import torch

from routed_rl.audit.groups import by_kind, by_layer, changed, putting_back
from routed_rl.model.targets import find_writers
from tests.builders import FAMILIES, Run, tiny


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_groups_partition_the_parameters_that_changed(name):
    model = tiny(name)
    base = weights(model)
    run = Run(model).train(2)
    names = changed(base, weights(run.model))
    assert names and set(names) < set(base)  # Frozen ones did not change.
    for groups in (by_kind(model, find_writers(model), names), by_layer(model, names, 8)):
        assert sorted(one for members in groups.values() for one in members) == sorted(names)
        assert all(groups.values())


def test_kinds_and_layers_say_what_a_parameter_is():
    model = tiny("qwen3", layers=5)
    names = [name for name, _ in model.named_parameters()]
    kind = {name: group for group, members in by_kind(model, find_writers(model), names).items() for name in members}
    layer = "model.layers.3."
    assert {name.removeprefix(layer): group for name, group in kind.items() if name.startswith(layer)} == {
        "self_attn.q_proj.weight": "attention readers", "self_attn.k_proj.weight": "attention readers",
        "self_attn.v_proj.weight": "attention readers", "self_attn.o_proj.weight": "attention writers",
        "self_attn.q_norm.weight": "norms", "self_attn.k_norm.weight": "norms", "input_layernorm.weight": "norms",
        "post_attention_layernorm.weight": "norms", "mlp.gate_proj.weight": "MLP readers", "mlp.up_proj.weight": "MLP readers",
        "mlp.down_proj.weight": "MLP writers"}
    assert {kind[name] for name in names if "layers" not in name} == {"outside the layers"}
    blocks = by_layer(model, names, 2)
    assert list(blocks) == ["layers 0 to 1", "layers 2 to 4", "outside the layers"]
    assert all(name.split(".")[2] in "01" for name in blocks["layers 0 to 1"])


def test_of_a_mixture_the_gate_and_what_enters_the_experts_are_readers():
    model = tiny("mixtral")
    kind = by_kind(model, find_writers(model), [name for name, _ in model.named_parameters()])
    assert kind["MLP writers"] == [f"model.layers.{i}.mlp.experts.down_proj" for i in (0, 1)]
    assert {name.split(".", 4)[-1] for name in kind["MLP readers"]} == {"gate.weight", "experts.gate_up_proj"}


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_putting_back_writes_the_bases_weights_there_and_leaves_the_deployed_model_behind(name):
    model, other = tiny(name), tiny(name, seed=1)
    base, deployed = weights(model), weights(other)
    names = list(base)
    some = frozenset(names[::3])
    with putting_back(model, some, base, deployed):
        assert all(value.equal((base if key in some else deployed)[key]) for key, value in weights(model).items())
        assert not base[names[0]].equal(deployed[names[0]])
    assert all(value.equal(deployed[key]) for key, value in weights(model).items())


def test_a_change_of_one_entry_is_a_change():
    base = weights(tiny("llama"))
    deployed = {name: value.clone() for name, value in base.items()}
    assert changed(base, deployed) == []
    with torch.no_grad():
        deployed["model.norm.weight"][3] += 1e-6
    assert changed(base, deployed) == ["model.norm.weight"]
