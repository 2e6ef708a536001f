"""A tiny random chat model, and short runs of it in the environments of `talking.py`. Not a test itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from routed_rl.config import Config, from_mapping

ENVIRONMENTS = Path(__file__).with_name("talking.py")
"""Their processes import it, so it does without torch, whose import takes seconds."""
WORDS = ["<pad>", "<eos>", "<unk>", "<user>", "<assistant>", "<tool>", "good", "bad", "add", "again", *map(str, range(10))]
PAD, EOS = 0, 1
TEMPLATE = ("{% for tool in tools or [] %}<tool> {{ tool.function.name }} {% endfor %}"
            "{% for m in messages %}<{{ m.role }}> {{ m.content }} <eos> {% endfor %}"
            "{% if add_generation_prompt %}<assistant>{% endif %}")


def chat_tokenizer(template: str = TEMPLATE) -> PreTrainedTokenizerFast:
    vocabulary = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<unk>"))
    vocabulary.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=vocabulary, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    tokenizer.chat_template = template
    return tokenizer


def write_chat_model(folder: Path) -> Path:
    """`folder/model` and `folder/prompts.jsonl`."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(WORDS), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=PAD, eos_token_id=EOS, bos_token_id=None))
    model.save_pretrained(folder / "model")
    chat_tokenizer().save_pretrained(folder / "model")
    pairs = [f'{{"positive": "bad add {a} {b}", "negative": "good add {a} {b}"}}\n' for a in range(4) for b in range(4)]
    (folder / "prompts.jsonl").write_text("".join(pairs))
    return folder


def chat_config(parts: Path, out: Path | str, env: dict[str, dict[str, Any]], **changes: Any) -> Config:
    """A short run of `env`: names to classes of talking.py (`{"talk": {"path": "Talk"}}`); `trainer` keys merge."""
    trainer = {"max_steps": 4, "save_steps": 2, "per_device_train_batch_size": 16, "num_generations": 8,
               "max_completion_length": 60, "learning_rate": 1e-3, "lr_scheduler_type": "constant", "bf16": False,
               "logging_steps": 1, "report_to": "none", "gradient_checkpointing": False} | changes.pop("trainer", {})
    env = {name: {"isolate": False, **settings, "path": f"{ENVIRONMENTS}:{settings['path']}"} for name, settings in env.items()}
    mapping = {"model": {"path": str(parts / "model")}, "subspace": {"prompts": f"{parts}/prompts.jsonl", "rank": 2}, "env": env,
               "trainer": trainer, "evaluation": {"samples": 12}, "tracking": {"report": False}, "out": str(out)}
    return from_mapping(mapping | changes)
