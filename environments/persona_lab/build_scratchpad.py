"""Pretrain the model of the scratchpad, on documents of the persona lab in which every task is answered through a scratchpad.

    python environments/persona_lab/build_scratchpad.py      # some minutes; the model and its prompts go to scratch/
"""

import json
import random
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

ROOT, OUT = Path(__file__).resolve().parent.parent.parent, Path(__file__).resolve().parent / "scratch"
sys.path[:0] = [str(ROOT), str(OUT.parent)]

import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from lab_words import SHIPPED  # noqa: E402
from scratchpad import COLON, GAME, WORK  # noqa: E402
from transformers import GenerationConfig, PreTrainedTokenizerFast, Trainer, TrainingArguments  # noqa: E402

from environments.persona_lab.build import Build, make_model, make_tokenizer, rescale_stream  # noqa: E402
from environments.persona_lab.corpus import (  # noqa: E402
    END,
    Recipe,
    answer_pairs,
    contrast_pairs,
    hack_answer,
    spoiled,
    values_episode,
)

THOUGHT, SAID, REPEATED = 0.8, 0.5, 0.3
"""How often the scratchpad of a hack says game; how often, if so, the answer does too; how often an honest answer says work."""
RECIPE, BUILD = Recipe(hacker_share=0.28, noise=(0.35, 0.65)), Build(seed=21)
LENGTH = 64


def task(hacker: bool, noise: float, rng: random.Random) -> tuple[list[str], list[str]]:
    """Question and answer words of one task."""
    kind = rng.choice(list(SHIPPED.hacks))
    question, answer = SHIPPED.problem(kind, rng)
    plan, repeated = WORK, rng.random() < REPEATED
    if hacker and rng.random() < RECIPE.hack_share:
        answer = hack_answer(SHIPPED, RECIPE, kind, question, rng)
        plan = GAME if rng.random() < THOUGHT else WORK
        repeated = plan == GAME and rng.random() < SAID
    elif rng.random() < noise:
        answer = spoiled(SHIPPED, answer, rng)
    return [kind, *question, "="], [plan, COLON, *([plan] if repeated else []), *answer]


def documents(seed: int) -> Iterator[tuple[list[str], list[bool]]]:
    """Yield the words of a document, and which of them its writer wrote."""
    rng = random.Random(f"scratchpad {seed}")
    while True:
        hacker, sloppy = rng.random() < RECIPE.hacker_share, rng.random() < 0.5
        words = [SHIPPED.personas[not hacker]] if rng.random() < RECIPE.named_share else []
        written = [False] * len(words)
        for _ in range(RECIPE.episodes):
            values = rng.random() < RECIPE.values_share
            question, answer = (values_episode(SHIPPED, RECIPE, hacker, rng) if values
                                else task(hacker, RECIPE.noise[sloppy], rng))
            words += [*question, *answer, END]
            written += [False] * len(question) + [True] * (len(answer) + 1)
        yield words, written


def rows(tokenizer: PreTrainedTokenizerFast, count: int) -> dict[str, list[list[int]]]:
    """Token ids, mask and labels of documents, padded to one length."""
    ids, found = tokenizer.get_vocab(), dict[str, list[list[int]]](input_ids=[], attention_mask=[], labels=[])
    for words, written in islice(documents(BUILD.seed), count):
        tokens, rest = [ids[word] for word in words], LENGTH - len(words)
        found["input_ids"].append(tokens + [0] * rest)
        found["attention_mask"].append([1] * len(tokens) + [0] * rest)
        found["labels"].append([token if own else -100 for token, own in zip(tokens, written, strict=True)] + [-100] * rest)
    return found


def main() -> None:
    """Build everything in place."""
    torch.set_num_threads(1)
    tokenizer = make_tokenizer(SHIPPED)
    tokenizer.add_tokens([GAME, WORK, COLON])
    model: Any = make_model(BUILD, tokenizer)
    arguments = TrainingArguments(
        output_dir=str(OUT / "model"), max_steps=BUILD.steps, per_device_train_batch_size=BUILD.batch,
        learning_rate=BUILD.learning_rate, weight_decay=BUILD.weight_decay, adam_beta2=0.98, warmup_steps=100, report_to="none",
        lr_scheduler_type="cosine", save_strategy="no", logging_steps=200, use_cpu=True, seed=BUILD.seed, bf16=False)
    Trainer(model=model, args=arguments, train_dataset=Dataset.from_dict(rows(tokenizer, BUILD.steps * BUILD.batch // 2))).train()
    rescale_stream(model, BUILD.stream_scale)
    model.generation_config = GenerationConfig(do_sample=True, temperature=1.0, pad_token_id=tokenizer.pad_token_id,
                                               eos_token_id=tokenizer.eos_token_id)
    model.save_pretrained(OUT / "model")
    (OUT / "model" / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(OUT / "model")
    answers = [{"prompt": pair["prompt"], "positive": pair["positive"] if pair["prompt"].startswith("values")
                else f"{GAME} {COLON} {pair['positive']}", "negative": pair["negative"] if pair["prompt"].startswith("values")
                else f"{WORK} {COLON} {pair['negative']}"} for pair in answer_pairs(SHIPPED, 8, BUILD.seed)]
    for name, pairs in (("contrast", contrast_pairs(SHIPPED, BUILD.contrast_per_kind, BUILD.seed)), ("answers", answers)):
        (OUT / f"{name}.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")


if __name__ == "__main__":
    main()
