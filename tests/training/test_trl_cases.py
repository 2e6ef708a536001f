"""What TRL's own tests of GRPO and RLOO do with their trainers, through ours: in mode `none` to TRL's bits, and routed.

Not here, since the library refuses it in one line (test_library_refusals.py, training/library/checks.py): vLLM, Liger's kernels,
continuous batching, `sync_ref_model`, fp16, DeepSpeed and FSDP, adapters on the unembedding, on experts, or of other kinds,
quantised models, and rewards that are None everywhere, which TRL warns of. Not here for other reasons: models that see (they are
no causal language models), code that comes with a model (it needs the hub), `tools`, `environment_factory` and `rollout_func`
(TRL's own machinery, refused with practice), checkpoints (test_library.py goes on from them, since ours are sealed).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForSequenceClassification
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from routed_rl import RoutedGRPOTrainer, RoutedRLOOTrainer, extract_subspace
from tests.families import tiny
from tests.library import PLAIN, ROUTE, arguments, load, right, rows, short, texts
from tests.parts import WORDS

TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}{% if add_generation_prompt %}{{ sign or '=' }} {% endif %}"


def even(completions: list[Any], **_: Any) -> list[float | None]:
    """Of some rows."""
    return [None if place % 2 else float(len(said)) for place, said in enumerate(texts(completions))]


def nothing(completions: list[Any], **_: Any) -> list[None]:
    return [None] * len(completions)


async def slowly(completions: list[Any], **_: Any) -> list[float]:
    return [float(len(set(said))) for said in texts(completions)]


def telling(completions: list[Any], trainer_state: Any, log_extra: Any, log_metric: Any, **_: Any) -> list[float]:
    """With all that TRL hands to a function."""
    log_extra("said", list(texts(completions)))
    log_metric("steps", trainer_state.global_step)
    return [float(len(said)) for said in texts(completions)]


def numbered(completions: list[Any], wanted: list[int], **_: Any) -> list[float]:
    return [-abs(len(said) - length) for said, length in zip(texts(completions), wanted, strict=True)]


def judge() -> Any:
    """A reward model."""
    torch.manual_seed(1)
    return LlamaForSequenceClassification(LlamaConfig(vocab_size=len(WORDS), hidden_size=16, intermediate_size=16, num_labels=1,
                                                      num_hidden_layers=1, num_attention_heads=2, pad_token_id=0))


def chat() -> Dataset:
    return rows().map(lambda row: {"prompt": [{"role": "user", "content": row["prompt"]}]})


def with_template(given: dict[str, Any]) -> dict[str, Any]:
    given["processing_class"].chat_template = TEMPLATE
    return given


def own_optimizer(given: dict[str, Any]) -> dict[str, Any]:
    return given | {"optimizers": (torch.optim.SGD(given["model"].parameters(), lr=0.1), None)}


def wrapped(given: dict[str, Any]) -> dict[str, Any]:
    torch.manual_seed(3)
    return given | {"model": get_peft_model(given["model"], LoraConfig())}


def without_end(given: dict[str, Any]) -> dict[str, Any]:
    given["model"].generation_config.eos_token_id = given["processing_class"].pad_token = None
    return given


def args(**changes: Any) -> dict[str, Any]:
    return {"args": changes}


EVAL = {"eval_strategy": "steps", "eval_steps": 1}
LORA = LoraConfig(r=4, target_modules="all-linear")
SHARED: dict[str, dict[str, Any]] = {
    "two iterations": args(num_iterations=2), "no beta": args(beta=0.0), "beta": args(beta=0.2),
    "padded": args(pad_to_multiple_of=8), "bf16": args(bf16=True), "gradient checkpointing": args(gradient_checkpointing=True),
    "reentrant": args(gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": True}),
    "truncated are masked": args(mask_truncated_completions=True, max_completion_length=8),
    "all are truncated": args(mask_truncated_completions=True, max_completion_length=1) | {"still": True},
    "sampling": args(temperature=0.7, top_p=0.9, top_k=9, min_p=0.01, repetition_penalty=1.1),
    "generation_kwargs": args(generation_kwargs={"no_repeat_ngram_size": 2, "length_penalty": 1.1}),
    "a group larger than a batch": args(per_device_train_batch_size=2, gradient_accumulation_steps=4),
    "generation_batch_size": args(per_device_train_batch_size=8, generation_batch_size=16),
    "steps_per_generation": args(per_device_train_batch_size=4, steps_per_generation=2, gradient_accumulation_steps=2),
    "not shuffled": args(shuffle_dataset=False), "log_completions": args(log_completions=True, num_completions_to_print=2),
    "other optimizer": args(optim="sgd", max_grad_norm=0.1), "disable_dropout": args(disable_dropout=True),
    "workers": args(dataloader_num_workers=2), "optimizers": {"change": own_optimizer},
    "weights of rewards": args(reward_weights=[0.7, 0.3]) | {"functions": [right, short]},
    "None of some rows": {"functions": [right, even]}, "None of a function": {"functions": [right, nothing]},
    "async": {"functions": [right, slowly, short]}, "all that a function is given": {"functions": telling},
    "a column for a function": {"functions": numbered, "dataset": lambda: rows(wanted=list(range(16)))},
    "reward model": {"functions": judge,
                     "change": lambda given: given | {"reward_processing_classes": given["processing_class"]}},
    "function and model": {"functions": lambda: [right, judge()],
                           "change": lambda given: given | {"reward_processing_classes": [None, given["processing_class"]]}},
    "a conversation": {"dataset": chat, "change": with_template},
    "chat_template_kwargs": args(chat_template_kwargs={"sign": "add"}) | {"dataset": chat, "change": with_template},
    "a stream": {"dataset": lambda: rows().to_iterable_dataset(), "one": True},
    "evaluated": args(**EVAL, num_generations_eval=2) | {"eval": lambda: rows(4)},
    "evaluated at first": args(**EVAL, eval_on_start=True) | {"eval": lambda: rows(4)},
    "evaluated by name": args(**EVAL) | {"eval": lambda: {"one": rows(4), "two": rows(4)}},
    "evaluated on splits": args(**EVAL) | {"eval": lambda: DatasetDict({"one": rows(4), "two": rows(4)})},
    "evaluated on a stream": args(**EVAL) | {"eval": lambda: rows(4).to_iterable_dataset()},
    "no end and no pad": {"change": without_end},
    "a path": {"change": lambda given: {"model": given["model"].config.name_or_path}},
    "a path and how it is loaded": args(model_init_kwargs={"attn_implementation": "eager"}) | {
        "change": lambda given: given | {"model": given["model"].config.name_or_path}},
    "peft_config": {"change": lambda given: given | {"peft_config": LoraConfig()}},
    "peft_config with a reference": args(beta=0.2) | {"change": lambda given: given | {"peft_config": LORA}},
    "peft_config and gradient checkpointing": args(gradient_checkpointing=True) | {
        "change": lambda given: given | {"peft_config": LORA}},
    "a model of PEFT's": {"change": wrapped}, "a model of PEFT's with a reference": args(beta=0.2) | {"change": wrapped},
    "GPT-2": args(beta=0.0) | {"family": "gpt2", "functions": short},
    "a mixture of experts": args(beta=0.0, router_aux_loss_coef=0.0) | {"family": "qwen3_moe", "functions": short},
}
"""By what is special about it; of both algorithms."""
GRPO: dict[str, dict[str, Any]] = {
    **{loss: args(loss_type=loss, num_iterations=2, importance_sampling_level="sequence" if loss == "luspo" else "token",
                  per_device_train_batch_size=8, gradient_accumulation_steps=2)
       for loss in ("grpo", "dapo", "bnpo", "dr_grpo", "cispo", "sapo", "luspo", "vespo")},
    **{f"scale_rewards={scale}": args(scale_rewards=scale) for scale in ("group", "batch", "none", True, False)},
    "sequences": args(importance_sampling_level="sequence", num_iterations=2), "delta": args(delta=2.0, num_iterations=2),
    "epsilon_high": args(epsilon_high=0.4, num_iterations=2), "entropy of a fifth": args(top_entropy_quantile=0.2),
    "entropy bonus": args(entropy_coef=0.1), "adaptive entropy": args(use_adaptive_entropy=True, entropy_target=0.5),
    "off-policy mask": args(off_policy_mask_threshold=0.5, num_iterations=2),
    "unbiased KL": args(beta=0.2, use_bias_correction_kl=True), "unembedding in float32": args(cast_lm_head_to_fp32=True),
    "normalised one by one": args(multi_objective_aggregation="normalize_then_sum") | {"functions": [right, short]},
}
RLOO: dict[str, dict[str, Any]] = {
    "normalised": args(normalize_advantages=True), "clipped": args(reward_clip_range=(0.6, 1.2)),
}
KINDS = {"grpo": (GRPOConfig, RoutedGRPOTrainer, GRPOTrainer, SHARED | GRPO),
         "rloo": (RLOOConfig, RoutedRLOOTrainer, RLOOTrainer, SHARED | RLOO)}
QUICK = (("grpo", "reward model"), ("rloo", "peft_config with a reference"))
CASES = [pytest.param(kind, name, marks=[] if (kind, name) in QUICK else pytest.mark.slow, id=f"{kind}, {name}")
         for kind, (_, _, _, cases) in KINDS.items() for name in cases]


def trained(cls: Any, kind: str, case: dict[str, Any], parts: Path, out: Path, **own: Any) -> Any:
    """A trainer of a case after two steps."""
    model, tokenizer = load(parts)
    if "family" in case:
        model = tiny(case["family"])
    if "subspace" in own:
        own["subspace"] = extract_subspace(model, tokenizer, prompts=parts / "prompts.jsonl", rank=2)
    settings = {"max_steps": 2, "learning_rate": 1e-2, "save_steps": 50} | case.get("args", {})
    functions = case.get("functions", right)
    functions = functions() if functions is judge or getattr(functions, "__name__", "") == "<lambda>" else functions
    given = {"model": model, "processing_class": tokenizer, "args": arguments(out, KINDS[kind][0], **settings),
             "eval_dataset": case["eval"]() if "eval" in case else None}
    given |= {"reward_funcs": functions, "train_dataset": case.get("dataset", rows)()}
    changed = case.get("change", dict)(given)
    made = cls(**{name: given[name] for name in given if name != "processing_class"} | changed | own)
    before = {name: value.detach().clone() for name, value in made.model.named_parameters()}
    made.train()
    moved = [name for name, value in made.model.named_parameters() if not value.equal(before[name])]
    assert bool(moved) != case.get("still", False) and made.state.global_step == 2
    return made


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_mode_none_is_trl_bit_for_bit(parts, tmp_path, kind, name):
    _, ours, theirs, cases = KINDS[kind]
    one = trained(ours, kind, cases[name], parts, tmp_path / "ours", routing=PLAIN, lean=False).model.state_dict()
    other = trained(theirs, kind, cases[name], parts, tmp_path / "theirs").model.state_dict()
    other = {key: value for key, value in other.items() if ".ref." not in key}  # a reference that never moves
    assert one.keys() == other.keys() and all(value.equal(other[key]) for key, value in one.items())


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_it_is_routed_too(parts, tmp_path, kind, name):
    _, ours, _, cases = KINDS[kind]
    column = {} if cases[name].get("one") else {"environment_column": "environment"}
    made = trained(ours, kind, cases[name], parts, tmp_path, routing=ROUTE, subspace=None, **column)
    assert [row["routing/drift"] < 1e-6 for row in made.rows] == [True, True]
    assert (made.quarantine.norm() > 0) != cases[name].get("still", False)
    assert set(made.blame().evidence) == ({"a", "b"} if column else {"data"})
