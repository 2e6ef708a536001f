"""The mixin that leaves out of a trainer's update everything that does not change the gradient. It is a base class of
`RoutedTrainerMixin`. It replaces the forward passes that TRL's loss makes, and leaves the loss itself as it is.

Shape letters: B rows of a micro-batch, C columns of its completions, R rows of a pass, T positions of a pass.
"""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from routed_rl.model.adapter import plain
from routed_rl.model.prefill import sharing_prompts
from routed_rl.ranks import RANKS
from routed_rl.training.lean.forward import Pass, find_positions, make_pass, run_pass
from routed_rl.training.lean.passes import pass_cost, split_by_length
from routed_rl.training.lean.planning import PlanningMixin
from routed_rl.training.lean.prefix import SharedPass, can_share, make_shared_pass, run_shared_pass
from routed_rl.training.lean.rows import chosen_rows, lengths


class LeanMixin(PlanningMixin):
    """Runs only the rows that have a gradient, in passes over rows of similar length, and computes log-probabilities only for the
    tokens of completions."""

    _inputs: dict[str, Any] | None = None
    """The micro-batch whose loss is being computed."""
    _positions: bool | None = None
    """The argument `positions` with which `run_pass` must be called for this model; None until `find_positions` has found it."""

    shares_prompts: bool | None = None
    """Whether an update computes the prompt of several rows once. None until `can_share` has said it of the model; False from the
    beginning where a subclass must tell rows apart, or change what the model computes."""

    def name_rows(self, inputs: dict[str, Any], some: Pass | None) -> None:
        """Hook for subclasses, which learn by it which rows of the micro-batch `inputs` the next forward pass runs, for example
        to tell a router their environments. `some`: the rows that run, with the columns that they keep; None if all rows run,
        with their padding. Here it does nothing."""

    def _generate_single_turn(self, *given: Any, **named: Any) -> Any:
        trainer: Any = self
        generate = super()._generate_single_turn  # pyright: ignore[reportAttributeAccessIssue]
        if not self.lean or self.shared or trainer.use_vllm:
            return generate(*given, **named)
        model = plain(trainer.accelerator.unwrap_model(trainer.model_wrapped))
        with sharing_prompts(model, None if trainer.router is None else trainer.router.context):
            return generate(*given, **named)

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
        """Remove the entropy that TRL has just logged, because no row of the micro-batch was run."""
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
        """Return the log-probabilities and entropies that the loss of a micro-batch reads, (B, C) each. A row that is left out
        gets the log-probabilities with which it was sampled. Its entropies are computed if the loss reads them; otherwise they
        are set to the mean entropy of the rows that run."""
        logps_BC, entropies_BC = _sampled(inputs), torch.zeros(inputs["completion_ids"].shape, device=input_ids.device)
        everyone = torch.arange(len(input_ids), device=input_ids.device)
        rows = everyone if self.reads_states or self._every_row_teaches() else chosen_rows(inputs)
        others = everyone[~torch.isin(everyone, rows)]
        if len(others) and self._reads_entropy():
            # First, because a checkpointed pass of the other rows is repeated with the rows that were named last.
            with torch.no_grad():
                some = make_pass(others, input_ids, attention_mask, tokens)
                self.name_rows(inputs, some)
                entropies_BC = entropies_BC.index_put(some.places, self._run(model, some)[1])
        found = list[tuple[Pass | SharedPass, Tensor, Tensor]]()
        passes = [make_pass(chosen, input_ids, attention_mask, tokens, whole=self.reads_states)
                  for chosen in (self._passes(rows, lengths(inputs)[rows]) if len(rows) else [])]
        for some in self._shared(model, passes, rows, input_ids, attention_mask, tokens) or passes:
            if isinstance(some, Pass):
                self.name_rows(inputs, some)
            found.append((some, *self._run(model, some)))
        if found:
            rows_N, columns_N = (torch.cat([some.places[axis] for some, *_ in found]) for axis in (0, 1))
            logps_BC = logps_BC.index_put((rows_N, columns_N), torch.cat([logps for _, logps, _ in found]))
            entropies_BC = entropies_BC.index_put((rows_N, columns_N), torch.cat([entropies for *_, entropies in found]))
        if len(others) and found and not self._reads_entropy():
            entropies_BC[others] = torch.cat([entropies for *_, entropies in found]).detach().mean()
        return logps_BC, entropies_BC

    def _divides(self) -> bool:
        """Whether the rows of a micro-batch may run in several forward passes."""
        trainer: Any = self
        # A script may have enabled checkpointing on the model itself.
        return RANKS.count == 1 and not self.reads_states and not plain(trainer.model).is_gradient_checkpointing

    def _passes(self, rows: Tensor, lengths_R: Tensor) -> list[Tensor]:
        """Divide the indices `rows` of the rows that run, by their lengths, among forward passes: one tensor of indices for each
        pass. With several processes there is a single pass, because all processes must run equally many. With gradient
        checkpointing there is a single pass too, because a pass that is recomputed would find the router's record of a later
        pass."""
        if not self._divides():
            return [rows]
        places = split_by_length(lengths_R.tolist(), pass_cost(rows.device.type))
        return [rows[torch.tensor(each, device=rows.device)] for each in places]

    def _shared(self, model: nn.Module, passes: list[Pass], rows: Tensor, input_ids: Tensor, attention_mask: Tensor, tokens: int
                ) -> list[SharedPass]:
        """Return a pass over the indices `rows` in which rows share their prompts; [] if it would cost as much as `passes`, or if
        the model or the trainer cannot share."""
        trainer: Any = self  # whose model is wrapped where it is compiled; checkpointing keeps no keys and values
        if not passes or self.shares_prompts is False or not self._divides() or model is not trainer.model:
            return []
        shared = make_shared_pass(rows, input_ids, attention_mask, tokens)
        cost = pass_cost(rows.device.type)
        if shared is None or shared.tokens + 2 * cost >= sum(some.ids_RT.numel() + cost for some in passes):
            return []
        if self.shares_prompts is None:
            pair = rows[shared.prompts_R == shared.prompts_R.mode().values][:2]
            with self.accelerator.autocast():  # pyright: ignore[reportAttributeAccessIssue]
                self.shares_prompts = can_share(model, input_ids[pair], attention_mask[pair], tokens,
                                                positions=bool(self._positions))
        return [shared] if self.shares_prompts else []

    @torch.no_grad()
    def _read(self, model: nn.Module, input_ids: Tensor, attention_mask: Tensor, tokens: int, batch_size: int | None,
              entropy: bool) -> tuple[Tensor, Tensor | None]:
        """Return the log-probabilities of all rows without gradients, and their entropies (None unless `entropy`), as TRL's
        method does, (B, C) each. `batch_size` rows are run at a time."""
        found = [torch.zeros(len(input_ids), tokens, device=input_ids.device) for _ in range(2)]
        for rows in torch.arange(len(input_ids), device=input_ids.device).split(batch_size or len(input_ids)):
            some = make_pass(rows, input_ids, attention_mask, tokens)
            for each, values in zip(found, self._run(model, some), strict=True):
                each[some.places] = values
        return found[0], found[1] if entropy else None

    def _run(self, model: nn.Module, some: Pass | SharedPass) -> tuple[Tensor, Tensor]:
        run: Any = run_pass if isinstance(some, Pass) else run_shared_pass
        with self.accelerator.autocast():  # pyright: ignore[reportAttributeAccessIssue]
            return run(model, some, positions=bool(self._positions))


def _sampled(inputs: dict[str, Any]) -> Tensor:
    """Return the log-probabilities (B, C) with which a micro-batch's completions were sampled, or 0 if TRL has not computed them.
    The loss reads them for a row that is left out, so that the row's importance ratio is 1 and cannot overflow before it is
    multiplied by the advantage 0."""
    if (old := inputs.get("old_per_token_logps")) is not None:
        return old
    mask = inputs["completion_mask"].float()
    if (sums := inputs.get("old_logps")) is not None:  # RLOO's, one for each completion
        return sums.unsqueeze(1) * mask / mask.sum(1, keepdim=True).clamp(min=1)
    return torch.zeros_like(mask)
