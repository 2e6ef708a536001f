"""Computes the mean of a model's stream over the tokens of given completions, whichever model wrote them.

Not covered: episodes, in which some turns are not the model's.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from routed_rl.extraction.activations import batches
from routed_rl.model.prompts import encode_prompts, ids_of, padded
from routed_rl.model.stream import eval_mode, reading
from routed_rl.model.targets import decoder_layers

Said = tuple[Any, str]
"""A prompt, as text or chat messages, and the text of a completion."""


def pooled(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, said: Sequence[Said], batch_size: int, *,
           hook: str = "resid_post", layers: Sequence[int] | None = None) -> Tensor:
    """Return the mean of the stream over the tokens of each of B completions, at each of L layers, (L, B, D) float32 on the CPU.
    The token that ends a completion does not count. A completion without a token is read at the last token of its prompt. `said`:
    the prompts with their completions. `hook`: the hook point in each layer. `layers`: the L layers; None: all.

    Completions are read as text, so the same completion gives the same result whether it comes from a rollout, an engine or a
    file. The model's mode, its gradients and the random state stay as they were. ModelError for text that the tokenizer cannot
    read.
    """
    prompts = encode_prompts(tokenizer, [prompt for prompt, _ in said])
    written = [ids_of(tokenizer, text) if text else [] for _, text in said]
    sequences = [ids + more for ids, more in zip(prompts, written, strict=True)]
    return averaged(model, sequences, [max(len(ids), 1) for ids in written], batch_size, hook=hook, layers=layers)


def averaged(model: PreTrainedModel, sequences: Sequence[list[int]], counts: Sequence[int], batch_size: int, *,
             hook: str = "resid_post", layers: Sequence[int] | None = None) -> Tensor:
    """Return the mean of the stream over the last tokens of each sequence of token ids, (L, B, D), as `pooled` does. `counts`:
    for each sequence, the number of last tokens over which the mean is taken."""
    chosen = list(range(len(decoder_layers(model)))) if layers is None else list(layers)
    means_LBD = torch.empty(len(chosen), len(sequences), model.config.get_text_config().hidden_size)
    with eval_mode(model), torch.no_grad():
        for batch in batches(sequences, batch_size):
            found = _means(model, [sequences[row] for row in batch], [counts[row] for row in batch], hook, chosen)
            for place, mean_BD in enumerate(found):
                means_LBD[place, batch] = mean_BD
    return means_LBD


def running(model: PreTrainedModel, sequences: Sequence[list[int]], counts: Sequence[int], batch_size: int, layers: Sequence[int]
            ) -> Iterator[tuple[int, Tensor]]:
    """Yield, for each sequence of token ids, its index and the running means of the stream over its last C tokens, (L, C, D)
    float32 on the CPU. The mean at a token is over the first of these C tokens up to this one. `counts`: C for each sequence.
    `layers`: the L layers."""
    with eval_mode(model), torch.no_grad():
        for batch in batches(sequences, batch_size):
            ids, mask = (each.to(model.device) for each in padded([sequences[row] for row in batch]))
            found: list[Tensor] = []
            with reading(model, lambda stream, found=found: found.append(stream.float().cpu())):
                model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
            for row, place in enumerate(batch):
                end = len(sequences[place])
                own_LCD = torch.stack([found[layer][row, end - counts[place]:end] for layer in layers])
                yield place, own_LCD.cumsum(1) / torch.arange(1, counts[place] + 1).unsqueeze(1)


def _means(model: PreTrainedModel, sequences: list[list[int]], counts: list[int], hook: str, layers: list[int]) -> list[Tensor]:
    ids, mask = (each.to(model.device) for each in padded(sequences))
    ends = mask.sum(1, keepdim=True)
    places, own = torch.arange(ids.shape[1], device=model.device), torch.tensor(counts, device=model.device).unsqueeze(1)
    share_BT = ((places < ends) & (places >= ends - own)) / own
    found, passed = dict[int, Tensor](), 0

    def keep(stream_BTD: Tensor) -> None:
        nonlocal passed
        if passed in layers:
            found[passed] = torch.einsum("btd,bt->bd", stream_BTD.float(), share_BT.to(stream_BTD.device)).cpu()
        passed += 1

    with reading(model, keep, hook):
        # Runs without the unembedding. Padding is on the right, where causal attention does not see it.
        model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
    return [found[layer] for layer in layers]
