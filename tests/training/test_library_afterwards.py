"""What a script does to a library trainer, or to its model, after the trainer was made, and models that come in unusual ways."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from datasets import ClassLabel
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from routed_rl import RoutedRLError, RoutingConfig, SubspaceConfig, extract_subspace
from tests.families import tiny
from tests.library import PLAIN, arguments, load, rows, short, subspace_of, trainer

READERS = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
WRITERS = LoraConfig(r=4, target_modules="all-linear")
IDS = torch.tensor([[6, 8, 9, 5], [6, 10, 11, 5]])


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(IDS).logits.float()


@torch.no_grad()
def fill(trainer: Any) -> None:
    """A quarantine, and in a LoRA factors B, as if they had learned."""
    for target in trainer.quarantine.targets:
        target.coefficients.fill_(0.05)
    for name, parameter in trainer.model.named_parameters():
        if ".lora_B." in name:
            parameter.fill_(0.02)


@pytest.mark.slow
def test_an_optimizer_that_a_script_sets_on_the_trainer_makes_the_steps(parts, subspace, tmp_path):
    made = trainer(parts, tmp_path / "run", subspace=subspace, args=arguments(tmp_path / "run", max_steps=1))
    made.optimizer = own = torch.optim.SGD(made.model.parameters(), lr=0.1)
    made.train()
    assert made.optimizer.optimizer is own
    made.args.max_steps = 2
    made.train(resume_from_checkpoint=True)
    assert made.optimizer.optimizer is own


def labelled() -> Any:
    return rows(environment=[0, 1] * 8).cast_column("environment", ClassLabel(names=["a", "b"]))


@pytest.mark.slow
@pytest.mark.parametrize(("change", "message"), [
    (lambda made: setattr(made.args, "output_dir", "elsewhere"), r"output_dir=.*elsewhere was set after .*; make a new trainer"),
    (lambda made: setattr(made, "train_dataset", rows(environment=["a", "c"] * 8)), "has the environment c, .* made for a, b; m"),
    (lambda made: setattr(made, "train_dataset", rows().remove_columns("environment")), "train_dataset has no column env"),
    (lambda made: made.model.to(torch.bfloat16), r"trainer.model was cast .* is in bfloat16, .* float32; call .*float\(\)"),
    (lambda made: setattr(made, "train_dataset", labelled()),
     "trainer.train_dataset has the class labels a, b, and the trainer was made with none; make a new trainer"),
    (lambda made: made.model.compile(backend="eager"), "trainer.model is compiled, and a compiled model does not call the ho")])
def test_what_was_changed_since_and_cannot_be_trained_is_refused_before_a_step(parts, subspace, tmp_path, change, message):
    made = trainer(parts, tmp_path / "run", subspace=subspace)
    change(made)
    with pytest.raises(RoutedRLError, match=message):
        made.train()
    assert not list((tmp_path / "run").iterdir()) and made.state.global_step == 0


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["route", "observe"])
def test_a_routed_lora_runs_is_saved_and_is_discarded_in_another_dtype_too(parts, subspace, tmp_path, mode):
    made = trainer(parts, tmp_path / "run", subspace=subspace, peft_config=WRITERS, routing=RoutingConfig(mode=mode))
    fill(made)
    policy = logits(made.model)
    with made.quarantine.ablated():
        deployed = logits(made.model)
    made.model.to(torch.bfloat16)
    rounding = 0.01  # bf16 has 8 bits
    assert (logits(made.model) - policy).abs().max() < rounding < (policy - deployed).abs().max()
    made.save_model(str(tmp_path / "saved"))
    made.quarantine.remove()
    assert (logits(made.model) - deployed).abs().max() < rounding


@pytest.mark.slow
def test_routed_modules_run_on_the_device_to_which_the_model_was_moved(parts, subspace, tmp_path, monkeypatch):
    made = trainer(parts, tmp_path / "run", subspace=subspace, peft_config=WRITERS)
    made.model.to("meta")  # stands for another device, on which nothing is computed
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which does not know this device
    for target in made.quarantine.targets:
        assert target.module(torch.zeros(1, 2, target.weight.width, device="meta")).device.type == "meta"


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, WRITERS], ids=["weights", "lora"])
def test_a_deep_copy_of_the_trainers_model_is_a_policy_of_its_own(parts, subspace, tmp_path, lora):
    """TRL has put a forward of its own on the original, and with a KL term routed_rl a `disable_adapter`."""
    base = logits(load(parts)[0])
    made = trainer(parts, tmp_path, subspace=subspace, peft_config=lora, args=arguments(tmp_path / "run", beta=0.1))
    fill(made)
    policy, first = logits(made.model), copy.deepcopy(made.model)
    with made.quarantine.ablated():
        assert not logits(made.model).equal(policy) and logits(copy.deepcopy(first)).equal(policy)
    for twin in (first, copy.deepcopy(first)):
        if lora is not None:
            with twin.disable_adapter():
                assert logits(twin).equal(base) and logits(made.model).equal(policy)
            with made.model.disable_adapter():
                assert logits(twin).equal(policy)
    for change, left in ((made.model, first), (first, None)):
        with torch.no_grad():
            for parameter in change.parameters():
                parameter.mul_(1.5)
        assert not logits(change).equal(policy) and (left is None or logits(left).equal(policy))
    made.quarantine.remove()
    assert logits(twin).equal(policy)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_without_its_adapter_a_model_is_the_base_model_also_where_writers_have_no_lora(parts, tmp_path, family):
    model, tokenizer = tiny(family), load(parts)[1]
    base = logits(model)
    found = extract_subspace(model, tokenizer, parts / "prompts.jsonl", rank=2)
    made = trainer(parts, tmp_path / "run", model=model, subspace=found, peft_config=READERS, functions=short,
                   args=arguments(tmp_path / "run", router_aux_loss_coef=0.0))
    fill(made)
    with made.model.disable_adapter():
        assert logits(made.model).equal(base)
    assert not logits(made.model).equal(base)


@pytest.mark.slow
def test_what_routing_has_frozen_can_be_trained_again_after_the_quarantine_is_removed(parts, subspace, tmp_path):
    model = load(parts)[0]
    model.model.layers[0].mlp.gate_proj.weight.requires_grad_(False)
    before = [parameter.requires_grad for parameter in model.parameters()]
    made = trainer(parts, tmp_path / "run", model=model, subspace=subspace)
    assert [parameter.requires_grad for parameter in model.parameters()] != before
    made.quarantine.remove()
    assert [parameter.requires_grad for parameter in model.parameters()] == before


@pytest.mark.slow
def test_a_model_with_hooks_of_accelerate_is_refused_when_the_trainer_is_made(parts, subspace, tmp_path):
    places = ["model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "model.rotary_emb", "lm_head"]
    model = dispatch_model(load(parts)[0], dict.fromkeys(places, "cpu"), main_device="cpu", force_hooks=True)
    with pytest.raises(RoutedRLError, match="has a hook on model.layers.0.self_attn.o_proj, as device_map .*; load it without"):
        trainer(parts, tmp_path / "run", model=model, subspace=subspace)
    assert not any(hasattr(module, "routed_target") for module in model.modules())


@pytest.mark.slow
def test_a_run_that_goes_on_leaves_the_subspace_of_the_script_as_it_is(parts, tmp_path):
    def made(found: Any, steps: int) -> Any:
        return trainer(parts, tmp_path / "run", subspace=found, bases=SubspaceConfig(layout="per_layer"),
                       args=arguments(tmp_path / "run", max_steps=steps))

    made(subspace_of(parts), 1).train()
    turned = subspace_of(parts)
    for basis in turned.directions:
        basis.neg_()  # spans the same
    before = [basis.clone() for basis in turned.directions]
    made(turned, 2).train(resume_from_checkpoint=True)
    assert all(basis.equal(was) for basis, was in zip(turned.directions, before, strict=True))


@pytest.mark.slow
def test_noise_on_the_embeddings_switches_lean_off(parts, tmp_path):
    """NEFTune's noise is smaller in a longer row, and padding counts."""
    made = [trainer(parts, tmp_path / name, routing=PLAIN, subspace=None, args=arguments(tmp_path / name, **changes))
            for name, changes in {"noisy": {"neftune_noise_alpha": 5.0}, "silent": {}}.items()]
    assert [each.lean for each in made] == [False, True]


@pytest.mark.slow
@pytest.mark.parametrize("count", [3, 16])
def test_a_reward_function_may_read_the_policy_while_rows_practise(parts, subspace, tmp_path, count):
    model, said = load(parts)[0], list[torch.Tensor]()
    rows_read = IDS[:1].repeat(count, 1)

    def judge(completions: list[Any], **_: Any) -> list[float]:
        grown = model(rows_read).logits  # with gradients, as a careless function does
        grown.sum().backward()
        said.append(grown.detach())
        return [float(len(each)) for each in completions]

    made = trainer(parts, tmp_path / "run", model=model, subspace=subspace, functions=judge)
    made.train()
    assert any(made.reward.practising) and all(read.equal(read[:1].expand_as(read)) for read in said)
    assert not said[0].equal(said[-1])


@pytest.mark.slow
def test_models_and_defaults_with_which_nothing_can_be_trained_are_refused(parts, subspace, tmp_path):
    (whole, tokenizer), made = load(parts), trainer(parts, tmp_path / "made", subspace=subspace)
    headless = load(parts)[0].model
    with pytest.raises(RoutedRLError, match="model is a LlamaModel, which cannot generate text; give a causal language model"):
        trainer(parts, tmp_path / "run", model=headless, subspace=subspace)
    with pytest.raises(RoutedRLError, match="model is a LlamaModel, which has no output layer; give a causal language model"):
        extract_subspace(headless, load(parts)[1], parts / "prompts.jsonl")
    for refused in (lambda: extract_subspace(whole, tokenizer, parts / "prompts.jsonl"), made.train,
                    lambda: trainer(parts, tmp_path / "run", model=whole, subspace=subspace)):
        torch.set_default_dtype(torch.bfloat16)
        try:
            with pytest.raises(RoutedRLError, match=r"default dtype is bfloat16, .*; call torch.set_default_dtype\(torch.fl"):
                refused()
        finally:
            torch.set_default_dtype(torch.float32)


@pytest.mark.slow
def test_a_model_given_by_its_path_is_not_divided_among_the_gpus_that_the_process_sees(parts, subspace, tmp_path, monkeypatch):
    asked = list[dict[str, Any]]()

    def load_model(path: str, **given: Any) -> Any:
        asked.append(given)
        return AutoModelForCausalLM.from_pretrained(path)

    monkeypatch.setattr("routed_rl.training.library.model.create_model_from_path", load_model)
    for count, settings in ((1, None), (2, None), (2, {"device_map": "auto"})):
        args = arguments(tmp_path / "run", model_init_kwargs=settings)
        args._n_gpu = count  # as transformers sets it on such a machine
        trainer(parts, tmp_path / "run", model=str(parts / "model"), subspace=subspace, args=args)
    assert [given.get("device_map", "of TRL") for given in asked] == ["of TRL", None, "auto"]
