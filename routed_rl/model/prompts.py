"""Prompts to token ids, exactly as TRL's GRPO rollout makes them: the one place, so that all see the same prompt."""

from __future__ import annotations

from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from routed_rl.errors import ModelError


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: list[Any]) -> list[list[int]]:
    """Token ids of each prompt: text as it stands with the tokenizer's special tokens, messages through the chat template."""
    encoded: list[list[int]] = [[]] * len(prompts)
    texts = {index: prompt for index, prompt in enumerate(prompts) if isinstance(prompt, str)}
    chats = {index: prompt for index, prompt in enumerate(prompts) if not isinstance(prompt, str)}
    if texts:
        rows = cast(list[list[int]], tokenizer(text=list(texts.values()))["input_ids"])
        encoded = _placed(encoded, texts, rows)
    if chats:
        if not tokenizer.chat_template:
            raise ModelError("the prompts are chat messages but the model's tokenizer has no chat template; choose a "
                             "model for chats, write them as text, or set chat_template in the model folder's "
                             "tokenizer_config.json")
        rendered = tokenizer.apply_chat_template(list(chats.values()), add_generation_prompt=True, tokenize=True,
                                                 return_dict=True)
        encoded = _placed(encoded, chats, cast(Any, rendered)["input_ids"])
    return encoded


def _placed(encoded: list[list[int]], places: dict[int, Any], rows: list[list[int]]) -> list[list[int]]:
    found = dict(zip(places, rows, strict=True))
    return [found.get(index, row) for index, row in enumerate(encoded)]
