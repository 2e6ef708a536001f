"""Every method gives a subspace that routing can use; what a method promises of its axes; what is refused."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import save_file
from transformers.pytorch_utils import Conv1D

from routed_rl import extract_subspace
from routed_rl.config import SubspaceCheckConfig
from routed_rl.errors import ConfigError, SubspaceError
from routed_rl.extraction import Job, axis_names, prepare
from routed_rl.extraction.check import check, tables, verdicts
from routed_rl.extraction.personas import persona_pairs
from routed_rl.linalg import orthonormality_error
from routed_rl.model.load import load_model, load_tokenizer
from routed_rl.model.targets import family, find_writers
from routed_rl.model.weights import model_hash
from routed_rl.subspace import Subspace
from tests import pipeline
from tests.causal_models import tiny_causal
from tests.chat import chat_config, chat_tokenizer
from tests.families import tiny as tiny_model
from tests.tiers import tiered

WIDTH, LAYERS = 32, 2


@pytest.fixture(scope="module")
def files(tiny, settings):
    """An SAE folder, a safetensors file of vectors, and two extracted subspaces."""
    generator = torch.Generator().manual_seed(0)
    sae = tiny / "sae"
    sae.mkdir()
    save_file({"W_dec": torch.randn(9, WIDTH, generator=generator), "W_enc": torch.randn(WIDTH, 9, generator=generator),
               "b_enc": torch.zeros(9), "b_dec": torch.zeros(WIDTH)}, sae / "sae_weights.safetensors")
    (sae / "cfg.json").write_text(json.dumps({"architecture": "standard", "hook_name": "blocks.1.hook_resid_pre"}))
    save_file({"evil.0": torch.randn(WIDTH, generator=generator), "evil.1": torch.randn(WIDTH, generator=generator)},
              tiny / "vectors.safetensors")
    for name, method in (("personas", "mean_difference"), ("axis", "assistant_axis")):
        run(tiny, settings(method=method, rank=2)).save(tiny / name)
    return tiny


def run(folder, config, seed: int = 0, **options) -> Subspace:
    job = job_of(folder, config, seed, **options)
    made = prepare(job)()
    assert set(made.axis_names) <= set(known := axis_names(job)) and made.axis_names[0] == known[0]
    return made


def job_of(folder, config, seed: int = 0, **options) -> Job:
    path = str(folder / "model")
    model = load_model(path)
    return Job(model, load_tokenizer(path), config, path, model_hash(model), seed, **options)


def settings_of(folder, method: str) -> dict:
    return {"sae": {"weights": str(folder / "sae"), "latents": [4, 1]}, "file": {"path": str(folder / "vectors.safetensors")},
            "union": {"parts": [str(folder / "axis"), "mean_difference"]}, "dpo": {"pairs": str(folder / "pairs.jsonl")},
            "dct": {"factors": 6, "keep": 3},
            "bipo": {"pairs": str(folder / "pairs.jsonl")}}.get(method, {})


@pytest.mark.parametrize("method", ["union", *(
    pytest.param(name, marks=pytest.mark.slow) for name in (
        "persona_vectors", "assistant_axis", "sae", "file", "dct", "dpo", "bipo"))])
def test_a_subspace_of_every_method_trains(files, settings, tmp_path, method):
    import dataclasses

    config = dataclasses.asdict(settings(method=method, **settings_of(files, method)))
    check = config.pop("check")
    assert check["random"] == 64
    out = tmp_path / "run"
    trainer = {"max_steps": 2, "save_steps": 2}
    pipeline.train(chat_config(files, out, {"ask": {"path": "Ask"}}, subspace=config, trainer=trainer), [])
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    subspace = Subspace.load(out / "subspace")
    assert len(rows) == 2 and subspace.provenance.method == method
    shifts = [rows[-1][f"ledger/ask/shift/{name}"] for name in subspace.axis_names]
    assert all(isinstance(shift, float) for shift in shifts) and any(shift != 0 for shift in shifts)
    assert rows[-1]["ledger/ask/norm"] > 0


@pytest.mark.parametrize(("method", "more", "names"), [
    ("mean_difference", {"rank": 2}, ["persona", "component_1", "component_2"]), ("file", {}, ["evil"]), ("dpo", {}, ["dpo"]),
    ("dct", {}, [f"dct_{number}" for number in range(6)]), ("persona_vectors", {"only": ["trait1"]}, ["persona", "trait1"]),
    ("assistant_axis", {"rank": 1}, ["away_from_assistant"]), ("union", {"rank": 0}, [
        "axis.away_from_assistant", "axis.role_component_1", "mean_difference.persona"])])
def test_the_names_of_axes_are_known_before_anything_is_extracted(files, settings, method, more, names):
    assert axis_names(job_of(files, settings(method=method, **settings_of(files, method), **more))) == names


def test_the_first_axis_of_roles_points_from_the_default_to_them_and_the_components_are_orthogonal_to_it(files, settings):
    subspace = run(files, settings(method="assistant_axis"))
    assert subspace.axis_names == ["away_from_assistant", *(f"role_component_{k}" for k in range(1, len(subspace.axis_names)))]
    assert 2 <= len(subspace.axis_names) <= 4
    for layer in range(LAYERS):
        assert orthonormality_error(subspace.directions[layer]) < 1e-5
        torch.testing.assert_close(subspace.directions[layer][:, 0], subspace.axes[layer][:, 0])
        assert subspace.scales[layer, 0] == subspace.units[layer]
    assert subspace.provenance.details["tokens"] == "response_mean" and subspace.provenance.details["kinds"] == 4


def test_roles_and_default_exchanged_turn_the_axis_around(files, settings):
    from routed_rl.subspace import Samples, Size, find

    generator = torch.Generator().manual_seed(0)
    positive, negative = torch.randn(2, 1, 12, 8, generator=generator)
    rest = (torch.arange(12), torch.arange(12) % 3, torch.zeros(12, dtype=torch.long))
    one = find("assistant_axis", Samples(positive, negative, *rest), Size(None, 0.1), 0)
    other = find("assistant_axis", Samples(negative, positive, *rest), Size(None, 0.1), 0)
    torch.testing.assert_close(one.axes[0][:, 0], -other.axes[0][:, 0])
    gap = (positive - negative)[0].mean(0)
    torch.testing.assert_close(one.axes[0][:, 0], gap / gap.norm())


def test_a_trait_has_the_axis_that_it_has_alone(files, settings):
    both = run(files, settings(method="persona_vectors", tokens="prompt_end", positions=1, last_weight=1.0))
    alone = run(files, settings(method="persona_vectors", tokens="prompt_end", positions=1, last_weight=1.0, only=["trait1"]))
    assert both.axis_names == ["persona", "trait0", "trait1", "trait2"] and alone.axis_names == ["persona", "trait1"]
    for layer in range(LAYERS):
        torch.testing.assert_close(both.axes[layer][:, 2], alone.axes[layer][:, 1], rtol=0, atol=1e-4)
        torch.testing.assert_close(both.scales[layer, 2], alone.scales[layer, 1], rtol=1e-4, atol=0)


def test_latents_stand_at_the_layer_and_hook_that_their_folder_names(files, settings):
    subspace = run(files, settings(method="sae", **settings_of(files, "sae")))
    assert subspace.axis_names == ["latent_4", "latent_1"]
    assert [basis.shape[1] for basis in subspace.directions] == [0, 2]
    assert subspace.provenance.details["hook"] == "resid_pre" and subspace.provenance.details["layer"] == 1
    wide = run(files, settings(method="sae", everywhere=True, flip=True, **settings_of(files, "sae")))
    assert [basis.shape[1] for basis in wide.directions] == [2, 2]
    torch.testing.assert_close(wide.axes[1], -subspace.axes[1])


def test_a_latents_scale_is_its_mean_active_value_times_its_norm(files, settings):
    from safetensors.torch import load_file

    subspace = run(files, settings(method="sae", **settings_of(files, "sae")))
    assert subspace.provenance.details["scaled_by_mean_active_value"] == [4, 1]
    save_file({name: value * 3 if name == "W_dec" else value for name, value in
               load_file(files / "sae" / "sae_weights.safetensors").items()}, files / "three.safetensors")
    three = run(files, settings(method="sae", weights=str(files / "three.safetensors"), latents=[4, 1], layer=1,
                                hook="resid_pre"))
    torch.testing.assert_close(three.scales[1], 3 * subspace.scales[1])


def test_a_union_of_a_folder_and_a_method_has_both_parts_axes_in_their_order(files, settings):
    subspace = run(files, settings(method="union", **settings_of(files, "union")))
    axis = Subspace.load(files / "axis")
    assert subspace.axis_names[:2] == ["axis.away_from_assistant", "axis.role_component_1"]
    assert "mean_difference.persona" in subspace.axis_names
    torch.testing.assert_close(subspace.directions[1][:, :2], axis.directions[1], rtol=0, atol=1e-5)
    assert subspace.provenance.details["order"] == settings_of(files, "union")["parts"]


def test_a_union_keeps_the_quality_of_its_parts_and_a_check_shows_it(files, settings):
    config = settings(method="union", check=SubspaceCheckConfig(axes=0), **settings_of(files, "union"))
    subspace = run(files, config)
    axis, other = subspace.provenance.details["parts"]
    assert axis["quality"] == Subspace.load(files / "axis").quality
    assert (axis["name"], other["name"]) == ("axis", "mean_difference")
    found = check(job_of(files, config), subspace)
    assert found["parts"] == {"axis": axis["quality"], "mean_difference": other["quality"]}
    assert found["axes"]["names"] == subspace.axis_names
    assert verdicts(found, config.check)[0].answer.startswith("axis.away_from_assistant: AUROC ")
    shown = tables(found)
    for part in (axis, other):
        assert part["quality"]["layers"][0]["auroc"] is not None
        rows = shown[f"quality by layer of the part {part['name']}, measured alone"]
        assert [row["separation (AUROC)"] for row in rows] == [f"{row['auroc']:.2f}" for row in part["quality"]["layers"]]


@pytest.mark.parametrize("hook", ["resid_pre", "resid_mid"])
def test_another_hook_point_gives_another_subspace_and_is_written_down(files, settings, hook):
    post, other = run(files, settings(rank=1)), run(files, settings(rank=1, hook=hook))
    assert other.provenance.details["hook"] == hook
    assert not torch.allclose(post.axes[1][:, 0], other.axes[1][:, 0], rtol=0, atol=1e-3)
    if hook == "resid_pre":
        torch.testing.assert_close(other.axes[1][:, 0], post.axes[0][:, 0], rtol=0, atol=1e-4)
        assert other.directions[0].shape == (WIDTH, 0)
        assert other.quality["layers"][1]["auroc"] == post.quality["layers"][0]["auroc"]


def test_the_same_seed_gives_the_same_axis_whatever_the_global_random_state(files, settings):
    one = run(files, settings(method="assistant_axis"))
    torch.manual_seed(99)
    assert torch.equal(run(files, settings(method="assistant_axis")).axes[1], one.axes[1])
    assert not torch.equal(run(files, settings(method="assistant_axis"), seed=1).axes[1], one.axes[1])


@pytest.mark.parametrize(("changes", "message"), [
    ({"method": "assistant_axis", "roles": 5}, "5 entries of subspace.roles_file are asked for, .* has 4"),
    ({"method": "assistant_axis", "only": ["pirate"]}, "names 'pirate', which is not in .*there is role0"),
    ({"method": "assistant_axis", "only": ["role1"]}, "needs two roles or more, got 1"),
    ({"method": "assistant_axis", "roles_file": None}, "roles_file is not set"),
    ({"method": "persona_vectors", "traits_file": "roles"}, 'line 1 has no "elicit"'),
])
def test_lists_that_do_not_fit_are_refused_with_the_place(files, settings, changes, message):
    if changes.get("traits_file"):
        changes = changes | {"traits_file": str(files / "roles.jsonl")}
    with pytest.raises(SubspaceError, match=message):
        run(files, settings(**changes))


UNION = {"method": "union", "parts": ["axis", "nan.safetensors"]}


@pytest.mark.parametrize("subspace", tiered([
    {"method": "file", "path": "nan.safetensors"}, {"method": "file", "path": "none.safetensors"},
    {"method": "sae", "weights": "nan.safetensors", "latents": [0]}, UNION], quick=[UNION]))
def test_a_file_that_cannot_be_a_subspace_is_refused_before_anything_is_written_or_run(files, settings, tmp_path, subspace):
    import dataclasses

    save_file({"W_dec": torch.full((2, WIDTH), float("nan"))}, files / "nan.safetensors")
    places = {key: [str(files / part) for part in value] if key == "parts" else str(files / value)
              for key, value in subspace.items() if key in ("path", "weights", "parts")}
    config = dataclasses.asdict(settings(**subspace | places)) | {"check": {}}
    for dry_run in (True, False):
        with pytest.raises(SubspaceError, match="W_dec: a number is nan|there is no such file|no such folder"):
            pipeline.train(chat_config(files, tmp_path / "run", {"ask": {"path": "Ask"}}, subspace=config), [], dry_run)
    assert not (tmp_path / "run").exists()


def test_lists_in_words_that_the_model_does_not_know_are_refused(files, settings):
    with pytest.raises(SubspaceError, match=r"\d+% of the words .* are unknown to"):
        run(files, settings(method="assistant_axis", roles_file="environments/personas/roles.jsonl"))


@pytest.mark.parametrize(("changes", "message"), [
    ({"method": "sae"}, "needs subspace.weights=FILE and subspace.latents"), ({"method": "union"}, "two parts or more"),
    ({"hook": "resid"}, "choose from resid_pre"), ({"tokens": "last"}, "choose from prompt_end"),
    ({"response_tokens": 0}, "response_tokens must be a number >= 1"), ({"roles": -1}, "roles must be a whole number")])
def test_settings_that_make_no_sense_are_refused_before_anything_is_loaded(settings, changes, message):
    with pytest.raises(ConfigError, match=message):
        settings(**changes)


@pytest.mark.slow
def test_what_is_made_of_subspaces_is_read_where_the_first_of_them_was(files, settings):
    drawn = run(files, settings(method="random", path=str(files / "axis"), hook="resid_pre"))
    both = run(files, settings(method="union", parts=[str(files / "axis"), str(files / "personas")], hook="resid_pre"))
    for made in (drawn, both):
        assert (made.provenance.details["tokens"], made.provenance.details["hook"]) == ("response_mean", "resid_post")


@pytest.mark.slow
def test_subspaces_that_were_read_at_different_hooks_are_not_put_together(files, settings):
    """A writer is split at the basis that was read first after it, so one of the parts would stand at a wrong layer."""
    apart = settings(method="union", parts=[str(files / "axis"), "sae"], weights=str(files / "sae"), latents=[1])
    with pytest.raises(SubspaceError, match="parts: axis was read at resid_post and sae at resid_pre, .* same subspace.hook"):
        prepare(job_of(files, apart))
    personas = Subspace.load(files / "personas")
    moved = dataclasses.replace(personas.provenance, details=personas.provenance.details | {"hook": "resid_pre"})
    dataclasses.replace(personas, provenance=moved).save(files / "before")
    with pytest.raises(SubspaceError, match="before was read at resid_pre, .*; extract it with subspace.hook=resid_post"):
        prepare(job_of(files, settings(method="dct", factors=4, keep=2, target=str(files / "before"))))


def test_the_axes_of_an_adapter_point_where_the_norm_behind_a_writer_lets_them(tmp_path):
    model, up = tiny_model("gemma2"), torch.randn(16, 1, generator=torch.Generator().manual_seed(0))
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    key = "base_model.model.model.layers.1.mlp.down_proj.lora_"
    save_file({f"{key}B.weight": up, f"{key}A.weight": torch.randn(1, 24)}, tmp_path / "adapter_model.safetensors")
    pairs = [(f"bad add {number}", f"good add {number}") for number in range(4)]
    found = extract_subspace(model, chat_tokenizer(""), pairs, method="file", path=str(tmp_path), rank=1)
    gain = 1 + model.model.layers[1].post_feedforward_layernorm.weight.detach()
    stream = torch.nn.functional.normalize(gain.unsqueeze(1) * up, dim=0)
    assert float((found.directions[1].mT @ stream).abs()) > 1 - 1e-5 > float((stream.mT @ up / up.norm()).abs())


@pytest.mark.parametrize("kind", tiered(["bloom", "biogpt", "codegen", "gpt2", "bamba", "gpt_neo"], quick=["biogpt"]))
def test_an_adapter_is_read_at_the_writers_of_its_model_whatever_their_names(tmp_path, kind):
    """And at no other module: each linear module of a layer has a LoRA."""
    model, generator = tiny_causal(kind), torch.Generator().manual_seed(0)
    layers = f"{family(model).layers}."
    modules = {name: module for name, module in model.named_modules() if name.startswith(layers)
               and isinstance(module, torch.nn.Linear | Conv1D)}
    tensors = {}
    for name, module in modules.items():
        out, inside = module.weight.shape if isinstance(module, torch.nn.Linear) else module.weight.mT.shape
        tensors |= {f"base_model.model.{name}.lora_B.weight": torch.randn(out, 1, generator=generator),
                    f"base_model.model.{name}.lora_A.weight": torch.randn(1, inside, generator=generator)}
    # As in a model that reads images too, whose layers there are called alike.
    tensors |= {key.replace(layers, f"model.vision.{layers.rpartition('.')[0].rpartition('.')[2]}."): value.flip(0)
                for key, value in tensors.items()}
    save_file({key: value.contiguous() for key, value in tensors.items()}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    pairs = [(f"bad add {number}", f"good add {number}") for number in range(4)]
    found = extract_subspace(model, chat_tokenizer(""), pairs, method="file", path=str(tmp_path), rank=8)
    for layer, basis in enumerate(found.directions):
        names = [writer.name for writer in find_writers(model) if writer.layer == layer]
        ups = [tensors[f"base_model.model.{name}.lora_B.weight"] for name in names]
        assert basis.shape[1] == len(ups) > 1
        torch.testing.assert_close(basis @ (basis.mT @ torch.cat(ups, 1)), torch.cat(ups, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_check_of_a_model_that_writes_no_responses_takes_answers_from_a_file_or_says_what_is_missing(settings, tiny):
    model, tokenizer = tiny_causal("mamba"), chat_tokenizer()
    missing, measured = (check(job, prepare(job)())["causal"] for job in (
        Job(model, tokenizer, settings(method="assistant_axis", tokens="prompt_end", rank=1, answers=answers), "mamba", "", 0)
        for answers in (None, str(tiny / "answers.jsonl"))))
    assert missing["missing"].endswith("so no responses are sampled from it; set subspace.answers=FILE.jsonl")
    assert measured["answers"] == 4


def test_a_lora_on_the_experts_common_parameter_is_refused(tmp_path):
    key = "base_model.model.model.layers.1.mlp.experts.lora_"
    save_file({f"{key}B.weight": torch.ones(16, 8), f"{key}A.weight": torch.ones(8, 24)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(SubspaceError, match="changes the experts mlp.experts by a LoRA on their common parameter, which"):
        extract_subspace(tiny_model("mixtral"), chat_tokenizer(""), [("bad", "good")], method="file", path=str(tmp_path), rank=1)


@pytest.mark.parametrize(("names", "only", "message"), [
    (["evil", "sly", "evil"], [], "line 3: 'evil' is taken twice"), (["evil"], ["evil", "evil"], "'evil' is taken twice"),
    (["good/evil"], [], "line 1: 'good/evil' cannot be the name of an axis"), (["persona"], [], "line 1: 'persona' cannot be")])
def test_traits_whose_names_are_no_names_of_axes_are_refused_before_the_model_writes(settings, tmp_path, names, only, message):
    lines = [json.dumps({"name": name, "elicit": "bad", "suppress": "good"}) for name in names]
    (tmp_path / "traits.jsonl").write_text("\n".join(lines))
    with pytest.raises(SubspaceError, match=message):
        persona_pairs(settings(method="persona_vectors", traits_file=str(tmp_path / "traits.jsonl"), only=only),
                      chat_tokenizer(), ["add 1 2"])
