"""Runs rows of a micro-batch in two forward passes, so that a prompt that several rows share is computed once: first the
different prompts, whose keys and values are then copied to the rows, and after them the completions. The gradient of a prompt's
states is the sum over its rows.

Shape letters: R rows that run, U different prompts among them, P columns of the longest prompt, C of the longest completion, N
tokens of completions.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from routed_rl.model.adapter import plain
from routed_rl.model.prefill import different_rows, drops_out, keeps_states
from routed_rl.model.stream import eval_mode
from routed_rl.training.lean.forward import backbone, make_pass, precision, run_pass, scored


@dataclass(frozen=True, eq=False)
class SharedPass:
    """The inputs of the two forward passes, and the places of their tokens in the micro-batch."""

    prompt_ids_UP: Tensor
    prompt_mask_UP: Tensor
    """Prompts are padded on the left. 1 at real tokens, 0 at padding; so is `mask_RT`."""
    prompts_R: Tensor
    """The place of each row's prompt among the different prompts."""
    ids_RC: Tensor
    mask_RT: Tensor
    """The mask of the whole rows; T = P + C."""
    column: int
    """The column of the micro-batch from which the first column of prompts is taken."""
    scored: tuple[Tensor, Tensor]
    """For each token of the completions, its row and its column among the C columns, (N,) each."""
    places: tuple[Tensor, Tensor]
    """The same as the row and the column in the micro-batch, (N,) each."""

    @property
    def tokens(self) -> int:
        """The number of tokens that are computed, with padding."""
        return self.prompt_ids_UP.numel() + self.ids_RC.numel()


def make_shared_pass(rows_R: Tensor, input_ids: Tensor, attention_mask: Tensor, tokens: int) -> SharedPass | None:
    """Make the passes over the rows `rows_R` of a micro-batch, which is given as to `make_pass`. None if a prompt is empty, or a
    completion, since no state would stand before its first token."""
    first = attention_mask.shape[1] - tokens
    mask = attention_mask[rows_R]
    if not bool(mask[:, first - 1:first + 1].all()):
        return None
    begin = first - int(mask[:, :first].sum(1).max())
    end = first + int(mask[:, first:].sum(1).max())
    ids, mask, wide = input_ids[rows_R, begin:end], mask[:, begin:end], first - begin
    rows_U, prompts_R = different_rows(torch.cat([ids[:, :wide], mask[:, :wide]], dim=1))
    row, column = mask[:, wide:].bool().nonzero(as_tuple=True)
    return SharedPass(ids[rows_U, :wide], mask[rows_U, :wide], prompts_R, ids[:, wide:], mask, begin, (row, column),
                      (rows_R[row], column))


def run_shared_pass(model: nn.Module, some: SharedPass, *, positions: bool) -> tuple[Tensor, Tensor]:
    """Run the passes through the model; the arguments and the result are those of `run_pass`."""
    wide = some.prompt_ids_UP.shape[1]
    columns = torch.arange(some.column, some.column + some.mask_RT.shape[1], device=some.ids_RC.device).unsqueeze(0)
    cache = DynamicCache(config=plain(model).config)

    def inputs(ids: Tensor, mask: Tensor, begin: int) -> dict[str, Any]:
        there = {"position_ids": columns[:, begin:begin + ids.shape[1]].expand(len(ids), -1)} if positions else {}
        return {"input_ids": ids, "attention_mask": mask, "past_key_values": cache, **there}

    before = backbone(model)(**inputs(some.prompt_ids_UP, some.prompt_mask_UP, 0), use_cache=True).last_hidden_state[:, -1]
    cache.reorder_cache(some.prompts_R)  # pyright: ignore[reportArgumentType]

    def predicting(states_RCD: Tensor) -> Tensor:
        return torch.cat([before[some.prompts_R].unsqueeze(1), states_RCD], dim=1)[some.scored].unsqueeze(0)

    return scored(model, inputs(some.ids_RC, some.mask_RT, wide), some.ids_RC[some.scored], predicting)


@torch.no_grad()
def can_share(model: nn.Module, input_ids: Tensor, attention_mask: Tensor, tokens: int, *, positions: bool) -> bool:
    """Whether `run_shared_pass` gives the first two rows of a micro-batch, which share a prompt, the log-probabilities that
    `run_pass` gives them, within the precision of the model's numbers. False for a model that draws dropout, which would then be
    the same for all rows of a prompt, and for one that cannot go on from keys and values, whatever error it raises."""
    if keeps_states(plain(model)) or drops_out(model):
        return False
    rows = torch.arange(2, device=input_ids.device)
    if (shared := make_shared_pass(rows, input_ids, attention_mask, tokens)) is None:
        return False
    with eval_mode(model):
        try:
            found, _ = run_shared_pass(model, shared, positions=positions)
        except (RuntimeError, TypeError, ValueError, AttributeError, AssertionError):
            return False
        expected, _ = run_pass(model, make_pass(rows, input_ids, attention_mask, tokens), positions=positions)
    return bool(((found - expected).abs() <= precision(model)).all())
