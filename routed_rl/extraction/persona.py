"""Measures where completions lie along a persona axis of a subspace. The stream is read where it was read to find the subspace:
over the tokens of a response, or at the end of a prompt. In the second case the prompt is repeated after the completion, so that
the coordinate shows which persona would answer now.

Not covered: episodes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from routed_rl.errors import SubspaceError
from routed_rl.extraction.pooled import Said, averaged, pooled
from routed_rl.model.prompts import encode_prompts, ids_of
from routed_rl.subspace import Subspace
from routed_rl.subspace.quality import best_layer_of


def standing(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, said: Sequence[Said], subspace: Subspace,
             batch_size: int, *, layers: Sequence[int], axis: str | None = None) -> Tensor:
    """Return the coordinate of each completion along an axis at each of L layers, (L, B) float32, in gaps. It is larger towards
    the positive persona. The zero point is arbitrary, so only completions of the same environment can be compared. `model`: the
    model that reads the completions. `said`: B prompts with their completions. `axis`: the axis' name; None for the first."""
    if subspace.provenance.details.get("tokens", "prompt_end") == "response_mean":
        read_LBD = pooled(model, tokenizer, said, batch_size, hook=subspace.provenance.hook, layers=layers)
        return _along(read_LBD, subspace, layers, axis)
    return _at_end(model, asked_again(tokenizer, said), subspace, batch_size, layers, axis)


def expected(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, said: Sequence[Said], subspace: Subspace,
             batch_size: int, *, layers: Sequence[int], axis: str | None = None) -> Tensor:
    """Return the coordinate at the end of each prompt, before the completion, (L, B) float32. The arguments and the unit are
    those of `standing`."""
    prompts = encode_prompts(tokenizer, [prompt for prompt, _ in said])
    return _at_end(model, prompts, subspace, batch_size, layers, axis)


def _at_end(model: PreTrainedModel, sequences: list[list[int]], subspace: Subspace, batch_size: int, layers: Sequence[int],
            axis: str | None) -> Tensor:
    hook = subspace.provenance.hook
    read_LBD = averaged(model, sequences, [1] * len(sequences), batch_size, hook=hook, layers=layers)
    return _along(read_LBD, subspace, layers, axis)


def _along(read_LBD: Tensor, subspace: Subspace, layers: Sequence[int], axis: str | None) -> Tensor:
    column = 0 if axis is None else subspace.axis_names.index(axis)
    along_LBD = read_LBD @ torch.stack([subspace.axes[layer][:, column] for layer in layers]).float().unsqueeze(2)
    return along_LBD.squeeze(2) / subspace.scales[list(layers), column].float().unsqueeze(1)


def asked_again(tokenizer: PreTrainedTokenizerBase, said: Sequence[Said]) -> list[list[int]]:
    """Return the token ids of each prompt, followed by its completion and by the same prompt once more. The repeated prompt is a
    further turn of a chat, without the system message, or a further line of a text."""
    found: list[list[int]] = []
    for prompt, text in said:
        if isinstance(prompt, str):
            written = ids_of(tokenizer, text) if text else []
            found.append(encode_prompts(tokenizer, [prompt])[0] + written + ids_of(tokenizer, f"\n{prompt}"))
        else:
            asked: list[Any] = [message for message in prompt if message["role"] != "system"]
            found += encode_prompts(tokenizer, [[*prompt, {"role": "assistant", "content": text}, *asked]])
    return found


def layers_to_read(subspace: Subspace, asked: Sequence[int] | None = None, axis: str | None = None) -> list[int]:
    """Return the layers in `asked` or, if that is None, the one layer at which the axis separates held-out prompts best.
    SubspaceError for a layer that lacks the axis (see `standing`), because every coordinate there is 0."""
    column = 0 if axis is None else subspace.axis_names.index(axis)
    having = [layer for layer, axes in enumerate(subspace.axes) if axes[:, column].any()]
    if lacking := [layer for layer in asked or [] if layer not in having]:
        raise SubspaceError(f"the subspace has no axis {subspace.axis_names[column]} at layer {lacking[0]}, so nothing can be "
                            f"read there; it has one at {', '.join(map(str, having)) or 'no layer'}")
    weights = subspace.layer_weights(axis).tolist()
    return list(asked) if asked is not None else [best_layer_of([
        weight if layer in having else -1.0 for layer, weight in enumerate(weights)])]
