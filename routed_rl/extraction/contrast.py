"""Contrast prompts: what they are, the file they come from, and their token ids, checked against the model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from routed_rl.artifacts import find_data
from routed_rl.config import SubspaceConfig
from routed_rl.errors import ModelError, SubspaceError
from routed_rl.model.prompts import encode_prompts

Prompt = str | list[dict[str, str]]


@dataclass(frozen=True)
class ContrastPair:
    """One prompt under both personas; `positive` is the one that must not grow."""

    positive: Prompt
    negative: Prompt
    kind: str | None = None
    """Pairs of one kind are averaged; a pair without one stands for itself."""
    line: int = 0
    """In its file, from 1."""
    fold: int | None = None
    """Which half (0 or 1) of a held-out figure it belongs to, -1 for neither; None where halves are drawn."""


@dataclass(frozen=True)
class TokenPair:
    """A pair as token ids, and how many of its last positions count."""

    positive: tuple[int, ...]
    negative: tuple[int, ...]
    positions: int


def find_prompts(config: SubspaceConfig, model_path: str) -> str:
    """The prompts file to use; SubspaceError where none is set and none is known."""
    path = config.prompts_for(model_path)
    if path is None:
        raise SubspaceError(f"no contrast prompts: none are set and none are known for model {model_path!r}; "
                            "set subspace.prompts=FILE.jsonl")
    return path


def read_prompts(path: str | Path) -> list[ContrastPair]:
    """Pairs of a JSON-lines file, relative to here or to the package's data; blank lines are skipped."""
    pairs = [_pair(record, f"prompts file {path}, line {number}", number) for number, record in read_lines(path)]
    if not pairs:
        raise SubspaceError(f"prompts file {path} is empty; write {{\"positive\": ..., \"negative\": ...}} a line")
    return pairs


def read_lines(path: str | Path, what: str = "prompts file", setting: str = "subspace.prompts"
               ) -> list[tuple[int, dict[str, Any]]]:
    """Line number and object of every line of a JSON-lines file that is not blank."""
    file = data_file(path, what, setting)
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise SubspaceError(f"{what} {path} is not UTF-8 text ({error.reason} at byte {error.start})") from error
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise SubspaceError(f"{what} {path}, line {number} is not JSON: {error}") from error
        if not isinstance(record, dict):
            raise SubspaceError(f"{what} {path}, line {number} is a {type(record).__name__}, not an object with \"positive\" and "
                                "\"negative\"" if what == "prompts file" else
                                f"{what} {path}, line {number} is a {type(record).__name__}, not an object")
        records.append((number, record))
    return records


def data_file(path: str | Path, what: str = "prompts file", setting: str = "subspace.prompts") -> Path:
    """The file that `path` names, here or in the package's data."""
    try:
        file = find_data(path)
    except FileNotFoundError:
        raise SubspaceError(f"there is no {what} {path} (looked in {Path.cwd()}); set {setting}=FILE.jsonl") from None
    if not file.is_file():
        raise SubspaceError(f"{what} {path} is a folder; set {setting}=FILE.jsonl")
    return file


def tokenize_pairs(tokenizer: PreTrainedTokenizerBase, pairs: list[ContrastPair], model: PreTrainedModel,
                   positions: int) -> list[TokenPair]:
    """Each pair's ids, checked against the model, with its trailing shared tokens, at least 1, at most `positions`."""
    return [_token_pair(tokenizer, pair, model, positions) for pair in pairs]


def check_ids(ids: tuple[int, ...], model: PreTrainedModel, where: str) -> None:
    """Refuse a prompt that this model cannot take."""
    config = model.config.get_text_config()
    longest = getattr(config, "max_position_embeddings", None) or float("inf")
    if len(ids) > longest or max(ids) >= config.vocab_size:
        problem = (f"has {len(ids)} tokens, the model takes {longest}" if len(ids) > longest else
                   f"has token {max(ids)}, the model knows {config.vocab_size}")
        raise SubspaceError(f"{where}: a prompt {problem}; do these prompts belong to this model?")


def is_prompt(value: Any) -> bool:
    """Text or chat messages, and not empty."""
    if isinstance(value, list):
        return bool(value) and all(isinstance(message, dict) and isinstance(message.get("role"), str)
                                   and isinstance(message.get("content"), str) for message in value)
    return isinstance(value, str) and value != ""


def _pair(record: dict[str, Any], where: str, number: int) -> ContrastPair:
    for key in ("positive", "negative"):
        if key not in record:
            raise SubspaceError(f"{where} has no \"{key}\" (it has: {', '.join(record) or 'nothing'})")
        if not is_prompt(record[key]):
            raise SubspaceError(f"{where}: \"{key}\" must be text or chat messages "
                                "[{\"role\": ..., \"content\": ...}, ...], and not empty")
    if not isinstance(kind := record.get("kind"), str | None):
        raise SubspaceError(f"{where}: \"kind\" must be text, got {kind!r}")
    return ContrastPair(record["positive"], record["negative"], kind, number)


def _token_pair(tokenizer: PreTrainedTokenizerBase, pair: ContrastPair, model: PreTrainedModel, positions: int) -> TokenPair:
    where = f"contrast prompts, line {pair.line}"
    try:
        positive, negative = map(tuple, encode_prompts(tokenizer, [pair.positive, pair.negative]))
    except ModelError as error:
        raise SubspaceError(f"{where}: {error}") from error
    for ids in (positive, negative):
        check_ids(ids, model, where)
    if positive == negative:
        raise SubspaceError(f"{where}: positive and negative are the same {len(positive)} "
                            "tokens; do these prompts belong to this model?")
    shared = 0
    while shared < min(len(positive), len(negative)) and positive[-1 - shared] == negative[-1 - shared]:
        shared += 1
    return TokenPair(positive, negative, min(max(shared, 1), positions))
