"""Runs contrast pairs through a model and yields their activations in blocks. Only one block is in memory at a time.

Not covered: padding in families whose attention is not causal.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from routed_rl.errors import SubspaceError
from routed_rl.extraction.contrast import TokenPair
from routed_rl.extraction.job import Job
from routed_rl.extraction.responses import respond
from routed_rl.model.prompts import padded
from routed_rl.model.stream import capturing, eval_mode
from routed_rl.subspace.samples import Reservoir, Samples

Sequences = list[tuple[int, ...]]
Read = Callable[[Sequences], list[Tensor]]
"""Function that runs B prompts and returns their activations: for each layer a tensor (B, offsets, D), float32 on the CPU, where
an offset is a position counted from the end of the prompt."""
BATCHES_PER_BLOCK = 4


def kinds_of(pairs: Sequence[TokenPair]) -> dict[str | int, int]:
    """Number the kinds of the pairs in the order in which they first occur, and return {kind: number}. These are the numbers in
    `Samples.kind_R`."""
    return {kind: index for index, kind in enumerate(dict.fromkeys(pair.kind for pair in pairs))}


def batches(sequences: Sequence[Sequence[int]], size: int) -> Iterator[list[int]]:
    """Divide sequences into batches by length. Yields lists of at most `size` indices of sequences, the longest sequences
    first."""
    order = sorted(range(len(sequences)), key=lambda place: -len(sequences[place]))
    for start in range(0, len(order), size):
        yield order[start:start + size]


def read_prompt_end(model: PreTrainedModel, hook: str, offsets: int) -> Read:
    """Return a function that reads the model's stream at the hook point `hook` at the last `offsets` positions of each prompt,
    the last position first.

    Prompts are padded on the right, so that with causal attention no token sees the padding, and positions count from 0 in every
    family.
    """
    def read(sequences: Sequences) -> list[Tensor]:
        ids, mask = padded(sequences)
        positions = (mask.sum(1, keepdim=True) - 1 - torch.arange(offsets)).clamp(min=0)
        with capturing(model, positions.to(model.device), hook) as captured:
            # Without the unembedding, because its logits would take most of the memory.
            model.base_model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False)
        return [values.cpu() for values in captured]

    return read


def read_response_mean(job: Job) -> Read:
    """Return a function that lets the model write a response to each prompt and reads the mean of the stream over the response's
    tokens. The mean stands at the only offset, 0."""
    generator = torch.Generator().manual_seed(job.seed)

    def read(sequences: Sequences) -> list[Tensor]:
        _, means_LBD = respond(job.model, sequences, job.respond, generator, job.config.hook)
        return list(means_LBD.unsqueeze(2))

    return read


def gather(job: Job, pairs: Sequence[TokenPair], take: Callable[[Samples], None] | None = None, sample: int = 64) -> Reservoir:
    """Run all pairs through the model once. `take` is called with every block of activations, unless it is None. Returns a
    reservoir of bounded size: all activations of at most `subspace.held_out` pairs, for the held-out figures, and `sample`
    activations drawn from all pairs."""
    foldable = torch.tensor([place for place, pair in enumerate(pairs) if pair.fold != -1], dtype=torch.long)
    reservoir = Reservoir(foldable, sum(pair.positions for pair in pairs), job.config.held_out, sample)
    for block in blocks(job, pairs):
        reservoir.add(block)
        if take is not None:
            take(block)
    return reservoir


def blocks(job: Job, pairs: Sequence[TokenPair]) -> Iterator[Samples]:
    """Yield the activations of the pairs under both personas, in the order of the pairs, in blocks of a few batches of prompts.

    A prompt that several pairs of a block share is run once. SubspaceError if an activation is not finite.
    """
    size, kinds = job.config.batch_size, kinds_of(pairs)
    read = read_response_mean(job) if job.tokens == "response_mean" else read_prompt_end(
        job.model, job.config.hook, max(pair.positions for pair in pairs))
    segments = list(_segments(pairs, BATCHES_PER_BLOCK * size))
    total, done = sum(len(sequences) for _, sequences in segments), 0
    with eval_mode(job.model), torch.no_grad():
        for members, sequences in segments:
            offsets = max(pairs[member].positions for member in members)
            stream = torch.empty(job.layers, len(sequences), offsets, job.width)
            for batch in batches(sequences, size):
                for layer, values in enumerate(read([sequences[place] for place in batch])):
                    stream[layer, batch] = values[:, :offsets]
                done += len(batch)
                if job.progress is not None:
                    job.progress(done, total)
            if not bool((fine := stream.isfinite().flatten(1).all(dim=1)).all()):
                raise SubspaceError(f"the model's stream is not finite at layer {int(fine.int().argmin())}, so nothing can "
                                    "be extracted from it: its weights may be too large")
            yield _block(pairs, kinds, members, sequences, stream, job.config.last_weight)


def _segments(pairs: Sequence[TokenPair], most: int) -> Iterator[tuple[list[int], Sequences]]:
    """Cut the pairs, in their order, into segments with at most `most` distinct prompts (a single pair may have more). Yields the
    indices of a segment's pairs, and its distinct prompts."""
    members: list[int] = []
    sequences: dict[tuple[int, ...], None] = {}
    for index, pair in enumerate(pairs):
        new = [ids for ids in dict.fromkeys((pair.positive, pair.negative)) if ids not in sequences]
        if members and len(sequences) + len(new) > most:
            yield members, list(sequences)
            members, sequences, new = [], {}, list(dict.fromkeys((pair.positive, pair.negative)))
        members.append(index)
        sequences |= dict.fromkeys(new)
    yield members, list(sequences)


def _block(pairs: Sequence[TokenPair], kinds: dict[str | int, int], members: list[int], sequences: Sequences,
           stream_LSOD: Tensor, last_weight: float) -> Samples:
    place = {ids: index for index, ids in enumerate(sequences)}
    rows = [(member, pairs[member], offset) for member in members for offset in range(pairs[member].positions)]
    offset = torch.tensor([offset for _, _, offset in rows])
    positive, negative = (stream_LSOD[:, torch.tensor([place[ids] for ids in side]), offset] for side in (
        [pair.positive for _, pair, _ in rows], [pair.negative for _, pair, _ in rows]))
    folds = [pair.fold for _, pair, _ in rows]
    return Samples(positive, negative, torch.tensor([member for member, _, _ in rows]),
                   torch.tensor([kinds[pair.kind] for _, pair, _ in rows]), offset, last_weight,
                   None if None in folds else torch.tensor(folds))
