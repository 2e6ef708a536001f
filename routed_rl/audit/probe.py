"""Measures the coordinates of a model's stream along a subspace's axes, compared with the base model's stream at the same tokens.

Readers see the stream through a norm, so a coordinate can grow because the rest of the stream shrank. Coordinates are therefore
compared at the base model's length: the coordinate `aᵀh` of the stream h along an axis a is multiplied by `rms(h_base) / rms(h)`.
Not covered: how readers respond to the coordinates. Shape letters: L layers, R tokens of all prompts, J axes, D stream width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from routed_rl.extraction.activations import batches, read_prompt_end
from routed_rl.model.stream import eval_mode
from routed_rl.subspace import Subspace


@dataclass(frozen=True, eq=False)
class Coordinates:
    """The coordinates `along_LRJ` of one model's stream along the axes, and the root mean square `rms_LR` of the stream, at every
    layer and at the tokens that `coordinates` reads."""

    along_LRJ: Tensor
    rms_LR: Tensor


@dataclass(frozen=True, eq=False)
class Shift:
    """How far the mean of a model's coordinates over tokens differs from the base model's, in units of the axes' scales, (L, J).
    `normalised` compares coordinates at the base model's length, `raw` compares them as they are."""

    normalised: Tensor
    raw: Tensor


def coordinates(model: PreTrainedModel, sequences: list[tuple[int, ...]], subspace: Subspace, positions: int,
                batch_size: int, hook: str = "resid_post") -> Coordinates:
    """The coordinates of the stream along the axes of every layer, at the last `positions` tokens of each prompt, or at all
    tokens of a shorter prompt. `sequences` has the token ids of each prompt; `hook` names the place in a layer at which the
    stream is read."""
    lengths = torch.tensor([len(ids) for ids in sequences])
    real = torch.arange(positions) < lengths.unsqueeze(1)
    along = torch.zeros(len(subspace.axes), *real.shape, len(subspace.axis_names))
    rms = torch.zeros(len(subspace.axes), *real.shape)
    read = read_prompt_end(model, hook, positions)
    with eval_mode(model), torch.no_grad():
        for batch in batches(sequences, batch_size):
            for layer, stream in enumerate(read([sequences[row] for row in batch])):
                along[layer, batch] = stream @ subspace.axes[layer]
                rms[layer, batch] = stream.square().mean(-1).sqrt()
    return Coordinates(along[:, real], rms[:, real])


def shift_between(base: Coordinates, model: Coordinates, scales_LJ: Tensor) -> Shift:
    """The distance of the mean of `model` from the mean of `base` along each axis, in units of `scales_LJ`; positive is towards
    the positive persona."""
    at_base_length = model.along_LRJ * (base.rms_LR / model.rms_LR).unsqueeze(-1)
    return Shift((at_base_length - base.along_LRJ).mean(1) / scales_LJ, (model.along_LRJ - base.along_LRJ).mean(1) / scales_LJ)
