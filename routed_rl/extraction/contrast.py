"""Contrast prompts: reads pairs from a file or from memory, and turns them into token ids that are checked against the model."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from routed_rl.artifacts import find_data
from routed_rl.canary import without_canary
from routed_rl.errors import ModelError, SubspaceError, reading
from routed_rl.model.prompts import encode_prompts

Prompt = str | list[dict[str, str]]


@dataclass(frozen=True)
class ContrastPair:
    """One prompt under both personas; `positive` is the one that must not grow."""

    positive: Prompt
    negative: Prompt
    kind: str | None = None
    """Pairs of the same kind are averaged. A pair with None is a kind of its own."""
    line: int = 0
    """Number of the pair's line in the file, counted from 1."""
    fold: int | None = None
    """The half (0 or 1) to which the pair belongs when figures are held out, or -1 for neither; None if the halves are drawn at
    random."""


@dataclass(frozen=True)
class TokenPair:
    """A pair as token ids, and how many of its last positions are used."""

    positive: tuple[int, ...]
    negative: tuple[int, ...]
    positions: int
    kind: str | int
    """Name of the kind. For a pair without a kind, its index among the pairs."""
    fold: int | None


def read_prompts(path: str | Path) -> list[ContrastPair]:
    """The pairs in a JSON-lines file. `path` is relative to the working directory or to the package's data; blank lines are
    skipped."""
    pairs = []
    for number, record in read_lines(path, prompts=("positive", "negative")):
        if not isinstance(kind := record.get("kind"), str | None):
            raise SubspaceError(f"prompts file {path}, line {number}: \"kind\" must be text, got {kind!r}")
        pairs.append(ContrastPair(record["positive"], record["negative"], kind, number))
    return pairs


def pairs_of(given: Iterable[Any]) -> list[ContrastPair]:
    """Contrast pairs from objects in memory. Each object is a pair (positive, negative), or a mapping as in a line of the
    file."""
    pairs = []
    for number, each in enumerate(given, start=1):
        where = f"contrast prompts, pair {number}"
        if isinstance(each, (list, tuple)) and len(each) == 2:
            each = {"positive": each[0], "negative": each[1]}
        if not isinstance(each, dict):
            raise SubspaceError(f"{where} is {each!r:.60}, no pair; write (positive, negative)")
        require(each, where, ("positive", "negative"), ())
        pairs.append(ContrastPair(each["positive"], each["negative"], each.get("kind"), number))
    if not pairs:
        raise SubspaceError("contrast prompts: the list is empty; give pairs (positive, negative)")
    return pairs


def read_lines(path: str | Path, what: str = "prompts file", setting: str = "subspace.prompts", *, prompts: Sequence[str] = (),
               texts: Sequence[str] = ()) -> list[tuple[int, dict[str, Any]]]:
    """Line number and object of every line of a JSON-lines file that is not blank. SubspaceError if there is no such line, or if
    an object lacks one of these keys: the values of `texts` must be text, those of `prompts` text or chat messages, and none may
    be empty."""
    file = data_file(path, what, setting)
    with reading(SubspaceError, f"{what} {path} is not UTF-8 text"):
        lines = file.read_text(encoding="utf-8").split("\n")
    records = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            where = f"{what} {path}, line {number}"
            with reading(SubspaceError, f"{where} is not JSON"):
                record = json.loads(line)
            if not isinstance(record, dict):
                raise SubspaceError(f"{where} is a {type(record).__name__}, not an object")
            require(record, where, prompts, texts)
            records.append((number, without_canary(record)))
    if not records:
        shape = ", ".join(f"\"{key}\": ..." for key in (*prompts, *texts))
        raise SubspaceError(f"{what} {path} is empty; write {{{shape}}} a line")
    return records


def data_file(path: str | Path, what: str = "prompts file", setting: str = "subspace.prompts") -> Path:
    """The file that `path` names, in the working directory or in the package's data."""
    try:
        file = find_data(path)
    except FileNotFoundError:
        raise SubspaceError(f"there is no {what} {path} (looked in {Path.cwd()}); set {setting}=FILE.jsonl") from None
    if not file.is_file():
        raise SubspaceError(f"{what} {path} is a folder; set {setting}=FILE.jsonl")
    return file


def require(record: dict[str, Any], where: str, prompts: Sequence[str], texts: Sequence[str]) -> None:
    """SubspaceError, which names the place `where`, unless the record has all of these keys with values of the right type that
    are not empty."""
    for key in (*prompts, *texts):
        if key not in record:
            raise SubspaceError(f"{where} has no \"{key}\" (it has: {', '.join(record) or 'nothing'})")
        value = record[key]
        if value == "" or not (isinstance(value, str) or (key in prompts and _are_messages(value))):
            kinds = "text or chat messages [{\"role\": ..., \"content\": ...}, ...]" if key in prompts else "text"
            raise SubspaceError(f"{where}: \"{key}\" must be {kinds}, and not empty")


def _are_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(
        isinstance(message, dict) and isinstance(message.get("role"), str) and isinstance(message.get("content"), str)
        for message in value)


def tokenize_pairs(tokenizer: PreTrainedTokenizerBase, pairs: list[ContrastPair], model: PreTrainedModel,
                   positions: int) -> list[TokenPair]:
    """The token ids of each pair, checked against the model, and how many last tokens of the pair are used: as many as both
    prompts share, at least 1 and at most `positions`."""
    found = []
    for index, pair in enumerate(pairs):
        where = f"contrast prompts, line {pair.line}"
        positive, negative = (prompt_ids(tokenizer, side, model, where) for side in (pair.positive, pair.negative))
        if positive == negative:
            raise SubspaceError(f"{where}: positive and negative are the same {len(positive)} "
                                "tokens; do these prompts belong to this model?")
        shared = 0
        while shared < min(len(positive), len(negative)) and positive[-1 - shared] == negative[-1 - shared]:
            shared += 1
        kind = index if pair.kind is None else pair.kind
        found.append(TokenPair(positive, negative, min(max(shared, 1), positions), kind, pair.fold))
    return found


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, model: PreTrainedModel, where: str) -> tuple[int, ...]:
    """The token ids of a prompt. SubspaceError, which names the place `where`, if this model cannot take the prompt."""
    try:
        ids = tuple(encode_prompts(tokenizer, [prompt])[0])
    except ModelError as error:
        raise SubspaceError(f"{where}: {error}") from error
    check_ids(ids, model, where)
    return ids


def check_ids(ids: tuple[int, ...], model: PreTrainedModel, where: str) -> None:
    """SubspaceError for more tokens than this model takes, and for tokens that it does not know."""
    config = model.config.get_text_config()
    longest = getattr(config, "max_position_embeddings", None) or float("inf")
    if len(ids) > longest or max(ids) >= config.vocab_size:
        problem = (f"has {len(ids)} tokens, the model takes {longest}" if len(ids) > longest else
                   f"has token {max(ids)}, the model knows {config.vocab_size}")
        raise SubspaceError(f"{where}: a prompt {problem}; do these prompts belong to this model?")
