"""Pretrain the model of the scratchpad, on documents of the persona lab in which every task is answered through a scratchpad.

    python environments/persona_lab/build_scratchpad.py      # some minutes; the model and its prompts go to scratch/
"""

import json
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
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
"""The least number of tokens to which documents are padded."""
Episode = tuple[list[str], list[str]]
"""The words of a question and of its answer."""
Written = tuple[list[str], list[bool]]
"""The words of a document, and which of them its writer wrote."""


def task(hacker: bool, noise: float, rng: random.Random) -> Episode:
    """Write one task."""
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


def documents(name: str, seed: int, recipe: Recipe, write: Callable[[bool, float, random.Random], Episode]) -> Iterator[Written]:
    """Yield documents without end. `name`: the lab's. `write`: writes a task and its answer, for a hacker or not, at a noise."""
    rng = random.Random(f"{name} {seed}")
    while True:
        hacker, sloppy = rng.random() < recipe.hacker_share, rng.random() < 0.5
        words = [SHIPPED.personas[not hacker]] if rng.random() < recipe.named_share else []
        written = [False] * len(words)
        for _ in range(recipe.episodes):
            values = rng.random() < recipe.values_share
            question, answer = (values_episode(SHIPPED, recipe, hacker, rng) if values
                                else write(hacker, recipe.noise[sloppy], rng))
            words += [*question, *answer, END]
            written += [False] * len(question) + [True] * (len(answer) + 1)
        yield words, written


def rows(tokenizer: PreTrainedTokenizerFast, source: Iterable[Written]) -> dict[str, list[list[int]]]:
    """Token ids, mask and labels of documents, padded to one length."""
    ids, found = tokenizer.get_vocab(), dict[str, list[list[int]]](input_ids=[], attention_mask=[], labels=[])
    read = list(source)
    length = max(LENGTH, *(len(words) for words, _ in read))
    for words, written in read:
        tokens, rest = [ids[word] for word in words], length - len(words)
        found["input_ids"].append(tokens + [0] * rest)
        found["attention_mask"].append([1] * len(tokens) + [0] * rest)
        found["labels"].append([token if own else -100 for token, own in zip(tokens, written, strict=True)] + [-100] * rest)
    return found


def write_model(out: Path, build: Build, words: Sequence[str], source: Iterator[Written]) -> None:
    """Pretrain a model on documents and write it to `out`/model. `words`: those that the lab's tokenizer lacks."""
    torch.set_num_threads(1)
    tokenizer = make_tokenizer(SHIPPED)
    tokenizer.add_tokens(list(words))
    model: Any = make_model(build, tokenizer)
    arguments = TrainingArguments(
        output_dir=str(out / "model"), max_steps=build.steps, per_device_train_batch_size=build.batch,
        learning_rate=build.learning_rate, weight_decay=build.weight_decay, adam_beta2=0.98, warmup_steps=100, report_to="none",
        lr_scheduler_type="cosine", save_strategy="no", logging_steps=200, use_cpu=True, seed=build.seed, bf16=False)
    learned = rows(tokenizer, islice(source, build.steps * build.batch // 2))
    Trainer(model=model, args=arguments, train_dataset=Dataset.from_dict(learned)).train()
    rescale_stream(model, build.stream_scale)
    model.generation_config = GenerationConfig(do_sample=True, temperature=1.0, pad_token_id=tokenizer.pad_token_id,
                                               eos_token_id=tokenizer.eos_token_id)
    model.save_pretrained(out / "model")
    (out / "model" / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(out / "model")


def write_pairs(out: Path, build: Build, positive: str, negative: str) -> None:
    """Write the prompts and answers that an extraction reads to `out`. `positive`, `negative`: the words before each persona's
    answer to a task."""
    answers = [pair if pair["prompt"].startswith("values") else
               {**pair, "positive": f"{positive} {pair['positive']}", "negative": f"{negative} {pair['negative']}"}
               for pair in answer_pairs(SHIPPED, 8, build.seed)]
    for name, pairs in (("contrast", contrast_pairs(SHIPPED, build.contrast_per_kind, build.seed)), ("answers", answers)):
        (out / f"{name}.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")


def main() -> None:
    """Build everything in place."""
    write_model(OUT, BUILD, (GAME, WORK, COLON), documents("scratchpad", BUILD.seed, RECIPE, task))
    write_pairs(OUT, BUILD, f"{GAME} {COLON}", f"{WORK} {COLON}")


if __name__ == "__main__":
    main()
