"""Contrast pairs -> blocks of activations, batch by batch. What a block held is gone when the next one is made.

Not covered: padding tricks of families whose attention is not causal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from routed_rl.config import SubspaceConfig
from routed_rl.errors import SubspaceError
from routed_rl.extraction.contrast import ContrastPair, TokenPair
from routed_rl.extraction.responses import Respond, respond
from routed_rl.model.mode import eval_mode
from routed_rl.model.stream import capturing
from routed_rl.model.targets import decoder_layers
from routed_rl.subspace.samples import Samples, concatenated

Progress = Callable[[int, int], None]
"""(distinct prompts done, in all) -> None, after each batch."""
Sequences = list[tuple[int, ...]]
Read = Callable[[Sequences], list[Tensor]]
"""Prompts -> their stream by layer, (B, offsets, D) float32 on the CPU."""
BATCHES_PER_BLOCK = 4


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs and their tokens, with what must be known of all of them before the first is run."""

    pairs: list[ContrastPair]
    tokens: list[TokenPair]

    def kinds(self) -> dict[object, int]:
        """Name of each kind (for a pair without one its index) and the index it has in `Samples`."""
        names: dict[object, int] = {}
        for index, pair in enumerate(self.pairs):
            names.setdefault(index if pair.kind is None else pair.kind, len(names))
        return names

    def alone(self) -> Tensor:
        """Kinds (indices) that are a pair without a name."""
        return torch.tensor([index for name, index in self.kinds().items() if isinstance(name, int)], dtype=torch.long)

    def with_fold(self) -> Tensor:
        """Pairs (indices) that may be kept for held-out figures."""
        return torch.tensor([index for index, pair in enumerate(self.pairs) if pair.fold != -1], dtype=torch.long)

    def rows(self) -> int:
        return sum(token.positions for token in self.tokens)


def read_prompt_end(model: PreTrainedModel, hook: str, offsets: int) -> Read:
    """The last `offsets` positions of each prompt, the last one first.

    Padded on the right: with causal attention no token sees the padding and positions count from 0 in every family.
    """
    def read(sequences: Sequences) -> list[Tensor]:
        lengths = torch.tensor([len(ids) for ids in sequences])
        ids = torch.zeros(len(sequences), int(lengths.max()), dtype=torch.long)
        for row, sequence in enumerate(sequences):
            ids[row, : lengths[row]] = torch.tensor(sequence)
        mask = torch.arange(ids.shape[1]) < lengths.unsqueeze(1)
        positions = (lengths.unsqueeze(1) - 1 - torch.arange(offsets)).clamp(min=0)
        with capturing(model, positions.to(model.device), hook) as captured:
            # Without the unembedding: its logits would be most of the memory.
            model.base_model(input_ids=ids.to(model.device), attention_mask=mask.long().to(model.device), use_cache=False)
        return [values.cpu() for values in captured]

    return read


def read_response_mean(model: PreTrainedModel, config: SubspaceConfig, settings: Respond) -> Read:
    """The mean over the tokens of a response that the model writes itself; one offset."""
    generator = torch.Generator().manual_seed(settings.seed)

    def read(sequences: Sequences) -> list[Tensor]:
        _, means = respond(model, sequences, settings, generator, config.hook)
        return [mean.unsqueeze(1) for mean in means]

    return read


def blocks(model: PreTrainedModel, pairs: Pairs, config: SubspaceConfig, read: Read,
           progress: Progress | None = None) -> Iterator[Samples]:
    """The stream under both personas, in the pairs' order, a few batches of prompts at a time.

    A prompt that several pairs of a block share is run once.
    """
    kinds = pairs.kinds()
    segments = list(_segments(pairs.tokens, BATCHES_PER_BLOCK * config.batch_size))
    total, done = sum(len(sequences) for _, sequences in segments), 0
    layers, width = len(decoder_layers(model)), model.config.get_text_config().hidden_size
    with evaluating(model):
        for members, sequences in segments:
            offsets = max(pairs.tokens[member].positions for member in members)
            stream = torch.empty(layers, len(sequences), offsets, width)
            order = sorted(range(len(sequences)), key=lambda index: -len(sequences[index]))
            for start in range(0, len(order), config.batch_size):
                batch = order[start:start + config.batch_size]
                for layer, values in enumerate(read([sequences[index] for index in batch])):
                    stream[layer, batch] = values[:, :offsets]
                done += len(batch)
                if progress is not None:
                    progress(done, total)
            if not bool((fine := stream.isfinite().flatten(1).all(dim=1)).all()):
                raise SubspaceError(f"the model's stream is not finite at layer {int(fine.int().argmin())}, so nothing can "
                                    "be extracted from it: its weights may be too large")
            yield _block(pairs, kinds, members, sequences, stream, config.last_weight)


def collect(model: PreTrainedModel, pairs: list[ContrastPair], tokens: list[TokenPair], config: SubspaceConfig,
            progress: Progress | None = None) -> Samples:
    """All prompt ends in memory at once: for a few prompts."""
    read = read_prompt_end(model, config.hook, max(token.positions for token in tokens))
    return concatenated(list(blocks(model, Pairs(pairs, tokens), config, read, progress)))


def _segments(tokens: list[TokenPair], most: int) -> Iterator[tuple[list[int], Sequences]]:
    """Pairs in their order, cut where their distinct prompts would be more than `most`."""
    members: list[int] = []
    sequences: dict[tuple[int, ...], None] = {}
    for index, pair in enumerate(tokens):
        new = [ids for ids in dict.fromkeys((pair.positive, pair.negative)) if ids not in sequences]
        if members and len(sequences) + len(new) > most:
            yield members, list(sequences)
            members, sequences, new = [], {}, list(dict.fromkeys((pair.positive, pair.negative)))
        members.append(index)
        sequences |= dict.fromkeys(new)
    yield members, list(sequences)


def _block(pairs: Pairs, kinds: dict[object, int], members: list[int], sequences: Sequences, stream_LSOD: Tensor,
           last_weight: float) -> Samples:
    place = {ids: index for index, ids in enumerate(sequences)}
    rows = [(member, offset) for member in members for offset in range(pairs.tokens[member].positions)]
    offset = torch.tensor([offset for _, offset in rows])
    sides = [stream_LSOD[:, torch.tensor([place[ids] for ids in side]), offset]
             for side in ([pairs.tokens[member].positive for member, _ in rows],
                          [pairs.tokens[member].negative for member, _ in rows])]
    kind = [kinds[member if pairs.pairs[member].kind is None else pairs.pairs[member].kind] for member, _ in rows]
    folds = [pairs.pairs[member].fold for member, _ in rows]
    fold = None if None in folds else torch.tensor(folds)
    return Samples(sides[0], sides[1], torch.tensor([member for member, _ in rows]), torch.tensor(kind), offset, last_weight,
                   fold)


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Eval mode and no gradients."""
    with eval_mode(model), torch.no_grad():
        yield
