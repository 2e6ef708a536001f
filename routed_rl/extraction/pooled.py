"""A model's stream over completions that somebody has written, one mean for each of them.

Not covered: episodes, whose turns others write in part.
"""

from collections.abc import Sequence
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
    """(L, B, D) float32 on the CPU: for each of `layers` (None: all) the mean stream over the tokens of each completion, without
    the token that ends it. A completion without a token is read at the last token of its prompt.

    Completions are read as text, so that those of a rollout, an engine and a file give the same. Modes, gradients and random
    numbers of the model are left as they were. Raises ModelError for text that the tokenizer cannot read.
    """
    prompts = encode_prompts(tokenizer, [prompt for prompt, _ in said])
    written = [ids_of(tokenizer, text) if text else [] for _, text in said]
    sequences = [ids + more for ids, more in zip(prompts, written, strict=True)]
    chosen = list(range(len(decoder_layers(model)))) if layers is None else list(layers)
    means_LBD = torch.empty(len(chosen), len(said), model.config.get_text_config().hidden_size)
    for batch in batches(sequences, batch_size):
        own_BT = _own([len(written[row]) for row in batch], [len(sequences[row]) for row in batch])
        for place, mean_BD in enumerate(_means(model, [sequences[row] for row in batch], own_BT, hook, chosen)):
            means_LBD[place, batch] = mean_BD
    return means_LBD


def _own(written: list[int], lengths: list[int]) -> Tensor:
    """Which tokens are averaged, (B, T): the last `written` of each row, at least one."""
    places, ends = torch.arange(max(lengths)), torch.tensor(lengths).unsqueeze(1)
    return (places < ends) & (places >= ends - torch.tensor(written).clamp(min=1).unsqueeze(1))


def _means(model: PreTrainedModel, sequences: list[list[int]], own_BT: Tensor, hook: str, layers: list[int]) -> list[Tensor]:
    ids, mask = (each.to(model.device) for each in padded(sequences))
    share_BT, found, counted = (own_BT / own_BT.sum(1, keepdim=True)).to(model.device), dict[int, Tensor](), 0

    def keep(stream_BTD: Tensor) -> None:
        nonlocal counted
        if counted in layers:
            found[counted] = torch.einsum("btd,bt->bd", stream_BTD.float(), share_BT.to(stream_BTD.device)).cpu()
        counted += 1

    with eval_mode(model), torch.no_grad(), reading(model, keep, hook):
        # Without the unembedding; padded on the right, as causal attention sees no padding there.
        model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
    return [found[layer] for layer in layers]
