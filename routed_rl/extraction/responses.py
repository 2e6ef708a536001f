"""Responses that the model writes itself, with the mean of its stream over their tokens, in one pass.

Activations are read while the response is written, so nothing is run twice. Not covered: top-k and top-p.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from routed_rl.model.stream import reading


@dataclass(frozen=True)
class Respond:
    """How responses are drawn."""

    tokens: int
    """At most; at least one, since an end of text cannot come first."""
    temperature: float
    """0 is greedy."""
    ends: tuple[int, ...]
    """Ids that end a response; they are no part of it."""
    seed: int


class _Means:
    """Sums the newest position's stream of the rows that still speak."""

    def __init__(self) -> None:
        self.sums: list[Tensor] = []
        self.counts_B = torch.zeros(0)
        self._layer, self._speaking_B = 0, torch.zeros(0)

    def start(self, speaking_B: Tensor) -> None:
        self._layer, self._speaking_B = 0, speaking_B
        self.counts_B = speaking_B.float() if not self.sums else self.counts_B + speaking_B

    def read(self, stream_BTD: Tensor) -> None:
        newest = stream_BTD[:, -1].float() * self._speaking_B.unsqueeze(1).to(stream_BTD.device)
        if self._layer == len(self.sums):
            self.sums.append(newest)
        else:
            self.sums[self._layer] = self.sums[self._layer] + newest
        self._layer += 1

    def means(self) -> list[Tensor]:
        return [total.cpu() / self.counts_B.unsqueeze(1) for total in self.sums]


@torch.no_grad()
def respond(model: PreTrainedModel, sequences: list[tuple[int, ...]], settings: Respond, generator: torch.Generator,
            hook: str = "resid_post") -> tuple[list[list[int]], list[Tensor]]:
    """The ids of one response per prompt, and per layer the mean stream (B, D) over exactly these tokens, on the CPU.

    What is drawn depends on the generator and on which prompts stand in one batch.
    """
    ids, mask = _left_padded(sequences, settings.ends[0])
    ids, mask = ids.to(model.device), mask.to(model.device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    output = cast(Any, model)(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1)
    speaking = torch.ones(len(sequences), dtype=torch.bool)
    responses: list[list[int]] = [[] for _ in sequences]
    means = _Means()
    with reading(model, means.read, hook):
        for step in range(settings.tokens):
            logits = output.logits[:, -1].float().cpu()
            if step == 0:
                logits[:, list(settings.ends)] = -torch.inf
            token = _draw(logits, settings.temperature, generator)
            speaking &= ~torch.isin(token, torch.tensor(settings.ends))
            if not speaking.any():
                break
            for row in speaking.nonzero().squeeze(1).tolist():
                responses[row].append(int(token[row]))
            means.start(speaking)
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            positions = positions[:, -1:] + 1
            output = cast(Any, model)(input_ids=token.unsqueeze(1).to(model.device), attention_mask=mask, position_ids=positions,
                                      past_key_values=output.past_key_values, use_cache=True, logits_to_keep=1)
    return responses, means.means()


def _left_padded(sequences: list[tuple[int, ...]], pad: int) -> tuple[Tensor, Tensor]:
    longest = max(map(len, sequences))
    return (torch.tensor([[pad] * (longest - len(row)) + list(row) for row in sequences]),
            torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in sequences]))


def _draw(logits_BV: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    if temperature == 0:
        return logits_BV.argmax(1)
    return torch.multinomial((logits_BV / temperature).softmax(1), 1, generator=generator).squeeze(1)
