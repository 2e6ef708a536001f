"""Finds the rows of a generation that have a gradient, and divides rows among micro-batches.

A micro-batch is a dict as TRL makes it: tensors with one entry per row, tensors without a dimension, lists, or None. Shape
letters: B rows, P tokens of the longest prompt, C tokens of the longest completion.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

ROWS, SAMPLED = "lean_rows", "lean_sampled"
"""Two keys that `choose` adds to a micro-batch: the indices of the rows that run, (R,) int64, and whether the samples on which
the quarantine's step is measured may take tokens of these rows (bool)."""


def teaches(batch: dict[str, Any]) -> Tensor:
    """Return which rows of a micro-batch teach, (B,) bool: those whose policy gradient may differ from 0, because they have a
    nonzero advantage and a token to learn. An advantage that is not finite counts as nonzero, so that the checks of the loss
    still see it."""
    advantages, mask = batch["advantages"], batch["completion_mask"]
    nonzero = advantages != 0
    return (nonzero if nonzero.dim() == 1 else (nonzero & mask.bool()).any(1)) & mask.any(1)


def lengths(batch: dict[str, Any]) -> Tensor:
    """Return the number of tokens of each row, without padding, (B,) int64."""
    return batch["prompt_mask"].sum(1) + batch["completion_mask"].sum(1)


def regroup(batches: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Divide the rows of the micro-batches anew into as many micro-batches of the same size: first the rows that teach nothing,
    then the others by length. A loss whose denominators do not depend on the division has the same sum over the new
    micro-batches."""
    size = len(batches[0]["completion_ids"])
    together = {key: _joined([batch[key] for batch in batches]) for key in batches[0]}
    taught, tokens = teaches(together), lengths(together)
    order = torch.argsort(taught.long() * (int(tokens.max()) + 1) + taught * tokens, stable=True)
    return [{key: _taken(value, some) for key, value in together.items()} for some in order.split(size)]


def choose(batches: Sequence[dict[str, Any]], running: int) -> None:
    """Write into each micro-batch of one optimizer step which of its rows run: the rows that teach, or one row if no row teaches
    but the micro-batch must run. The last `running` micro-batches must run, because another process runs as many. The last
    micro-batch must always run, so that every parameter has a gradient (0 if no row teaches) and every target a pass on its tape.
    If a micro-batch runs a row that teaches nothing, the quarantine's step takes no samples from it, so that samples do not
    depend on the number of processes."""
    for place, batch in enumerate(batches):
        rows = teaches(batch).nonzero().squeeze(1)
        batch[SAMPLED] = bool(len(rows))
        if not len(rows) and len(batches) - place <= max(running, 1):
            rows = lengths(batch).argmin().unsqueeze(0)
        batch[ROWS] = rows


def chosen_rows(batch: dict[str, Any]) -> Tensor:
    """Return the indices of the rows of a micro-batch that run, (R,) int64. If `choose` has not been called for the micro-batch,
    it is called now, so that at least one row runs."""
    if ROWS not in batch:
        choose([batch], running=1)
    return batch[ROWS]


def unread_rows(batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return the `completion_index` and the `environment_ids`, (U,) each, of those completions of a micro-batch whose rows do not
    run. Completions that practise are not among them."""
    left = torch.ones(len(batch["completion_ids"]), dtype=torch.bool, device=batch["completion_ids"].device)
    left[batch.get(ROWS, slice(None))] = False
    if batch.get("practising") is not None:
        left &= ~batch["practising"]
    return batch["completion_index"][left], batch["environment_ids"][left]


def _joined(values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, Tensor) and first.dim():
        return torch.cat(list(values))
    return [each for value in values for each in value] if isinstance(first, list) else first


def _taken(value: Any, places: Tensor) -> Any:
    if isinstance(value, Tensor) and value.dim():
        return value[places]
    return [value[place] for place in places.tolist()] if isinstance(value, list) else value
