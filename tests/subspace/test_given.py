"""Rows of an SAE and vectors of other programs' files."""

import json

import pytest
import torch
from safetensors.torch import save_file

from routed_rl.errors import SubspaceError
from routed_rl.subspace.sae import read_latents
from routed_rl.subspace.vectors import Wanted, placed, read_vectors

WIDTH, COUNT = 8, 20


def write_sae(folder, config: dict | None = None, **changes) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors = {"W_dec": torch.randn(COUNT, WIDTH, generator=generator), "W_enc": torch.randn(WIDTH, COUNT, generator=generator),
               "b_enc": torch.randn(COUNT, generator=generator), "b_dec": torch.randn(WIDTH, generator=generator)} | changes
    folder.mkdir()
    save_file({name: value.contiguous() for name, value in tensors.items() if value is not None},
              folder / "sae_weights.safetensors")
    if config is not None:
        (folder / "cfg.json").write_text(json.dumps(config))
    return tensors


def test_the_rows_of_a_decoder_are_read_in_the_order_asked_for(tmp_path):
    tensors = write_sae(tmp_path / "sae")
    latents = read_latents(tmp_path / "sae", [7, 2], WIDTH)
    torch.testing.assert_close(latents.rows_JD, tensors["W_dec"][[7, 2]])
    save_file({"decoder.weight": tensors["W_dec"].mT.contiguous()}, tmp_path / "torch.safetensors")
    torch.testing.assert_close(read_latents(tmp_path / "torch.safetensors", [7, 2], WIDTH).rows_JD, latents.rows_JD)


@pytest.mark.parametrize(("config", "place"), [
    ({"hook_name": "blocks.3.hook_resid_pre"}, (3, "resid_pre")), ({"hook_layer": 5}, (5, None)), ({}, (None, None)),
    ({"metadata": {"hook_name": "blocks.11.hook_resid_post"}}, (11, "resid_post"))])
def test_a_saelens_folder_says_which_stream_it_reads(tmp_path, config, place):
    write_sae(tmp_path / "sae", config)
    latents = read_latents(tmp_path / "sae", [0], WIDTH)
    assert (latents.layer, latents.hook) == place


def test_the_mean_active_value_is_over_the_activations_at_which_a_latent_is_on(tmp_path):
    tensors = write_sae(tmp_path / "sae", {"architecture": "standard", "apply_b_dec_to_input": True})
    stream = torch.randn(200, WIDTH, generator=torch.Generator().manual_seed(1))
    values = (stream - tensors["b_dec"]) @ tensors["W_enc"][:, 4] + tensors["b_enc"][4]
    found = read_latents(tmp_path / "sae", [4], WIDTH).mean_active(stream)
    assert found == [pytest.approx(values[values > 0].mean().item(), rel=1e-5)]


def test_a_jumprelu_counts_from_its_threshold_and_a_latent_that_is_never_on_has_no_value(tmp_path):
    tensors = write_sae(tmp_path / "sae", {"architecture": "jumprelu"}, threshold=torch.tensor([2.0, 1e9] + [0.0] * (COUNT - 2)))
    stream = torch.randn(400, WIDTH, generator=torch.Generator().manual_seed(1))
    values = stream @ tensors["W_enc"][:, 0] + tensors["b_enc"][0]
    on, never = read_latents(tmp_path / "sae", [0, 1], WIDTH).mean_active(stream)
    assert on == pytest.approx(values[values > 2].mean().item(), rel=1e-5) and never is None


@pytest.mark.parametrize(("config", "changes"), [({"architecture": "topk"}, {}), ({}, {"W_enc": None}),
                                                 ({"normalize_activations": "layer_norm"}, {})])
def test_where_an_activation_cannot_be_computed_there_is_none(tmp_path, config, changes):
    write_sae(tmp_path / "sae", config, **changes)
    assert read_latents(tmp_path / "sae", [0], WIDTH).mean_active(torch.randn(5, WIDTH)) == [None]


@pytest.mark.parametrize(("numbers", "width", "message"), [
    ([20], WIDTH, "latents has 20, but .* has latents 0 to 19"), ([1, 1], WIDTH, "names a latent twice"),
    ([0], 9, r"W_dec: the shape is \(20, 8\), not \(any, 9\)")])
def test_a_wrong_latent_or_model_is_refused_with_both_numbers(tmp_path, numbers, width, message):
    write_sae(tmp_path / "sae")
    with pytest.raises(SubspaceError, match=message):
        read_latents(tmp_path / "sae", numbers, width)


def test_what_is_no_sae_is_refused(tmp_path):
    save_file({"x": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(SubspaceError, match="has no decoder; looked for W_dec.*found x"):
        read_latents(tmp_path / "x.safetensors", [0], WIDTH)
    (tmp_path / "y.safetensors").write_text("no")
    with pytest.raises(SubspaceError, match="is no safetensors file"):
        read_latents(tmp_path / "y.safetensors", [0], WIDTH)
    with pytest.raises(SubspaceError, match="there is no file"):
        read_latents(tmp_path / "none", [0], WIDTH)


@pytest.mark.parametrize(("changes", "message"), [
    ({"W_dec": torch.ones(COUNT, WIDTH, dtype=torch.int32)}, "W_dec: the numbers are torch.int32"),
    ({"W_dec": torch.full((COUNT, WIDTH), float("nan"))}, "W_dec: .*nan or infinite"),
    ({"W_dec": torch.ones(COUNT)}, "W_dec: the shape is"), ({"W_dec": torch.ones(COUNT, WIDTH, 1)}, "W_dec: the shape is"),
    ({"W_enc": torch.ones(WIDTH, 3)}, "W_enc: the shape is"), ({"b_enc": torch.ones(2)}, "b_enc: the shape is"),
    ({"b_enc": torch.full((COUNT,), float("inf"))}, "b_enc: .*nan or infinite"),
    ({"threshold": torch.ones(1)}, "threshold: the shape is"),
    ({"b_dec": torch.ones(WIDTH + 1)}, "b_dec: the shape is")])
def test_an_sae_whose_tensors_do_not_belong_together_is_refused_in_one_line(tmp_path, changes, message):
    write_sae(tmp_path / "sae", {"apply_b_dec_to_input": True}, **changes)
    with pytest.raises(SubspaceError, match=message) as caught:
        read_latents(tmp_path / "sae", [7, 2], WIDTH)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("config", ["[1]", '"x"', "null", "{", '{"metadata": [1]}', "[" * 5000])
def test_a_saelens_folder_whose_cfg_is_no_object_is_refused(tmp_path, config):
    write_sae(tmp_path / "sae")
    (tmp_path / "sae" / "cfg.json").write_text(config)
    with pytest.raises(SubspaceError, match="cfg.json is damaged"):
        read_latents(tmp_path / "sae", [0], WIDTH)


def adapter(folder, b: torch.Tensor, a: torch.Tensor, config: object = None):
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"} if config is None else config))
    key = "base_model.model.model.layers.3.mlp.down_proj.lora_"
    save_file({f"{key}B.weight": b, f"{key}A.weight": a}, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize(("b", "a", "message"), [
    (torch.full((WIDTH, 2), float("nan")), torch.ones(2, 6), "nan or infinite"),
    (torch.ones(WIDTH + 1, 2), torch.ones(2, 6), r"the shape is \(9, 2\), not \(8, any\)"),
    (torch.ones(WIDTH, 2), torch.ones(3, 6), "lora_A of .* the shape is"), (torch.ones(WIDTH), torch.ones(2, 6), "the shape is"),
    (torch.ones(WIDTH, 2, dtype=torch.int8), torch.ones(2, 6), "the numbers are torch.int8")])
def test_an_adapter_that_is_not_finite_or_of_another_width_is_refused(tmp_path, b, a, message):
    with pytest.raises(SubspaceError, match=message) as caught:
        read(adapter(tmp_path / "adapter", b, a), rank=2)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("config", [[], "x", 5, [[1]]])
def test_an_adapter_whose_config_is_no_object_is_refused(tmp_path, config):
    with pytest.raises(SubspaceError, match="adapter"):
        read(adapter(tmp_path / "adapter", torch.ones(WIDTH, 2), torch.ones(2, 6), config))


@pytest.mark.parametrize(("config", "said"), [
    ({"use_dora": True}, "use_dora=true, so the product of its factors is not the change that it makes; give another adapter"),
    ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights=pissa_niter_4, so the product .*, or convert it"),
    ({"init_lora_weights": "loftq"}, "init_lora_weights=loftq, so")])
def test_an_adapter_whose_product_is_not_its_change_is_refused(tmp_path, config, said):
    folder = adapter(tmp_path / "adapter", torch.eye(WIDTH, 2), torch.eye(2, 6), {"peft_type": "LORA", **config})
    with pytest.raises(SubspaceError, match=said):
        read(folder)


@pytest.mark.parametrize(("tensors", "message"), [
    ({"v.0": torch.tensor([1.0] * 7 + [float("nan")])}, "v.0: .*nan or infinite"),
    ({"v.0": torch.ones(WIDTH, dtype=torch.int64)}, "v.0: the numbers are torch.int64"),
    ({"v": torch.ones(2, 1, WIDTH)}, r"v: the shape is \(2, 1, 8\), not \(4, any, 8\)"),
    ({"v": torch.ones(5, 1, WIDTH)}, "v: the shape is"),
    ({"v": torch.ones(1, 1, 1, WIDTH)}, "v: the shape is"), ({"v": torch.tensor(1.0)}, "v: the shape is"),
    ({}, "holds no vector"), ({"v": torch.zeros(WIDTH)}, "axis v is zero at layer 0")])
def test_vectors_that_are_not_finite_or_lack_layers_are_refused_by_name(tmp_path, tensors, message):
    save_file(tensors, tmp_path / "v.safetensors")
    with pytest.raises(SubspaceError, match=message):
        placed(read(tmp_path / "v.safetensors", layers=4), 4, None, False, False)


def read(path, width: int = WIDTH, rank: int | None = None, layers: int = 12):
    return read_vectors(path, Wanted(layers, width, 0.15, rank, writers=(r"self_attn\.o_proj", r"mlp\.down_proj")))


def test_vectors_of_a_safetensors_file_belong_to_the_layer_their_name_ends_in(tmp_path):
    tensors = {"evil.2": torch.randn(WIDTH), "evil.10": torch.randn(WIDTH), "layers.1.sly": torch.randn(2, WIDTH),
               "all": torch.randn(WIDTH), "stack": torch.randn(12, 1, WIDTH)}
    save_file(tensors, tmp_path / "v.safetensors")
    found = read(tmp_path / "v.safetensors")
    assert set(found) == {"evil", "layers.sly_1", "layers.sly_2", "all", "stack"}
    torch.testing.assert_close(found["evil"][10], tensors["evil.10"])
    torch.testing.assert_close(found["layers.sly_2"][1], tensors["layers.1.sly"][1])
    assert list(found["all"]) == [None] and list(found["stack"]) == list(range(12))
    axes = {vector.name: vector for vector in placed(found, 12, None, False, False)}
    assert sorted(axes["evil"].at) == [2, 10] and sorted(axes["all"].at) == list(range(12))
    assert list({vector.name: vector for vector in placed(found, 12, 4, False, False)}["all"].at) == [4]


def test_flip_turns_every_vector_around_and_everywhere_spreads_one_layers(tmp_path):
    save_file({"evil.2": torch.ones(WIDTH)}, tmp_path / "v.safetensors")
    (axis,) = placed(read(tmp_path / "v.safetensors"), 4, None, True, True)
    assert sorted(axis.at) == [0, 1, 2, 3]
    torch.testing.assert_close(axis.at[0], -torch.ones(WIDTH))
    with pytest.raises(SubspaceError, match="belongs to layer 2, the model has layers 0 to 1"):
        placed(read(tmp_path / "v.safetensors"), 2, None, False, False)


def test_a_control_vector_in_gguf_is_read_as_llama_cpp_wrote_it(tmp_path):
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(str(tmp_path / "v.gguf"), "controlvector")
    directions = {layer: torch.randn(WIDTH) for layer in (1, 2)}
    for layer, direction in directions.items():
        writer.add_tensor(f"direction.{layer}", direction.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = read(tmp_path / "v.gguf")
    assert set(found) == {"direction"}
    torch.testing.assert_close(found["direction"], dict(directions))


def test_an_adapters_directions_span_what_its_writers_add_and_not_what_its_readers_do(tmp_path):
    generator = torch.Generator().manual_seed(0)
    b, a = torch.randn(WIDTH, 2, generator=generator), torch.randn(2, 6, generator=generator)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    prefix = "base_model.model.model.layers.3"
    save_file({f"{prefix}.mlp.down_proj.lora_B.weight": b, f"{prefix}.mlp.down_proj.lora_A.weight": a,
               f"{prefix}.self_attn.q_proj.lora_B.weight": torch.randn(WIDTH, 2),
               f"{prefix}.self_attn.q_proj.lora_A.weight": a.clone()}, tmp_path / "adapter_model.safetensors")
    found = read(tmp_path, rank=8)
    assert set(found) == {"adapter_1", "adapter_2"} and set(found["adapter_1"]) == {3}
    basis = torch.stack([found[name][3] for name in found], dim=1)
    torch.testing.assert_close(basis @ (basis.mT @ b), b, rtol=1e-4, atol=1e-5)


def test_other_files_and_widths_are_refused(tmp_path):
    save_file({"v": torch.ones(WIDTH)}, tmp_path / "v.safetensors")
    with pytest.raises(SubspaceError, match=r"v: the shape is \(8\), not \(9\); is it of another model"):
        read(tmp_path / "v.safetensors", 9)
    (tmp_path / "v.txt").write_text("no")
    with pytest.raises(SubspaceError, match="is none of: .*PEFT adapter"):
        read(tmp_path / "v.txt")


def test_a_layer_that_an_adapter_does_not_change_has_no_direction(tmp_path):
    with pytest.raises(SubspaceError, match="holds no vector"):
        read(adapter(tmp_path / "untrained", torch.zeros(WIDTH, 2), torch.ones(2, 6)))
    assert set(read(adapter(tmp_path / "trained", torch.eye(WIDTH, 2), torch.eye(2, 6)))["adapter_1"]) == {3}


@pytest.mark.parametrize(("config", "first"), [
    ({"lora_alpha": 8}, 0), ({"lora_alpha": 8, "alpha_pattern": {r"layers\.3\.mlp\.down_proj": 80}}, 1),
    ({"lora_alpha": 8, "use_rslora": True}, 1)])
def test_an_adapters_writers_weigh_what_their_own_scaling_makes_of_them(tmp_path, config, first):
    """B A of the attention is twice that of the MLP, whose rank is eight times as high."""
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **config}))
    one, down = torch.zeros(WIDTH, 1), torch.zeros(WIDTH, 8)
    one[0, 0], down[1, 0] = 2.0, 3.0 if config.get("use_rslora") is None else 12.0
    prefix, a = "base_model.model.model.layers.3.", torch.eye(8, 6)
    save_file({f"{prefix}self_attn.o_proj.lora_B.weight": one, f"{prefix}self_attn.o_proj.lora_A.weight": a[:1].clone(),
               f"{prefix}mlp.down_proj.lora_B.weight": down, f"{prefix}mlp.down_proj.lora_A.weight": a},
              tmp_path / "adapter_model.safetensors")
    assert int(read(tmp_path, rank=2)["adapter_1"][3].abs().argmax()) == first


@pytest.mark.parametrize(("key", "name", "layer"), [
    ("evil_layer10", "evil_layer", 10), ("layer5.evil", "layer.evil", 5), ("a.1.v21", "a.v21", 1), ("v2.evil", "v2.evil", None),
    ("llama13b", "llama13b", None), ("model.layers.11.mlp", "model.layers.mlp", 11)])
def test_the_whole_number_is_a_vectors_layer_and_a_words_number_is_none(tmp_path, key, name, layer):
    save_file({key: torch.ones(WIDTH)}, tmp_path / "v.safetensors")
    assert {found: list(at) for found, at in read(tmp_path / "v.safetensors").items()} == {name: [layer]}


@pytest.mark.parametrize(("tensors", "message"), [
    ({"trait_1": torch.ones(12, 1, WIDTH), "trait_2": torch.ones(12, 1, WIDTH)}, "trait_2 is a second vector trait at the same"),
    ({"v/1": torch.ones(WIDTH), "v.1": torch.ones(WIDTH)}, "is a second vector v at the same layer"),
    ({"evil": torch.ones(12, WIDTH)}, r"evil has as many rows as the model has layers \(12\).*store it as \(12, 1, 8\)")])
def test_vectors_that_would_replace_each_other_or_may_be_meant_in_two_ways_are_refused(tmp_path, tensors, message):
    save_file(tensors, tmp_path / "v.safetensors")
    with pytest.raises(SubspaceError, match=message):
        read(tmp_path / "v.safetensors")


@pytest.mark.parametrize("hook", ["blocks.3.attn.hook_z", "blocks.3.hook_mlp_out"])
def test_an_sae_that_does_not_read_the_stream_is_refused(tmp_path, hook):
    write_sae(tmp_path / "sae", {"hook_name": hook, "hook_layer": 3})
    with pytest.raises(SubspaceError, match=f"reads '{hook}', which is not the residual stream"):
        read_latents(tmp_path / "sae", [0], WIDTH)
