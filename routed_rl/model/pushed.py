"""Measures how later layers respond to a vector that is added to the output of one layer, at every token. The stream at later
layers is a differentiable function of the vector.

The model's own forward pass runs the layers, so every family is covered; `torch.func.vjp` and `jvp` go through it if attention is
`eager`. Not covered: a vector that is added at some tokens only. Shape letters: F added vectors, B prompts, T tokens, D stream
width, L layers.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from routed_rl.model.prompts import padded
from routed_rl.model.stream import reading, resuming


@contextmanager
def eager_attention(model: PreTrainedModel) -> Iterator[None]:
    """Inside the block, the model uses the implementation `eager` of attention, which has forward-mode derivatives. Afterwards
    the model uses its former implementation again."""
    before = getattr(model.config, "_attn_implementation", None) or "eager"
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


class Pushed:
    """Runs prompts through a model with vectors added to the output of one layer, each by itself, and measures the effects on
    later layers. `pushes_FD` are the F added vectors in all methods."""

    def __init__(self, model: PreTrainedModel, sequences: Sequence[Sequence[int]], layer: int, positions: int,
                 batch_size: int) -> None:
        """`sequences`: the token ids of the prompts. `layer`: the layer whose output gets the vectors. `positions`: the number of
        last tokens of each prompt over which the effects of a vector on the stream are averaged; a prompt with fewer tokens is
        averaged over all of them. `batch_size`: about how many rows (a prompt with an added vector) are run at a time. The layers
        up to `layer` are run once, here."""
        self.model, self.layer = model, layer
        self.ids_BT, self.mask_BT = (each.to(model.device) for each in padded(sequences))
        ends = self.mask_BT.sum(1, keepdim=True)
        places = torch.arange(self.ids_BT.shape[1], device=model.device)
        last_BT = ((places < ends) & (places >= ends - positions)).float()
        self._share_BT = last_BT / last_BT.sum(1, keepdim=True)
        self._at_once = max(1, batch_size // len(sequences))
        kept: list[Tensor] = []
        with torch.no_grad(), reading(model, kept.append):
            self._forward(1)
        self._stream_BTD = kept[layer]
        self._base_LBD = torch.stack([self._means(stream, 1) for stream in kept])

    @property
    def norm(self) -> float:
        """The mean length of the layer's output over all tokens, without an added vector."""
        return self._stream_BTD[self.mask_BT.bool()].float().norm(dim=1).mean().item()

    def chunks(self, pushes_FD: Tensor) -> tuple[Tensor, ...]:
        """Split the vectors into parts that are small enough to be run together."""
        return pushes_FD.split(self._at_once)

    def response(self, pushes_FD: Tensor, until: int) -> Tensor:
        """Return how the output of layer `until` changes, for each prompt, if each vector is added to the output of `self.layer`:
        (F, B, D). The vector itself, which the skip connections carry to layer `until`, is subtracted from the change.
        Differentiable; all vectors are run at once."""
        return self._changes(pushes_FD, [until], until)[0] - pushes_FD.float().unsqueeze(1)

    @torch.no_grad()
    def effects(self, pushes_FD: Tensor) -> Tensor:
        """Return how each vector changes the outputs of `self.layer` and of all later layers, on average over prompts: (L, F, D),
        where L counts these layers. The vector itself, which the skip connections carry on, is part of the change."""
        later = list(range(self.layer, len(self._base_LBD)))
        parts = [torch.stack([change.mean(1) for change in self._changes(part, later, None)]) for part in self.chunks(pushes_FD)]
        return torch.cat(parts, dim=1)

    def _changes(self, pushes_FD: Tensor, layers: Sequence[int], until: int | None) -> list[Tensor]:
        count, prompts = len(pushes_FD), len(self.ids_BT)
        rows_RD = pushes_FD.repeat_interleave(prompts, dim=0).to(self._stream_BTD)
        stream_RTD = self._stream_BTD.repeat(count, 1, 1) + rows_RD.unsqueeze(1)
        found: list[Tensor] = []
        with resuming(self.model, self.layer, stream_RTD, until), reading(self.model, found.append):
            self._forward(count)
        return [(self._means(found[layer], count) - self._base_LBD[layer].repeat(count, 1)).view(count, prompts, -1)
                for layer in layers]

    def _means(self, stream_RTD: Tensor, count: int) -> Tensor:
        return torch.einsum("rtd,rt->rd", stream_RTD.float(), self._share_BT.repeat(count, 1))

    def _forward(self, count: int) -> None:
        # Runs without the unembedding. Padding is on the right, where causal attention does not see it.
        self.model.base_model(input_ids=self.ids_BT.repeat(count, 1), attention_mask=self.mask_BT.repeat(count, 1),
                              use_cache=False)
