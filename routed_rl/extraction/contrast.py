"""Contrast prompts: reads pairs from a file or from memory, and turns them into token ids that are checked against the model."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from routed_rl.artifacts import find_data, json_lines, require_text
from routed_rl.canary import without_canary
from routed_rl.errors import ModelError, SubspaceError
from routed_rl.model.prompts import encode_prompts

Prompt = str | list[dict[str, str]]


@dataclass(frozen=True)
class ContrastPair:
    """Two prompts that differ in the persona alone. `positive` shows the persona that must not grow."""

    positive: Prompt
    negative: Prompt
    kind: str | None = None
    """The name of the pair's kind. The activations of pairs of the same kind are averaged. A pair with None is a kind of its
    own."""
    line: int = 0
    """The number of the pair's line in its file, counted from 1, for messages."""
    fold: int | None = None
    """The half of the pairs (0 or 1) to which the pair belongs in held-out figures, or -1 for neither; None if the halves are
    drawn at random."""


@dataclass(frozen=True)
class TokenPair:
    """A contrast pair as token ids. `positions`: the number of last positions of each prompt at which the stream is read. `fold`:
    as in `ContrastPair`."""

    positive: tuple[int, ...]
    negative: tuple[int, ...]
    positions: int
    kind: str | int
    """The name of the pair's kind or, for a pair without a kind, the pair's index among the pairs."""
    fold: int | None


def read_prompts(path: str | Path) -> list[ContrastPair]:
    """Read the contrast pairs in a JSON-lines file. `path` is relative to the working directory or to the package's data. Blank
    lines are skipped. SubspaceError for a line that is no pair."""
    pairs = []
    for number, record in read_lines(path, prompts=("positive", "negative")):
        pairs.append(_pair(record, f"prompts file {path}, line {number}", number))
    return pairs


def pairs_of(given: Iterable[Any]) -> list[ContrastPair]:
    """Make contrast pairs from objects in memory. Each object is a tuple (positive, negative), or a mapping with the keys of a
    line in a prompts file. SubspaceError for any other object."""
    pairs = []
    for number, each in enumerate(given, start=1):
        where = f"contrast prompts, pair {number}"
        if isinstance(each, (list, tuple)) and len(each) == 2:
            each = {"positive": each[0], "negative": each[1]}
        if not isinstance(each, dict):
            raise SubspaceError(f"{where} is {each!r:.60}, no pair; write (positive, negative)")
        require_text(each, where, SubspaceError, prompts=("positive", "negative"))
        pairs.append(_pair(each, where, number))
    if not pairs:
        raise SubspaceError("contrast prompts: the list is empty; give pairs (positive, negative)")
    return pairs


def _pair(record: dict[str, Any], where: str, number: int) -> ContrastPair:
    if not isinstance(kind := record.get("kind"), str | None):
        raise SubspaceError(f"{where}: \"kind\" must be text, got {kind!r}")
    return ContrastPair(record["positive"], record["negative"], kind, number)


def read_lines(path: str | Path, what: str = "prompts file", setting: str = "subspace.prompts", *, prompts: Sequence[str] = (),
               texts: Sequence[str] = ()) -> list[tuple[int, dict[str, Any]]]:
    """Read a JSON-lines file. Returns, for every line that is not blank, its number and its object. `what`: the words for the
    file in messages. `setting`: the setting that names the file. SubspaceError if there is no line, or if an object lacks a key
    in `prompts` or `texts`. The value of a key in `texts` must be text, and that of a key in `prompts` text or chat messages;
    neither may be empty."""
    file = data_file(path, what, setting)
    records = []
    for number, record in json_lines(file, f"{what} {path}", SubspaceError):
        require_text(record, f"{what} {path}, line {number}", SubspaceError, prompts=prompts, texts=texts)
        records.append((number, without_canary(record)))
    if not records:
        shape = ", ".join(f"\"{key}\": ..." for key in (*prompts, *texts))
        raise SubspaceError(f"{what} {path} is empty; write {{{shape}}} a line")
    return records


def data_file(path: str | Path, what: str = "prompts file", setting: str = "subspace.prompts") -> Path:
    """Find the file that `path` names, in the working directory or in the package's data. SubspaceError if there is none. `what`,
    `setting`: as in `read_lines`."""
    try:
        file = find_data(path)
    except FileNotFoundError:
        raise SubspaceError(f"there is no {what} {path} (looked in {Path.cwd()}); set {setting}=FILE.jsonl") from None
    if not file.is_file():
        raise SubspaceError(f"{what} {path} is a folder; set {setting}=FILE.jsonl")
    return file


def tokenize_pairs(tokenizer: PreTrainedTokenizerBase, pairs: list[ContrastPair], model: PreTrainedModel,
                   positions: int) -> list[TokenPair]:
    """Turn contrast pairs into token ids, and check these against the model. The number of positions at which a pair is read is
    the number of last tokens that its two prompts have in common, but at least 1 and at most `positions`."""
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
    """Return the token ids of a prompt. SubspaceError, which names the prompt's place `where`, if this model cannot take the
    prompt."""
    try:
        ids = tuple(encode_prompts(tokenizer, [prompt])[0])
    except ModelError as error:
        raise SubspaceError(f"{where}: {error}") from error
    check_ids(ids, model, where)
    return ids


def check_ids(ids: tuple[int, ...], model: PreTrainedModel, where: str) -> None:
    """SubspaceError, which names the place `where`, if there are more ids than the model takes, or an id lies outside the model's
    vocabulary."""
    config = model.config.get_text_config()
    longest = getattr(config, "max_position_embeddings", None) or float("inf")
    if len(ids) > longest or max(ids) >= config.vocab_size:
        problem = (f"has {len(ids)} tokens, the model takes {longest}" if len(ids) > longest else
                   f"has token {max(ids)}, the model knows {config.vocab_size}")
        raise SubspaceError(f"{where}: a prompt {problem}; do these prompts belong to this model?")
