"""Plans the micro-batches of a generation: which rows are together, and which of them run. The lean trainer's mixin is built on
it."""

from typing import Any

from routed_rl.ranks import RANKS
from routed_rl.training.lean.rows import choose, regroup, teaches

ADDS_UP = {"grpo", "dr_grpo", "dapo", "cispo", "vespo", "sapo", "luspo"}
"""TRL's loss types whose sum over an optimizer step's micro-batches does not depend on how rows are divided among them. `bnpo` is
not one of them, because it divides by the number of tokens of a micro-batch."""


class PlanningMixin:
    """Replaces the micro-batches into which TRL has divided a generation."""

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
        """The micro-batches of a generation, with the rows that run in each."""
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
        """For each optimizer step, how many of its last micro-batches run at least one row. All processes run equally many: as
        many as the process with the most rows that teach, if these rows come last, and all of them if weights are sharded."""
        if RANKS.count == 1:
            return [1] * len(windows)
        if not together or self.shared:
            return [len(window) for window in windows]
        counts = [sum(bool(teaches(batch).any()) for batch in window) for window in windows]
        return [max(each) for each in zip(*RANKS.gather(counts), strict=True)]

    def _adds_up(self) -> bool:
        """Whether rows may be divided among the micro-batches of an optimizer step in another way."""
        trainer: Any = self
        loss_type = getattr(trainer, "loss_type", None)  # RLOO has none, and takes the mean over rows
        return (loss_type is None or loss_type in ADDS_UP) and not self._reads_entropy() and not trainer.aux_loss_enabled

    def _every_row_teaches(self) -> bool:
        """Whether rows of advantage 0 have a gradient all the same: by a KL term in the loss (RLOO's is in its rewards), the
        entropy, or the balance of experts."""
        trainer: Any = self
        divergence = hasattr(trainer, "loss_type") and trainer.beta != 0.0
        return divergence or getattr(trainer, "_entropy_bonus_enabled", False) or trainer.aux_loss_enabled

    def _reads_entropy(self) -> bool:
        """Whether the loss depends on the entropy at each token of a micro-batch."""
        return getattr(self, "_entropy_bonus_enabled", False) or getattr(self, "top_entropy_quantile", 1.0) < 1.0
