"""Plans the micro-batches of a generation: which rows are in the same micro-batch, and which rows run through the model in the
update. Rows that do not change the gradient need not run. `LeanMixin` is built on this."""

from typing import Any

from routed_rl.ranks import RANKS
from routed_rl.training.lean.rows import choose, regroup, teaches

ADDS_UP = {"grpo", "dr_grpo", "dapo", "cispo", "vespo", "sapo", "luspo"}
"""The loss types of TRL whose sum over the micro-batches of an optimizer step does not depend on how rows are divided among the
micro-batches. `bnpo` is not one of them, because it divides by the number of tokens in a micro-batch."""


class PlanningMixin:
    """Replaces the micro-batches into which TRL has divided a generation by others with the same rows."""

    lean = True
    """The value of `trainer.lean`; with False TRL computes everything itself."""
    shared: bool
    """Whether processes hold shards of the weights, see `SavingMixin`."""
    reads_states = False
    """Whether a subclass reads the final state at every position, so that every row runs with its padding."""

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        trainer: Any = self
        before = trainer._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)  # pyright: ignore[reportAttributeAccessIssue]
        if not trainer.model.training or not self.lean or self.reads_states or trainer._buffered_inputs is before:
            return inputs
        trainer._buffered_inputs = self._planned(trainer._buffered_inputs)
        return trainer._buffered_inputs[trainer._step % trainer.args.steps_per_generation]

    def _planned(self, batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the micro-batches of a generation, regrouped where that does not change the gradient. Unless every row teaches,
        `rows.choose` has written into each micro-batch which of its rows run."""
        trainer: Any = self
        steps, together = trainer.args.gradient_accumulation_steps, self._adds_up()
        if len(batches) % steps:
            steps, together = (len(batches), together) if steps % len(batches) == 0 else (1, False)
        windows = [batches[start:start + steps] for start in range(0, len(batches), steps)]
        if together:
            windows = [regroup(window) for window in windows]
        if not self._every_row_teaches():
            for window, running in zip(windows, self._running(windows, together), strict=True):
                choose(window, running)
        return [batch for window in windows for batch in window]

    def _running(self, windows: list[list[dict[str, Any]]], together: bool) -> list[int]:
        """Return, for each optimizer step, how many of its last micro-batches must run at least one row. In a single process this
        is 1. With several processes it is the same number in all of them. If weights are sharded, or if rows with a gradient do
        not come last (`together` is False), it is the number of all micro-batches of the step; otherwise it is the number of
        micro-batches that have a row with a gradient, in the process in which this number is largest. `windows`: the
        micro-batches of each step."""
        if RANKS.count == 1:
            return [1] * len(windows)
        if not together or self.shared:
            return [len(window) for window in windows]
        counts = [sum(bool(teaches(batch).any()) for batch in window) for window in windows]
        return [max(each) for each in zip(*RANKS.gather(counts), strict=True)]

    def _adds_up(self) -> bool:
        """Whether the loss stays the same if rows are divided among the micro-batches of an optimizer step in another way."""
        trainer: Any = self
        loss_type = getattr(trainer, "loss_type", None)  # RLOO has none, and takes the mean over rows
        return (loss_type is None or loss_type in ADDS_UP) and not self._reads_entropy() and not trainer.aux_loss_enabled

    def _every_row_teaches(self) -> bool:
        """Whether rows of advantage 0 have a gradient too: by a KL term in the loss (RLOO's is in its rewards), by an entropy
        bonus, or by the loss that balances experts."""
        trainer: Any = self
        divergence = hasattr(trainer, "loss_type") and trainer.beta != 0.0
        return divergence or getattr(trainer, "_entropy_bonus_enabled", False) or trainer.aux_loss_enabled

    def _reads_entropy(self) -> bool:
        """Whether the loss depends on the entropy at each token of a micro-batch."""
        return getattr(self, "_entropy_bonus_enabled", False) or getattr(self, "top_entropy_quantile", 1.0) < 1.0
