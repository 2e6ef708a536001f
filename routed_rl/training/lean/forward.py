"""A forward pass over some rows without their padding, in which only the tokens of completions are scored.

Shape letters: B rows of a micro-batch, P and C columns of its prompts and completions, R rows of a pass, T positions of a pass, N
tokens of completions in a pass.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from routed_rl.model.adapter import plain
from routed_rl.model.stream import eval_mode


@dataclass(frozen=True, eq=False)
class Pass:
    """The inputs of one forward pass, and where its tokens are in the micro-batch."""

    rows_R: Tensor
    """Indices of the rows in the micro-batch."""
    ids_RT: Tensor
    mask_RT: Tensor
    """1 at real tokens, 0 at padding."""
    columns_RT: Tensor
    """The column of the micro-batch that each position is taken from; padding repeats the last column."""
    scored: tuple[Tensor, Tensor]
    """Row and position, in this pass, of the states that predict the completions' tokens, (N,) each."""
    labels_N: Tensor
    """The tokens that these states predict."""
    places: tuple[Tensor, Tensor]
    """Row of the micro-batch and column of its completions, for each of these tokens, (N,) each."""


def make_pass(rows_R: Tensor, input_ids: Tensor, attention_mask: Tensor, tokens: int, *, whole: bool = False) -> Pass:
    """Make a pass over `rows_R` of a micro-batch (B, P + C) whose prompts are padded on the left, and whose `tokens` columns of
    completions are padded on the right. Each row begins at its first real token. `whole`: whether padding is kept."""
    mask, width = attention_mask[rows_R], attention_mask.shape[1]
    first = width - tokens
    if not bool(mask[:, :first].any(1).all()):  # the state before an empty prompt's completion is one of padding
        whole = True
    starts = torch.zeros_like(rows_R) if whole else mask.argmax(1)
    longest = width if whole else int((mask.cumsum(1).argmax(1) + 1 - starts).max())
    columns = starts.unsqueeze(1) + torch.arange(longest, device=mask.device)
    inside, columns = columns < width, columns.clamp(max=width - 1)
    kept = mask.gather(1, columns) * inside
    ids = input_ids[rows_R].gather(1, columns)
    row, position = (kept.bool() & (columns >= first)).nonzero(as_tuple=True)
    places = rows_R[row], columns[row, position] - first
    return Pass(rows_R, ids, kept, columns, (row, position - 1), ids[row, position], places)


def run_pass(model: nn.Module, some: Pass, *, positions: bool) -> tuple[Tensor, Tensor]:
    """The log-probability and the entropy of each token that the pass scores, (N,) each; the entropy is 0 if the model's head
    does not compute it. The model must have TRL's fused head, which scores the states that it is given. `positions`: whether to
    pass the model the columns as position ids, because learned positions count the padding on the left."""
    inputs: dict[str, Tensor] = {"input_ids": some.ids_RT, "attention_mask": some.mask_RT}
    if positions:
        inputs["position_ids"] = some.columns_RT
    with only_states(model, some.scored):
        output: Any = model(**inputs, shift_labels=some.labels_N.unsqueeze(0), fused_lm_head=True)
    logps_N = output.log_probs[0]
    return logps_N, torch.zeros_like(logps_N) if output.entropy is None else output.entropy[0]


@torch.no_grad()
def find_positions(model: nn.Module, input_ids: Tensor, attention_mask: Tensor, tokens: int, theirs: Callable[..., Any]
                   ) -> bool | None:
    """Whether the model must be given position ids so that a row without its padding has the log-probabilities that `theirs`,
    TRL's own method, computes for the row with its padding. It is tried on the longest and on the shortest row. None: neither way
    gives them. The tolerance is that of the precision of the model's numbers. Dropout is off meanwhile."""
    whole = attention_mask.sum(1)
    rows = torch.stack([whole.argmin(), whole.argmax()])
    device, exact = rows.device.type, next(model.parameters()).dtype == torch.float32
    limit = 1e-3 if exact and not torch.is_autocast_enabled(device) else 0.2
    takes = "position_ids" in inspect.signature(_backbone(model).forward).parameters
    with eval_mode(model):
        expected = theirs(model, input_ids[rows], attention_mask[rows], tokens)[0]
        some = make_pass(torch.arange(2, device=rows.device), input_ids[rows], attention_mask[rows], tokens)
        for positions in (True, False) if takes else (False,):
            found, _ = run_pass(model, some, positions=positions)
            if bool(((found - expected[some.places]).abs() <= limit).all()):
                return positions
    return None


def _backbone(model: Any) -> nn.Module:
    return plain(getattr(model, "module", model)).base_model


@contextmanager
def only_states(model: nn.Module, places: tuple[Tensor, Tensor]) -> Iterator[None]:
    """Inside this context, the backbone returns only the states at these places, as (1, N, D)."""
    def cut(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state[places].unsqueeze(0)
        return output

    with _backbone(model).register_forward_hook(cut):
        yield
