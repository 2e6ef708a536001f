"""The mixin that leaves out of a trainer's update everything that does not change the gradient. It is a base class of the routed
trainer's mixin. It replaces the forward passes of TRL's loss and nothing of the loss itself.

Shape letters: B rows of a micro-batch, C columns of its completions, R rows of a pass, T positions of a pass.
"""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from routed_rl.ranks import RANKS
from routed_rl.training.lean.forward import Pass, find_positions, make_pass, run_pass
from routed_rl.training.lean.passes import PASS_COST, split_by_length
from routed_rl.training.lean.planning import PlanningMixin
from routed_rl.training.lean.rows import chosen_rows, lengths


class LeanMixin(PlanningMixin):
    """Runs only the rows that have a gradient, in passes of similar length, and scores only the tokens of completions."""

    _inputs: dict[str, Any] | None = None
    """The micro-batch whose loss is being computed."""
    _positions: bool | None = None
    """Whether the model is given position ids; None as long as this is not known."""

    def name_rows(self, inputs: dict[str, Any], some: Pass | None) -> None:
        """Called before each forward pass with gradients, with the pass, or with None if all rows of the micro-batch run as TRL
        made them."""

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        self._inputs = inputs
        try:
            loss = super()._compute_loss(model, inputs)  # pyright: ignore[reportAttributeAccessIssue]
        finally:
            self._inputs = None
        if torch.is_grad_enabled() and not loss.requires_grad:  # no row ran
            self._forget_entropy()
            loss = loss + torch.zeros((), device=loss.device, requires_grad=True)
        return loss

    def _forget_entropy(self) -> None:
        """Remove the entropy that TRL has logged for a micro-batch of which no row ran."""
        metrics = self._metrics["train"]  # pyright: ignore[reportAttributeAccessIssue]
        metrics["entropy"].pop()
        if not metrics["entropy"]:
            del metrics["entropy"]

    def _get_per_token_logps_and_entropies(self, model: nn.Module, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int,
                                           batch_size: int | None = None, **others: Any) -> tuple[Tensor | None, ...]:
        inner = super()._get_per_token_logps_and_entropies  # pyright: ignore[reportAttributeAccessIssue]
        inputs = self._inputs if torch.is_grad_enabled() else None
        # Everything else that TRL gives is of images, or the balance of experts.
        lean = self.lean and all(value is None or value is False for key, value in others.items() if key != "compute_entropy")
        if lean and self._positions is None and inputs is not None:
            self._positions = not self.reads_states and self._found_positions(
                model, input_ids, attention_mask, logits_to_keep, inner)
            if self._positions is None:
                warnings.warn("trainer.lean is off: this model's log-probabilities depend on the padding of a row", stacklevel=2)
                self.lean = False
        if not lean or not self.lean or self._positions is None:
            if inputs is not None:
                self.name_rows(inputs, None)
            return inner(model, input_ids, attention_mask, logits_to_keep, batch_size=batch_size, **others)
        if inputs is not None:
            return (*self._learned(model, inputs, input_ids, attention_mask, logits_to_keep), None)
        return (*self._read(model, input_ids, attention_mask, logits_to_keep, batch_size,
                            bool(others.get("compute_entropy"))), None)

    def _found_positions(self, *given: Any) -> bool | None:
        with self.accelerator.autocast():  # pyright: ignore[reportAttributeAccessIssue]
            return find_positions(*given)

    def _learned(self, model: nn.Module, inputs: dict[str, Any], input_ids: Tensor, attention_mask: Tensor, tokens: int
                 ) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies of a micro-batch, (B, C) each. A row that does not run gets the log-probabilities with
        which it was sampled, and the mean entropy of the other rows, unless the loss reads its entropy."""
        logps_BC, entropies_BC = _sampled(inputs), torch.zeros(inputs["completion_ids"].shape, device=input_ids.device)
        everyone = torch.arange(len(input_ids), device=input_ids.device)
        rows = everyone if self.reads_states or self._every_row_teaches() else chosen_rows(inputs)
        whole, found = self.reads_states, list[tuple[Pass, Tensor, Tensor]]()
        for chosen in [] if not len(rows) else self._passes(rows, lengths(inputs)[rows]):
            some = make_pass(chosen, input_ids, attention_mask, tokens, whole=whole)
            self.name_rows(inputs, some)
            found.append((some, *self._run(model, some)))
        if found:
            rows_N, columns_N = (torch.cat([some.places[axis] for some, *_ in found]) for axis in (0, 1))
            logps_BC = logps_BC.index_put((rows_N, columns_N), torch.cat([logps for _, logps, _ in found]))
            entropies_BC = entropies_BC.index_put((rows_N, columns_N), torch.cat([entropies for *_, entropies in found]))
        others = everyone[~torch.isin(everyone, rows)]
        if len(others) and self._reads_entropy():
            with torch.no_grad():
                some = make_pass(others, input_ids, attention_mask, tokens)
                entropies_BC = entropies_BC.index_put(some.places, self._run(model, some)[1])
        elif len(others) and found:
            entropies_BC[others] = torch.cat([entropies for *_, entropies in found]).detach().mean()
        return logps_BC, entropies_BC

    def _passes(self, rows: Tensor, lengths_R: Tensor) -> list[Tensor]:
        """The rows of each forward pass. There are several passes only in a single process that does not recompute activations: a
        recomputed pass would find the record of a later pass, and all processes must run equally many."""
        trainer: Any = self
        if RANKS.count > 1 or self.reads_states or trainer.args.gradient_checkpointing:
            return [rows]
        cost = PASS_COST.get(rows.device.type, PASS_COST["cuda"])
        return [rows[torch.tensor(places, device=rows.device)] for places in split_by_length(lengths_R.tolist(), cost)]

    @torch.no_grad()
    def _read(self, model: nn.Module, input_ids: Tensor, attention_mask: Tensor, tokens: int, batch_size: int | None,
              entropy: bool) -> tuple[Tensor, Tensor | None]:
        """As TRL's method: log-probabilities, and entropies if `entropy`, of all rows in their order, `batch_size` at a time."""
        found = [torch.zeros(len(input_ids), tokens, device=input_ids.device) for _ in range(2)]
        for rows in torch.arange(len(input_ids), device=input_ids.device).split(batch_size or len(input_ids)):
            some = make_pass(rows, input_ids, attention_mask, tokens)
            for each, values in zip(found, self._run(model, some), strict=True):
                each[some.places] = values
        return found[0], found[1] if entropy else None

    def _run(self, model: nn.Module, some: Pass) -> tuple[Tensor, Tensor]:
        with self.accelerator.autocast():  # pyright: ignore[reportAttributeAccessIssue]
            return run_pass(model, some, positions=bool(self._positions))


def _sampled(inputs: dict[str, Any]) -> Tensor:
    """The log-probabilities (B, C) with which the completions were sampled if TRL computed them, else 0. With them the ratio of a
    row is 1, so that nothing in the loss overflows before it is multiplied by an advantage of 0."""
    if (old := inputs.get("old_per_token_logps")) is not None:
        return old
    mask = inputs["completion_mask"].float()
    if (sums := inputs.get("old_logps")) is not None:  # RLOO's, one for each completion
        return sums.unsqueeze(1) * mask / mask.sum(1, keepdim=True).clamp(min=1)
    return torch.zeros_like(mask)
