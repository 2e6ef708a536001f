"""Computes the likelihood of given answers as a function of a change to one layer's output. The layers up to that one are run
only once.

Shape letters: R rows (one per answer), T tokens, D stream width.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from routed_rl.errors import SubspaceError
from routed_rl.extraction.answers import Answers
from routed_rl.model.prompts import padded
from routed_rl.model.stream import reading, resuming

SCALES = ("logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")
"""The fields of a config (of Cohere, Muse Glimmer, Falcon-H1 and Granite) by which its model multiplies its logits; Granite
divides by `logits_scaling`."""
CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""The fields of a config (of Gemma, RecurrentGemma and xLSTM) with the number c that caps the logits x, as c tanh(x / c)."""
Change = Callable[[Tensor], Tensor]
"""A change to a layer's output: a function that maps the output (R, T, D) to the changed output."""


class Likelihood:
    """Computes the log-probabilities of positive and negative answers when the output of the layer with the number `layer` is
    changed. Row 2k is the k-th positive answer with its prompt, and row 2k + 1 the k-th negative answer with the same prompt."""

    def __init__(self, model: PreTrainedModel, answers: Sequence[Answers], layer: int) -> None:
        self.model, self.layer = model, layer
        rows = [(pair.prompt, side) for pair in answers for side in (pair.positive, pair.negative)]
        self.ids_RT, self.mask_RT = (each.to(model.device) for each in padded([prompt + side for prompt, side in rows]))
        self.where_RT = torch.zeros(self.ids_RT.shape, dtype=torch.bool, device=model.device)
        for row, (prompt, side) in enumerate(rows):
            self.where_RT[row, len(prompt) - 1:len(prompt) + len(side) - 1] = True  # each predicts the next token
        self.counts_R = torch.tensor([len(side) for _, side in rows], dtype=torch.float64)
        kept: list[Tensor] = []
        with torch.no_grad(), reading(model, lambda stream: kept.append(stream if len(kept) == layer else stream[:0])):
            hidden_RTD = self._hidden(torch.arange(len(rows)))
            self._check_logits(hidden_RTD)
        self.stream_RTD = kept[layer]

    def sums(self, change: Change, rows: Tensor | None = None) -> Tensor:
        """Return the log-probability of each answer under `change`, summed over the answer's tokens, (R,) float32 on the model's
        device. `rows`: the indices of the answers; None: all. Differentiable."""
        rows = torch.arange(len(self.ids_RT)) if rows is None else rows
        where_RT = self.where_RT[rows]
        with resuming(self.model, self.layer, change(self.stream_RTD[rows])):
            hidden_RTD = self._hidden(rows)
        logits = self._logits(hidden_RTD[where_RT.to(hidden_RTD.device)])
        following = self.ids_RT[rows].roll(-1, dims=1)[where_RT].to(logits.device)
        chosen = logits.log_softmax(-1).gather(-1, following.unsqueeze(-1)).squeeze(-1)
        owner = where_RT.nonzero()[:, 0].to(chosen.device)
        return torch.zeros(len(rows), device=chosen.device).index_add(0, owner, chosen)

    def score(self, change: Change) -> float:
        """Return how much more likely positive answers are than negative ones under `change`, in nats per token: the difference
        between the two answers of a pair in log-probability per token, as a mean over pairs."""
        each_R = self.sums(change).double().cpu() / self.counts_R
        return (each_R[0::2] - each_R[1::2]).mean().item()

    def _logits(self, hidden: Tensor) -> Tensor:
        """Compute the logits (..., V), float32, from the last hidden state (..., D) in the way in which the model does."""
        text, unembed = self.model.config.get_text_config(), self.model.get_output_embeddings()
        assert unembed is not None
        logits = unembed(hidden).float()
        for name in SCALES:
            if (scale := getattr(text, name, None)) is not None:
                divides = name == "logits_scaling" and text.model_type != "hyperclovax"
                logits = logits / scale if divides else logits * scale
        cap = next((found for name in CAPS if (found := getattr(text, name, None))), None)
        return cap * torch.tanh(logits / cap) if cap else logits

    def _check_logits(self, hidden_RTD: Tensor) -> None:
        """SubspaceError if the model multiplies its logits by a number that `_logits` does not know."""
        row = int(self.mask_RT.sum(1).argmin())
        end = int(self.mask_RT[row].sum())
        own = cast(Any, self.model)(input_ids=self.ids_RT[row:row + 1, :end], use_cache=False).logits[0, -1].double()
        ours = self._logits(hidden_RTD[row, end - 1]).to(own)
        if (own @ ours / (ours @ ours) - 1).abs() > 0.1:  # far above rounding in 16 bits
            raise SubspaceError(f"a {self.model.config.model_type} model scales its logits in a way that is not known, so the "
                                "likelihoods of answers cannot be computed; set subspace.check.axes=0, or another "
                                "subspace.method")

    def _hidden(self, rows: Tensor) -> Tensor:
        return self.model.base_model(input_ids=self.ids_RT[rows], attention_mask=self.mask_RT[rows],
                                     use_cache=False).last_hidden_state


def pushed(direction_D: Tensor, length: float) -> Change:
    """Return the change that adds `length` times the direction to the layer's output at every token."""
    return lambda stream: stream + length * direction_D.to(stream)
