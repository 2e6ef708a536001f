"""Contrast prompts -> activations -> `Subspace`. Not covered: prompts that need chat template options of their own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from routed_rl.artifacts import find_data, sha256
from routed_rl.config import SubspaceConfig
from routed_rl.errors import ModelError, SubspaceError
from routed_rl.model.prompts import encode_prompts
from routed_rl.model.stream import capturing
from routed_rl.model.targets import decoder_layers
from routed_rl.subspace import Provenance, Samples, Size, Subspace, find, measure_quality
from routed_rl.subspace.methods import fit, stream_sample

Prompt = str | list[dict[str, str]]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ContrastPair:
    """One prompt under both personas; `positive` is the one that must not grow."""

    positive: Prompt
    negative: Prompt
    kind: str | None = None
    """Pairs of one kind are averaged; a pair without one stands for itself."""
    line: int = 0
    """In its file, from 1."""


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
    file = _prompts_file(path)
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise SubspaceError(f"prompts file {path} is not UTF-8 text ({error.reason} at byte {error.start})") from error
    pairs = [_parse(line, f"prompts file {path}, line {number}", number)
             for number, line in enumerate(lines, start=1) if line.strip()]
    if not pairs:
        raise SubspaceError(f"prompts file {path} is empty; write {{\"positive\": ..., \"negative\": ...}} a line")
    return pairs


def extract(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: SubspaceConfig, *, model_path: str,
            model_hash: str, seed: int, progress: Progress | None = None) -> Subspace:
    """The subspace that `config` asks for, with its quality; `seed` draws the random one. The model is left as it was.

    `progress(done, total)` counts prompts. Raises SubspaceError for prompts, ranks or files that do not fit the model.
    """
    width, layers = model.config.get_text_config().hidden_size, len(decoder_layers(model))
    if config.method == "file":
        subspace = Subspace.load(config.path or "")
        subspace.check_model(model=model_path, model_hash=model_hash, width=width, layers=layers)
        return subspace
    if (config.rank or 0) > width:
        raise SubspaceError(f"subspace.rank={config.rank} is more than the width {width} of the stream of "
                            f"{model_path}; lower subspace.rank")
    path = find_prompts(config, model_path)
    pairs = read_prompts(path)
    tokens = tokenize_pairs(tokenizer, pairs, model, config.positions)
    samples = collect(model, pairs, tokens, config, progress)
    found = find(config.method, samples, _size(config), seed)
    details = {"pairs": len(pairs), "kinds": len({pair.kind for pair in pairs if pair.kind is not None}), "seed": seed,
               "positions": config.positions, "last_weight": config.last_weight}
    provenance = Provenance(config.method, model_path, model_hash, width, layers, config.rank, str(path),
                            sha256(_prompts_file(path)), details)
    return Subspace(found.directions, found.axes, found.axis_names, found.scales, found.units, stream_sample(samples),
                    provenance, _quality(samples, config, found.directions))


def tokenize_pairs(tokenizer: PreTrainedTokenizerBase, pairs: list[ContrastPair], model: PreTrainedModel,
                   positions: int) -> list[TokenPair]:
    """Each pair's ids, checked against the model, with its trailing shared tokens, at least 1, at most `positions`."""
    vocabulary = model.config.get_text_config().vocab_size
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None) or float("inf")
    return [_token_pair(tokenizer, pair, vocabulary, longest, positions) for pair in pairs]


def collect(model: PreTrainedModel, pairs: list[ContrastPair], tokens: list[TokenPair], config: SubspaceConfig,
            progress: Progress | None = None) -> Samples:
    """Run every distinct prompt once and keep both personas' stream at the positions that count."""
    kinds: dict[object, int] = {}
    kind_of = [kinds.setdefault(index if pair.kind is None else pair.kind, len(kinds))
               for index, pair in enumerate(pairs)]
    rows = torch.tensor([(index, kind_of[index], offset) for index, pair in enumerate(tokens)
                         for offset in range(pair.positions)])
    sequences: dict[tuple[int, ...], int] = {}
    sides = [[sequences.setdefault(ids, len(sequences)) for ids in side]
             for side in ([pair.positive for pair in tokens], [pair.negative for pair in tokens])]
    sequence_of = torch.cat([torch.tensor(side)[rows[:, 0]] for side in sides])
    offset_of = rows[:, 2].repeat(2)
    stream = torch.empty(len(decoder_layers(model)), len(sequence_of), model.config.get_text_config().hidden_size)
    offsets = int(rows[:, 2].max()) + 1
    place = torch.empty(len(sequences), dtype=torch.long)
    for batch, captured in activations(model, list(sequences), offsets, config.batch_size, progress):
        place.fill_(-1)
        place[batch] = torch.arange(len(batch))
        here = (place[sequence_of] >= 0).nonzero().squeeze(1)
        for layer, values in enumerate(captured):
            stream[layer, here] = values[place[sequence_of[here]], offset_of[here]]
    pair_R, kind_R, offset_R = rows.unbind(1)
    return Samples(stream[:, :len(rows)], stream[:, len(rows):], pair_R, kind_R, offset_R, config.last_weight)


@torch.no_grad()
def activations(model: PreTrainedModel, sequences: list[tuple[int, ...]], offsets: int, batch_size: int,
                progress: Progress | None) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Yield indices of a batch and its stream by layer, (B, offsets, D) on the CPU; offset 0 is the last token.

    Padded on the right: with causal attention no token sees the padding and positions count from 0 in every family.
    """
    order = sorted(range(len(sequences)), key=lambda index: -len(sequences[index]))
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(order), batch_size):
            batch = torch.tensor(order[start:start + batch_size])
            lengths = torch.tensor([len(sequences[index]) for index in batch])
            ids = torch.zeros(len(batch), int(lengths.max()), dtype=torch.long)
            for row, index in enumerate(batch):
                ids[row, : lengths[row]] = torch.tensor(sequences[index])
            mask = torch.arange(ids.shape[1]) < lengths.unsqueeze(1)
            positions = (lengths.unsqueeze(1) - 1 - torch.arange(offsets)).clamp(min=0)
            with capturing(model, positions.to(model.device)) as captured:
                # Without the unembedding: its logits would be most of the memory.
                model.base_model(input_ids=ids.to(model.device), attention_mask=mask.long().to(model.device),
                                 use_cache=False)
            yield batch, [values.cpu() for values in captured]
            if progress is not None:
                progress(start + len(batch), len(order))
    finally:
        model.train(was_training)


def _size(config: SubspaceConfig) -> Size:
    return Size(config.rank, config.weakest)


def _quality(samples: Samples, config: SubspaceConfig, directions: list[Tensor]) -> dict[str, Any]:
    if config.method != "random":
        return measure_quality(samples, directions, partial(fit, config.method, size=_size(config)), config.rank)
    quality = measure_quality(samples, directions, lambda _half: directions, config.rank)
    # Drawn, not fitted: that it is the same on both halves says nothing.
    return quality | {"layers": [row | {"stability": None} for row in quality["layers"]]}


def _prompts_file(path: str | Path) -> Path:
    try:
        file = find_data(path)
    except FileNotFoundError:
        raise SubspaceError(f"there is no prompts file {path} (looked in {Path.cwd()}); "
                            "set subspace.prompts=FILE.jsonl") from None
    if not file.is_file():
        raise SubspaceError(f"prompts file {path} is a folder; set subspace.prompts=FILE.jsonl")
    return file


def _parse(line: str, where: str, number: int) -> ContrastPair:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise SubspaceError(f"{where} is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise SubspaceError(f"{where} is a {type(record).__name__}, not an object with \"positive\" and \"negative\"")
    for key in ("positive", "negative"):
        if key not in record:
            raise SubspaceError(f"{where} has no \"{key}\" (it has: {', '.join(record) or 'nothing'})")
        if not _is_prompt(record[key]):
            raise SubspaceError(f"{where}: \"{key}\" must be text or chat messages "
                                "[{\"role\": ..., \"content\": ...}, ...], and not empty")
    if not isinstance(kind := record.get("kind"), str | None):
        raise SubspaceError(f"{where}: \"kind\" must be text, got {kind!r}")
    return ContrastPair(record["positive"], record["negative"], kind, number)


def _is_prompt(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(message, dict) and isinstance(message.get("role"), str)
                                   and isinstance(message.get("content"), str) for message in value)
    return isinstance(value, str) and value != ""


def _token_pair(tokenizer: PreTrainedTokenizerBase, pair: ContrastPair, vocabulary: int, longest: float,
                positions: int) -> TokenPair:
    try:
        positive, negative = map(tuple, encode_prompts(tokenizer, [pair.positive, pair.negative]))
    except ModelError as error:
        raise SubspaceError(f"contrast prompts, line {pair.line}: {error}") from error
    for ids in (positive, negative):
        if not ids or len(ids) > longest or max(ids) >= vocabulary:
            problem = ("has no tokens" if not ids else f"has {len(ids)} tokens, the model takes {longest}"
                       if len(ids) > longest else f"has token {max(ids)}, the model knows {vocabulary}")
            raise SubspaceError(f"contrast prompts, line {pair.line}: a prompt {problem}; do these prompts belong to "
                                "this model?")
    if positive == negative:
        raise SubspaceError(f"contrast prompts, line {pair.line}: positive and negative are the same {len(positive)} "
                            "tokens; do these prompts belong to this model?")
    shared = 0
    while shared < min(len(positive), len(negative)) and positive[-1 - shared] == negative[-1 - shared]:
        shared += 1
    return TokenPair(positive, negative, min(max(shared, 1), positions))
