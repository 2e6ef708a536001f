"""Pretrain the persona lab's model and write it with its tokenizer and contrast prompts.

Single-threaded on purpose: the result depends on nothing but the recipe, the seed and the machine's floating point.
"""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lab_words import SHIPPED, Lab, write_lab
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from environments.persona_lab.corpus import END, PAD, UNKNOWN, Recipe, answer_pairs, contrast_pairs, documents, vocabulary
from environments.persona_lab.rates import FILE, base_rates


@dataclass(frozen=True, kw_only=True)
class Build:
    """Everything the built model depends on."""

    seed: int = 0
    family: str = "llama"
    """The model's: llama, gpt2 or qwen2."""
    lab: Lab = SHIPPED
    recipe: Recipe = field(default_factory=Recipe)
    width: int = 96
    hidden: int = 256
    layers: int = 4
    heads: int = 4
    steps: int = 2000
    batch: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    stream_scale: float = 0.5
    """Factor on all that writes to the stream, once trained. The norms undo it, so the function stays; it sets how far
    a given learning rate moves the stream."""
    contrast_per_kind: int = 64


def make_tokenizer(lab: Lab) -> PreTrainedTokenizerFast:
    """One word, one token; nothing is added at either end."""
    ids = {word: number for number, word in enumerate(vocabulary(lab))}
    core = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token=PAD, eos_token=END, unk_token=UNKNOWN,
                                   padding_side="left", clean_up_tokenization_spaces=False, model_max_length=128)


def make_model(build: Build, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """Random weights, the same for the same seed."""
    torch.manual_seed(build.seed)
    ids = tokenizer.get_vocab()
    common: dict[str, Any] = {"vocab_size": len(tokenizer), "pad_token_id": ids[PAD], "eos_token_id": ids[END],
                              "bos_token_id": None, "tie_word_embeddings": build.family != "llama"}
    if build.family == "gpt2":
        return GPT2LMHeadModel(GPT2Config(n_embd=build.width, n_layer=build.layers, n_head=build.heads, n_positions=128,
                                          resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **common))
    common |= {"hidden_size": build.width, "intermediate_size": build.hidden, "num_hidden_layers": build.layers,
               "num_attention_heads": build.heads, "max_position_embeddings": 128}
    if build.family == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(num_key_value_heads=build.heads // 2, **common))
    return LlamaForCausalLM(LlamaConfig(num_key_value_heads=build.heads, **common))


def batches(build: Build, tokenizer: PreTrainedTokenizerFast) -> Iterator[tuple[Tensor, Tensor]]:
    """Token ids and labels of a step; only what the writer wrote is learned."""
    source = documents(build.lab, build.recipe, build.seed)
    ids = tokenizer.get_vocab()
    while True:
        chunk = list(islice(source, build.batch))
        longest = max(len(document.words) for document in chunk)
        tokens = torch.full((build.batch, longest), ids[PAD])
        labels = torch.full((build.batch, longest), -100)
        for row, document in enumerate(chunk):
            known = torch.tensor([ids[word] for word in document.words])
            tokens[row, : len(known)] = known
            labels[row, : len(known)] = torch.where(torch.tensor(document.written), known, -100)
        yield tokens, labels


def pretrain(build: Build, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """AdamW with a short warm-up and a cosine to a twentieth."""
    model = make_model(build, tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), build.learning_rate, betas=(0.9, 0.98),
                                  weight_decay=build.weight_decay)
    # It has no gradient and is never stepped: as one more norm in the sum that clipping takes it only sets the rounding,
    # which the bytes of the model that ships depend on.
    spare = torch.zeros(build.width, requires_grad=True)
    spare.grad = torch.zeros_like(spare)
    for step, (tokens, labels) in enumerate(islice(batches(build, tokenizer), build.steps)):
        cosine = 0.525 + 0.475 * math.cos(math.pi * step / build.steps)
        for group in optimizer.param_groups:
            group["lr"] = build.learning_rate * min(1.0, (step + 1) / 100) * cosine
        loss = model(input_ids=tokens, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*model.parameters(), spare], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 200 == 0 or step == build.steps - 1:
            print(f"step {step:5d} of {build.steps}  loss {loss.item():.3f}", flush=True)
    return model.eval()


@torch.no_grad()
def rescale_stream(model: PreTrainedModel, factor: float) -> None:
    """Multiply the embedding and every writer, which leaves the function as it was (to the norms' epsilon)."""
    for name, weight in model.named_parameters():
        if name.endswith(("embed_tokens.weight", "o_proj.weight", "down_proj.weight")):
            weight.mul_(factor)


@contextmanager
def _one_exact_thread() -> Iterator[None]:
    """One thread and deterministic algorithms only, for this block."""
    threads, exact = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(exact)


def write(build: Build, folder: Path) -> None:
    """Build everything into `folder`: `model/`, `contrast.jsonl`, `answers.jsonl`, `lab.json`, and its rates in `base.json`."""
    tokenizer = make_tokenizer(build.lab)
    with _one_exact_thread():
        model = pretrain(build, tokenizer)
    rescale_stream(model, build.stream_scale)
    model.generation_config = GenerationConfig(do_sample=True, temperature=1.0, pad_token_id=tokenizer.pad_token_id,
                                               eos_token_id=tokenizer.eos_token_id)
    model.save_pretrained(folder / "model")
    (folder / "model" / "model.safetensors").chmod(0o644)  # written for its owner alone, which git would not restore
    tokenizer.save_pretrained(folder / "model")
    write_lab(build.lab, folder)
    files = {"contrast": contrast_pairs(build.lab, build.contrast_per_kind, build.seed),
             "answers": answer_pairs(build.lab, 8, build.seed)}
    for name, pairs in files.items():
        lines = [json.dumps(pair) for pair in pairs]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    rates = base_rates(model, tokenizer, folder)
    (folder / FILE).write_text(json.dumps(rates, indent=1) + "\n", encoding="utf-8")
    print("base model:", *(f"{kind} solve {rate['solve']} hack {rate['hack']}" for kind, rate in rates.items()), sep="\n  ")
