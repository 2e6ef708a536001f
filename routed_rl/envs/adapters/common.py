"""Helpers that adapters share: reading rows of a file, dividing them into splits, and prompts as messages."""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from routed_rl.artifacts import find_data, json_lines
from routed_rl.canary import without_canary
from routed_rl.envs.core import Message
from routed_rl.errors import ConfigError

SHARE = 5
"""One row in `SHARE` belongs to the split "eval", the others to "train"."""


def read_rows(setting: str, path: str) -> list[dict[str, Any]]:
    """The JSON objects of the `.jsonl` file at `path`, one on each line, without a canary. ConfigError names `setting` if the
    file cannot be read."""
    try:
        file = find_data(path)
    except FileNotFoundError:
        raise ConfigError(f"{setting}={path}: no such file; give a path relative to here, or an absolute one") from None
    rows = [without_canary(row) for _, row in json_lines(file, f"{setting}={path}", ConfigError)]
    if not rows:
        raise ConfigError(f"{setting}={path} must have one JSON object a line, at least one")
    return rows


def of_split(split: str, rows: Sequence[Any], keys: Sequence[str]) -> list[Any]:
    """The rows of `split`, "train" or "eval"; `keys` has a key for each row. A fifth of the different keys, chosen by hash,
    belongs to "eval", each with all of its rows. So no row is in both splits, even if it comes several times, and the order of
    the rows does not matter.

    If there are fewer than five different keys, every row is in both splits, because there is nothing to hold out.
    """
    if split not in ("train", "eval"):
        raise ValueError(f"split must be train or eval, got {split!r}")
    order = sorted(set(keys), key=lambda key: (zlib.crc32(key.encode()), key))
    if len(order) < SHARE:
        return list(rows)
    held = set(order[:len(order) // SHARE])
    return [row for row, key in zip(rows, keys, strict=True) if (key in held) == (split == "eval")]


def by_text(rows: Sequence[Any], keys: Sequence[str]) -> dict[str, list[Any]]:
    """The rows of each split, "train" and "eval". The split of a row follows from its key alone, so a row that comes again, in
    this call or a later one, is in the same split. About one key in five is "eval"."""
    found: dict[str, list[Any]] = {"train": [], "eval": []}
    for row, key in zip(rows, keys, strict=True):
        found["train" if zlib.crc32(key.encode()) % SHARE else "eval"].append(row)
    return found


def as_messages(prompt: Any) -> list[Message]:
    """The chat messages of a prompt that is text or messages. TypeError if the content of a message is not text."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    if not isinstance(prompt, Sequence) or not all(isinstance(message, Mapping) for message in prompt):
        raise TypeError(f"a prompt must be text or chat messages, got {prompt!r}")
    for message in prompt:
        if not isinstance(message.get("content"), str):
            raise TypeError(f"content that is no text (images) is not covered, got {message.get('content')!r}")
    return [dict(message) for message in prompt]
