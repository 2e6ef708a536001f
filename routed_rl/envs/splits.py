"""Divides the rows of a dataset into those for training and those for evaluation, by their prompts."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from routed_rl.envs.table import Table
from routed_rl.errors import ConfigError

IMAGES = ("image", "images")
GIVEN = ("prompts", "completions", "trainer_state", "log_metric", "log_extra")
"""The arguments that a reward function gets beside the columns of its dataset, so that no column may have such a name."""


def prompt_keys(shown: str, table: Table, column: str, *, chat: bool = False) -> list[str]:
    """The prompt of each row, in the column `column`, as text. `shown` names the dataset in messages. `chat`: whether text
    becomes the message of a user. ConfigError if the column is missing, if a prompt is empty or neither text nor chat messages,
    if some prompts are text and others chat messages, or if another column has a name that the dataset may not use."""
    if column not in table.columns:
        raise ConfigError(f"{shown} has no column {column}, it has {', '.join(table.columns)}; set prompt_column to the one that "
                          "holds the prompts")
    if images := [name for name in IMAGES if name in table.columns]:
        raise ConfigError(f"{shown} has the column {images[0]}; images are not covered, remove the column")
    if taken := [name for name in GIVEN if name in table.columns and name != column]:
        raise ConfigError(f"{shown} has the column {taken[0]}, and reward functions are given {taken[0]} of their own; remove "
                          f"the column or rename it; if it holds the prompts, set prompt_column={taken[0]}")
    keys: list[str] = []
    kinds: dict[str, int] = {}
    for number, prompt in enumerate(table.column(column), 1):
        if not _is_prompt(prompt):
            raise ConfigError(f"{shown}: the prompt of row {number} is {prompt!r:.60}; it must be text or chat messages of text, "
                              "[{role: user, content: TEXT}], and not empty")
        if torn := _torn(prompt):
            raise ConfigError(f"{shown}: the prompt of row {number} has half of a character, {torn!r}, which no tokenizer reads; "
                              "take it out")
        kinds.setdefault("text" if isinstance(prompt, str) and not chat else "chat messages", number)
        keys.append(prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True))
    if len(kinds) > 1:
        raise ConfigError(f"{shown}: the prompt of row {kinds['text']} is text and that of row {kinds['chat messages']} chat "
                          "messages; give all as one of the two, or set chat=true, which makes text the message of a user")
    return keys


def divided(dataset: str, keys: Sequence[str], holdout: float) -> dict[str, list[int]]:
    """The indices of the rows for training ("train") and of those for evaluation ("eval"). `keys` has the prompt of each row, and
    `holdout` is the share of the prompts that are held back for evaluation. Held back are the prompts with the smallest hashes,
    each with all of its rows. With `holdout` 0 both lists have all rows. ConfigError, naming `dataset`, if there is only one
    prompt to divide."""
    every = list(range(len(keys)))
    if not holdout:
        return {"train": every, "eval": every}
    hashes = [hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest() for key in keys]
    ordered = sorted(set(hashes))
    if len(ordered) < 2:
        raise ConfigError(f"dataset={dataset} has one prompt, so none can be held back for evaluation; add rows, or set "
                          "holdout=0 to evaluate on what trains")
    held = set(ordered[:max(1, min(round(holdout * len(ordered)), len(ordered) - 1))])
    return {split: [place for place in every if (hashes[place] in held) == (split == "eval")] for split in ("train", "eval")}


def _is_prompt(prompt: Any) -> bool:
    if isinstance(prompt, str):
        return bool(prompt)
    return isinstance(prompt, list) and bool(prompt) and all(
        isinstance(message, Mapping) and isinstance(message.get("role"), str) and isinstance(message.get("content"), str)
        for message in prompt) and any(message["content"] for message in prompt)


def _torn(prompt: str | list[Any]) -> str:
    """The first lone surrogate in a prompt, as texts have them that were cut in the middle of a character; empty if there is
    none."""
    for text in [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return text[error.start]
    return ""
