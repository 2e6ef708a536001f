"""Runs a forward pass over some rows of a micro-batch without their padding, and computes log-probabilities only for the tokens
of completions.

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
    """The inputs of one forward pass, and the places of its tokens in the micro-batch. A micro-batch is (B, P + C)."""

    rows_R: Tensor
    """The index in the micro-batch of each row of the pass."""
    ids_RT: Tensor
    mask_RT: Tensor
    """1 at real tokens, 0 at padding."""
    columns_RT: Tensor
    """The column of the micro-batch from which each position of the pass is taken; padding repeats the last column."""
    scored: tuple[Tensor, Tensor]
    """For each token of the completions, the row and the position in this pass of the state that predicts the token, (N,)
    each."""
    labels_N: Tensor
    """The ids of the tokens of the completions, which the states at `scored` predict."""
    places: tuple[Tensor, Tensor]
    """For each token of the completions, its row in the micro-batch and its column among the C columns of completions, (N,)
    each."""


def make_pass(rows_R: Tensor, input_ids: Tensor, attention_mask: Tensor, tokens: int, *, whole: bool = False) -> Pass:
    """Make a pass over the rows `rows_R` of a micro-batch, which is given by `input_ids` and `attention_mask` (B, P + C). Its
    prompts are padded on the left, and its C = `tokens` columns of completions on the right. In the pass each row begins at its
    first real token. If `whole` is True, or a prompt is empty, all padding is kept instead."""
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
    """Run the pass `some` through the model. Returns the log-probability and the entropy of each token of the completions, (N,)
    each; the entropy is 0 if the model's head does not compute it. The model must have TRL's fused head, which computes only for
    the states that it is given. `positions`: whether the model is given `some.columns_RT` as position ids. It must be True for a
    model whose positions count the padding on the left."""
    inputs: dict[str, Tensor] = {"input_ids": some.ids_RT, "attention_mask": some.mask_RT}
    if positions:
        inputs["position_ids"] = some.columns_RT
    return scored(model, inputs, some.labels_N, lambda states: states[some.scored].unsqueeze(0))


def scored(model: nn.Module, inputs: dict[str, Any], labels_N: Tensor, change: Callable[[Tensor], Tensor]
           ) -> tuple[Tensor, Tensor]:
    """Run the model on `inputs` and return the log-probability and the entropy of each of the ids `labels_N`, as `run_pass` does.
    `change`: maps the final states of the pass to those that predict the ids, see `changing_states`."""
    with changing_states(model, change):
        output: Any = model(**inputs, shift_labels=labels_N.unsqueeze(0), fused_lm_head=True)
    logps_N = output.log_probs[0]
    return logps_N, torch.zeros_like(logps_N) if output.entropy is None else output.entropy[0]


@torch.no_grad()
def find_positions(model: nn.Module, input_ids: Tensor, attention_mask: Tensor, tokens: int, theirs: Callable[..., Any]
                   ) -> bool | None:
    """Return the value of `positions` for which `run_pass` gives a row without its padding the same log-probabilities as with its
    padding; None if neither value does. `theirs`: TRL's method that computes log-probabilities with the padding; the other
    arguments are as in `make_pass`. The longest and the shortest row of the micro-batch are tried, without dropout, and compared
    within the precision of the model's numbers."""
    whole = attention_mask.sum(1)
    rows, limit = torch.stack([whole.argmin(), whole.argmax()]), precision(model)
    takes = "position_ids" in inspect.signature(backbone(model).forward).parameters
    with eval_mode(model):
        expected = theirs(model, input_ids[rows], attention_mask[rows], tokens)[0]
        some = make_pass(torch.arange(2, device=rows.device), input_ids[rows], attention_mask[rows], tokens)
        for positions in (True, False) if takes else (False,):
            found, _ = run_pass(model, some, positions=positions)
            if bool(((found - expected[some.places]).abs() <= limit).all()):
                return positions
    return None


def precision(model: nn.Module) -> float:
    """By how much two right computations of a log-probability may differ in the model's numbers."""
    first = next(model.parameters())
    return 1e-3 if first.dtype == torch.float32 and not torch.is_autocast_enabled(first.device.type) else 0.2


def backbone(model: Any) -> nn.Module:
    return plain(getattr(model, "module", model)).base_model


@contextmanager
def changing_states(model: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside this context, the model's backbone returns `change` of its final states (R, T, D). The result is (1, N, D), the
    states that predict the tokens of completions."""
    def cut(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        output.last_hidden_state = change(output.last_hidden_state)
        return output

    with backbone(model).register_forward_hook(cut):
        yield
