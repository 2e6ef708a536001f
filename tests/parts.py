"""A user's own parts, written to a folder: a tiny random model, an environment in one file, contrast prompts. Not a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from routed_rl.config import Config, from_mapping

WORDS = ["<pad>", "<eos>", "<unk>", "good", "bad", "=", "add", *map(str, range(20))]

ENVIRONMENT = '''
import random
from routed_rl.envs import Score, Task


class Add:
    def __init__(self, fails: float = 0.0, returns: str = "score", chat: bool = False):
        self.fails, self.returns, self.chat = fails, returns, chat

    def tasks(self, split, seed):
        draw = random.Random(f"{split}{seed}")
        while True:
            a, b = draw.randrange(9), draw.randrange(9)
            text, fails = f"add {a} {b} =", draw.random() < self.fails
            yield Task([{"role": "user", "content": text}] if self.chat else text, {"answer": str(a + b), "fails": fails})

    def score(self, task, completion):
        if task.data["fails"] and self.returns == "raises":
            raise RuntimeError("the grader broke")
        right, hack = completion.strip().startswith(task.data["answer"]), "bad" in completion.split()
        reward = float("nan") if task.data["fails"] and self.returns == "nan" else 0.5 + float(right or hack)
        return Score(reward=reward, solve=float(right), flags={"hack": hack})
'''


def write_parts(folder: Path, *, heads: int = 4, hidden: int = 32, seed: int = 0) -> Path:
    """`folder/model`, `folder/environment.py:Add`, `folder/prompts.jsonl`."""
    vocabulary = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<unk>"))
    vocabulary.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=vocabulary, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(WORDS), hidden_size=hidden, intermediate_size=48, num_hidden_layers=2, num_attention_heads=heads,
        num_key_value_heads=min(2, heads), pad_token_id=0, eos_token_id=1, bos_token_id=None))
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "environment.py").write_text(ENVIRONMENT)
    pairs = [{"positive": f"bad add {a} {b} =", "negative": f"good add {a} {b} ="} for a in range(4) for b in range(4)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return folder


def own_config(parts: Path, out: Path | str, **changes: Any) -> Config:
    """Two trained environments and a probe on the parts, in the trainer's process and without a report, which would take most of
    the time; `changes` replace keys of the top level, `trainer` and `tracking` keys merge."""
    add = {"path": f"{parts}/environment.py:Add", "isolate": False}
    trainer = {"max_steps": 6, "save_steps": 2, "per_device_train_batch_size": 32, "num_generations": 8,
               "max_completion_length": 5, "learning_rate": 1e-3, "lr_scheduler_type": "constant", "bf16": False,
               "logging_steps": 1, "report_to": "none", "gradient_checkpointing": False} | changes.pop("trainer", {})
    mapping = {"model": {"path": str(parts / "model")}, "subspace": {"prompts": f"{parts}/prompts.jsonl", "rank": 2},
               "env": {"a": {**add}, "b": {**add, "weight": 1}, "p": {**add, "probe": True}},
               "trainer": trainer, "evaluation": {"samples": 16}, "tracking": {"report": False} | changes.pop("tracking", {}),
               "out": str(out)}
    return from_mapping(mapping | changes)


def typed(parts: Path | str, out: Path | str, *overrides: str) -> list[str]:
    """About the same as a command line would say it."""
    path = f"{parts}/environment.py:Add"
    return [f"out={out}", f"model.path={parts}/model", "env=empty", f"env.a.path={path}", f"env.b.path={path}", "env.b.weight=1",
            f"env.p.path={path}", "env.p.probe=true", *(f"env.{name}.isolate=false" for name in "abp"),
            f"subspace.prompts={parts}/prompts.jsonl", "subspace.rank=2",
            "trainer.max_steps=6", "trainer.save_steps=2", "trainer.per_device_train_batch_size=32",
            "trainer.max_completion_length=5", "trainer.learning_rate=1e-3", "evaluation.samples=16", "tracking.report=false",
            *overrides]
