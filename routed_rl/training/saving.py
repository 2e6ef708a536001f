"""What a routed trainer's checkpoint holds and how it is written and read: a mixin under the step's own.

A checkpoint is a plain model folder, the optimizer, the quarantine, and of each process where its loop was.
"""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from routed_rl.artifacts import RunFolder, step_of
from routed_rl.checkpoint import going_on_from, load_loop, load_quarantine, loop_file, save_loop, save_quarantine, writing
from routed_rl.model.load import write_generation_config
from routed_rl.ranks import RANKS
from routed_rl.training.finite import FiniteCheck
from routed_rl.training.resuming import check_trainer_state, use_rates
from routed_rl.training.sharing import SharedTrainerMixin
from routed_rl.training.tasks import RewardFunction

READ = {"prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages", "environment_ids"}
"""Tensors of the completions in store without which there is no loss."""


class SavingMixin(SharedTrainerMixin):
    """Writes whole checkpoints, sealed when every process has written its part, and goes on from one."""

    run: RunFolder
    finite: FiniteCheck
    reward: RewardFunction

    def train(self, resume_from_checkpoint: str | None = None, *args: Any, **kwargs: Any) -> Any:
        """Go on from a checkpoint whose files are what a run writes; CheckpointError names one that is not."""
        if resume_from_checkpoint is not None:
            check_trainer_state(Path(resume_from_checkpoint))
        return super().train(resume_from_checkpoint, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """No card: what a checkpoint is, its run's manifest says."""

    def _get_output_dir(self, trial: Any) -> str:
        return getattr(self, "_checkpoint_root", None) or super()._get_output_dir(trial)  # pyright: ignore

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        step, limit = self.state.global_step, self.args.save_total_limit  # pyright: ignore[reportAttributeAccessIssue]
        with writing(self.run, step, limit) if RANKS.rank == 0 else nullcontext() as own:
            folder = Path(RANKS.first(str(own)))
            self._checkpoint_root = str(folder)
            try:
                super()._save_checkpoint(model, trial)  # pyright: ignore[reportAttributeAccessIssue]
            finally:
                self._checkpoint_root = None
            scorer = self.reward.scorer
            save_loop(folder, {"micro_step": self._step, "buffered": self._buffered_inputs, "shape": self._loop_shape(),
                               "scored": dict(scorer.scored), "failed": dict(scorer.failed),
                               "completions": self.reward.completions.state()}, RANKS.rank)
            RANKS.wait()  # Sealed by the first process when all have written.
            if RANKS.rank == 0:
                stock = next(folder.glob("checkpoint-*"))
                for path in stock.iterdir():
                    shutil.move(path, folder)
                stock.rmdir()
                write_generation_config(self.accelerator.unwrap_model(self.model), folder)  # pyright: ignore
                if self.router is not None:
                    save_quarantine(folder, self.router, step)
            self.finite.checkpoint(step, folder, self.model)  # pyright: ignore[reportAttributeAccessIssue]
        RANKS.wait()

    def _loop_shape(self) -> list[int]:
        """What buffered completions and the count of micro-batches depend on."""
        return [RANKS.count, self.args.gradient_accumulation_steps, self.args.per_device_train_batch_size]  # pyright: ignore

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        trainer: Any = self
        wanted = [(group["initial_lr"], group["weight_decay"]) for group in trainer.optimizer.param_groups] if checkpoint else []
        super()._load_optimizer_and_scheduler(checkpoint)  # pyright: ignore[reportAttributeAccessIssue]
        if checkpoint is not None:
            use_rates(trainer.optimizer, trainer.lr_scheduler, wanted)
            if self.router is not None:
                load_quarantine(Path(checkpoint), self.router)
            loop = load_loop(Path(checkpoint), RANKS.rank)
            step, shape = step_of(Path(checkpoint)), self._loop_shape()
            # With other processes the completions in store are cut otherwise: they are generated anew.
            self._step, self._buffered_inputs = step * shape[1], None
            if loop is not None and loop.get("shape", shape) == shape:
                with going_on_from(loop_file(Path(checkpoint), RANKS.rank)):
                    check_buffered(loop["buffered"] or [], shape[2])
                    self.reward.completions.load(loop["completions"])
                self._step, self._buffered_inputs = loop["micro_step"], loop["buffered"]
                self.reward.scorer.scored.update(loop["scored"])
                self.reward.scorer.failed.update(loop["failed"])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with going_on_from(Path(checkpoint or "", f"rng_state{f'_{RANKS.rank}' if RANKS.count > 1 else ''}.pth")):
            super()._load_rng_state(checkpoint)  # pyright: ignore[reportAttributeAccessIssue]


def check_buffered(buffered: list[dict[str, Any]], rows: int) -> None:
    """ValueError for completions in store that lack what a loss reads of each of `rows` rows."""
    for batch in buffered:
        if wrong := [name for name in sorted(READ) if not isinstance(batch.get(name), Tensor) or len(batch[name]) != rows]:
            raise ValueError(f"its completions have no {wrong[0]} of {rows} rows")
