"""The loss of each token: the forward KL from teacher to student over the full vocabulary, or the loss that a gate chooses
instead.

Shape letters: B rows, T tokens, N counted tokens of all rows, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from routed_rl.model.prompts import padded

KEEP, SKIP, NOISE = range(3)
"""The decisions that a gate makes about a token."""
LARGEST_LOGITS = 2**25
"""Largest number of logits that are computed at once; they take 128 MB in float32."""


@dataclass(frozen=True)
class Row:
    """One text as token ids."""

    ids: list[int]
    start: int
    """Index of the first token that counts; the tokens before it are a prompt."""
    environment: str | None = None
    """Name of the environment whose task the text answers; None for generic text."""
    marked: bool = False
    """Whether the text has a flag of `baseline.detector.flags`."""

    @property
    def counted(self) -> int:
        return len(self.ids) - self.start


def chunks(rows: Sequence[Row], vocabulary: int) -> Iterator[list[int]]:
    """Yield lists of row indices, the shortest rows first. The rows of one list together, padded to the same length, have at most
    `LARGEST_LOGITS` logits; a row that has more is in a list by itself. `vocabulary`: the number of logits of one token."""
    chunk: list[int] = []
    for place in sorted(range(len(rows)), key=lambda place: len(rows[place].ids)):
        if chunk and (len(chunk) + 1) * len(rows[place].ids) * vocabulary > LARGEST_LOGITS:
            yield chunk
            chunk = []
        chunk.append(place)
    if chunk:
        yield chunk


def read(model: nn.Module, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """Return the float32 log-probabilities (N, V) that predict the counted tokens, row by row, and these tokens (N,)."""
    device = next(model.parameters()).device
    ids_BT, mask_BT = (each.to(device) for each in padded([row.ids for row in rows]))
    starts = torch.tensor([row.start for row in rows], device=device).unsqueeze(1)
    counted_BT = (mask_BT.bool() & (torch.arange(ids_BT.shape[1], device=device) >= starts))[:, 1:]
    logits_BTV = model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits
    return logits_BTV[:, :-1][counted_BT].float().log_softmax(-1), ids_BT[:, 1:][counted_BT]


def forward_kl(teacher_NV: Tensor, student_NV: Tensor) -> Tensor:
    """KL(teacher ‖ student) at each token, (N,) in nats, from log-probabilities."""
    return (teacher_NV.exp() * (teacher_NV - student_NV)).sum(-1)


def entropy(log_NV: Tensor) -> Tensor:
    """Entropy of the distribution at each token, (N,) in nats, from log-probabilities."""
    return -(log_NV.exp() * log_NV).sum(-1)


def token_losses(teacher_NV: Tensor, student_NV: Tensor, tokens_N: Tensor, actions_N: Tensor, *, sampled: bool) -> Tensor:
    """The loss of each token, (N,). It is the forward KL for a token that is kept, 0 for one that is skipped, and KL(uniform ‖
    student) for one whose target is noise. `actions_N` holds the gate's decisions. `teacher_NV` and `student_NV` are
    log-probabilities, and `tokens_N` the tokens that were written.

    If `sampled` is true, the loss of a kept token is the teacher's log-probability of this token minus the student's. Over tokens
    that the teacher draws, its mean is the forward KL. This is for a gate that has judged only the token that was written, and
    not the other tokens that the teacher might have written there.
    """
    if sampled:
        kept_N = (teacher_NV - student_NV).gather(1, tokens_N.unsqueeze(1)).squeeze(1)
    else:
        kept_N = forward_kl(teacher_NV, student_NV)
    noise_N = -student_NV.mean(-1) - torch.tensor(float(student_NV.shape[-1])).log().item()
    return kept_N * (actions_N == KEEP) + noise_N * (actions_N == NOISE)
