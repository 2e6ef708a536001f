"""Writes and reads a routed trainer's checkpoint, even if the processes hold shards of the weights: a plain model folder or a
stock adapter, the optimizer, the quarantine, and for each process its place in the training loop with the completions that it has
stored. The mixin here is a base class of `RoutedTrainerMixin`."""

import shutil
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from routed_rl.artifacts import RunFolder, read_json, step_of
from routed_rl.checkpoint import (
    QUARANTINE,
    going_on_from,
    load_loop,
    load_quarantine,
    loop_file,
    save_loop,
    save_quarantine,
    writing,
)
from routed_rl.model.adapter import is_adapted, plain, save_adapter
from routed_rl.model.load import write_generation_config
from routed_rl.model.metadata import family_metadata
from routed_rl.ranks import RANKS
from routed_rl.routing import Router
from routed_rl.training.ahead import Ahead
from routed_rl.training.backends import shard
from routed_rl.training.finite import FiniteCheck
from routed_rl.training.resuming import check_optimizer, check_trainer_state, take_schedule, use_rates
from routed_rl.training.rows import Rows
from routed_rl.training.whole import take_optimizer, take_weights, torch_optimizer, whole_optimizer, whole_weights

READ = {"prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages", "environment_ids"}
"""The tensors that the stored completions of a checkpoint must have, because the loss reads them."""


class SavingMixin:
    """Shards the model, writes checkpoints and resumes from them. A checkpoint is sealed when every process has written its
    files."""

    strategy: str
    """The value of `launch.strategy`."""
    shared: bool
    """Whether processes hold local shards of the weights, or of the optimizer's copy of them."""
    router: Router | None
    run: RunFolder
    finite: FiniteCheck
    reward: Rows
    origin: dict[str, str] | None = None
    """Metadata about the start of the run, such as the hash of the model, which a checkpoint holds beside the state of the loop
    and in the quarantine's file. None: nothing is added."""
    ahead: Ahead | None = None
    """The object that requests the next generation in advance if `rollout.ahead` is set; None otherwise."""
    optimizer_names: list[list[str]]

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        trainer: Any = self
        if trainer.optimizer is not None:
            return trainer.optimizer
        if self.strategy == "fsdp2":
            shard(trainer.model)  # before the optimizer, because it replaces the parameters
            # Otherwise accelerate would wrap it in DDP.
            trainer.accelerator.prepare_model = partial(trainer.accelerator.prepare_model, evaluation_mode=True)
        optimizer = super().create_optimizer(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        # In a LoRA no parameter is spared weight decay, and ZeRO accepts no group without parameters.
        optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
        if self.shared:
            names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
            self.optimizer_names = [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]
        return optimizer

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        prepare = super()._prepare_for_training  # pyright: ignore[reportAttributeAccessIssue]
        if not self.shared:
            return prepare(max_steps, train_dataloader, resume_from_checkpoint)
        prepared, trainer = prepare(max_steps, train_dataloader, None), self
        if self.router is not None:
            self.router.measure_start()
        if resume_from_checkpoint is not None:
            take_weights(trainer.model, Path(resume_from_checkpoint))  # pyright: ignore[reportAttributeAccessIssue]
            self._load_optimizer_and_scheduler(resume_from_checkpoint)
        return prepared

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        # Not transformers' own method, which loads no expert of a mixture, and accepts a file without any of the model's weights.
        if not self.shared:  # otherwise it happens when the model is sharded
            take_weights(self.model, Path(resume_from_checkpoint))  # pyright: ignore[reportAttributeAccessIssue]

    def train(self, resume_from_checkpoint: str | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train from the start, or go on from the folder of a checkpoint. CheckpointError, which names the file, if a file of the
        checkpoint cannot be read or does not fit this run."""
        if resume_from_checkpoint is not None:
            check_trainer_state(Path(resume_from_checkpoint))
        return super().train(resume_from_checkpoint, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing: no model card is written, because the run's manifest describes its checkpoints."""

    def _get_output_dir(self, trial: Any) -> str:
        return getattr(self, "_checkpoint_root", None) or super()._get_output_dir(trial)  # pyright: ignore

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        step, limit = self.state.global_step, self.args.save_total_limit  # pyright: ignore[reportAttributeAccessIssue]
        best = self._best_checkpoint(step)
        with writing(self.run, step, limit, best) if RANKS.rank == 0 else nullcontext() as own:
            folder = Path(RANKS.first(str(own)))
            self._checkpoint_root = str(folder)
            try:
                super()._save_checkpoint(model, trial)  # pyright: ignore[reportAttributeAccessIssue]
            finally:
                self._checkpoint_root = None
            save_loop(folder, {"micro_step": self._step, "buffered": self._buffered_inputs, "shape": self._loop_shape(),
                               "ahead": self.ahead.state() if self.ahead is not None else None, "origin": self.origin,
                               **self.reward.state()}, RANKS.rank)
            RANKS.wait()  # The first process seals it after all have written.
            if best is not None:  # transformers has noted the folder in which the checkpoint was being written
                self.state.best_model_checkpoint = str(best)  # pyright: ignore[reportAttributeAccessIssue]
            if RANKS.rank == 0:
                stock = next(folder.glob("checkpoint-*"))
                if best is not None:
                    self.state.save_to_json(str(stock / "trainer_state.json"))  # pyright: ignore[reportAttributeAccessIssue]
                for path in stock.iterdir():
                    shutil.move(path, folder)
                stock.rmdir()
            self._save_beside(folder)
            self.finite.checkpoint(step, folder, self.model)  # pyright: ignore[reportAttributeAccessIssue]
        RANKS.wait()

    def _best_checkpoint(self, step: int) -> Path | None:
        """Return the checkpoint with the best value of `args.metric_for_best_model`, counting that of `step`, which is about to
        be written; None if no such metric was evaluated, or if no checkpoint was written at its best steps."""
        state: Any = self.state  # pyright: ignore[reportAttributeAccessIssue]
        if state.best_global_step and (state.best_global_step == step or self.run.checkpoint(state.best_global_step).exists()):
            return self.run.checkpoint(state.best_global_step)
        return Path(state.best_model_checkpoint) if state.best_model_checkpoint else None

    def _save_beside(self, folder: Path) -> None:
        """Write those files of a checkpoint that TRL's trainer does not write: the generation config (unless a LoRA is trained),
        and the quarantine. Every process must call this; the first one writes."""
        trainer: Any = self
        model = trainer.accelerator.unwrap_model(trainer.model)
        if RANKS.rank == 0 and not is_adapted(model):
            write_generation_config(model, folder)
        if self.router is not None:
            save_quarantine(folder, self.router, trainer.state.global_step, family_metadata(plain(model)) | (self.origin or {}))
        elif RANKS.rank == 0:
            (folder / QUARANTINE).unlink(missing_ok=True)  # another run's, which a reader would take for this model's

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        trainer: Any = self
        if is_adapted(trainer.model):
            self._save_adapter(Path(output_dir or trainer.args.output_dir))
            return
        state = whole_weights(trainer.model) if self.shared else None
        if RANKS.rank == 0:
            self._save(output_dir, state_dict=state)  # pyright: ignore[reportAttributeAccessIssue]

    def _save_adapter(self, folder: Path) -> None:
        """Write the LoRA of the deployed model, in the form of stock PEFT, and the tokenizer. Every process must call this; the
        first one writes."""
        trainer: Any = self
        model = trainer.accelerator.unwrap_model(trainer.model)
        folder.mkdir(parents=True, exist_ok=True)
        deployed = self.router.quarantine.deployed_factors() if self.router is not None else {}
        save_adapter(model, folder, deployed, self.run.base_for(model.config._name_or_path))
        if RANKS.rank == 0:
            trainer.processing_class.save_pretrained(folder)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        trainer: Any = self
        optimizer = trainer.optimizer
        state = whole_optimizer(optimizer, trainer.model, self.optimizer_names) if self.shared else optimizer.state_dict()
        if RANKS.rank == 0:
            torch.save(state, Path(output_dir, "optimizer.pt"))
            torch.save(trainer.lr_scheduler.state_dict(), Path(output_dir, "scheduler.pt"))

    def _loop_shape(self) -> list[int]:
        """Return the sizes on which the stored completions and the count of micro-batches depend: processes, micro-batches per
        step, and rows per micro-batch."""
        return [RANKS.count, self.args.gradient_accumulation_steps, self.args.per_device_train_batch_size]  # pyright: ignore

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        trainer: Any = self
        # Some schedules note no initial rate, and some optimizers have no weight decay.
        wanted = [(group.get("initial_lr", group["lr"]), group.get("weight_decay", 0.0))
                  for group in trainer.optimizer.param_groups]
        # transformers would load onto the device "cpu:0", which torch does not know.
        with going_on_from(file := Path(checkpoint, "optimizer.pt")):
            stored = torch.load(file, map_location="cpu", weights_only=True)
            if self.shared:
                take_optimizer(trainer.optimizer, trainer.model, self.optimizer_names, stored)
            else:
                groups = trainer.optimizer.param_groups
                shapes = [parameter.shape for group in groups for parameter in group["params"]]
                check_optimizer(torch_optimizer(trainer.optimizer), shapes, stored)
                trainer.optimizer.load_state_dict(stored)
        take_schedule(trainer.lr_scheduler, Path(checkpoint, "scheduler.pt"))
        adapts = getattr(trainer, "use_adaptive_entropy", False)  # TRL's; the checkpoint has its state if it was on
        if adapts and (file := Path(checkpoint, "entropy_ctrl_state.json")).exists():
            with going_on_from(file):
                state = read_json(file)
                trainer.entropy_coef, trainer._last_world_entropy = state["entropy_coef"] + 0.0, state["last_world_entropy"] + 0.0
        use_rates(trainer.optimizer, trainer.lr_scheduler, wanted)
        if self.router is not None:
            load_quarantine(Path(checkpoint), self.router)
        self._go_on_in_loop(Path(checkpoint))

    def _go_on_in_loop(self, checkpoint: Path) -> None:
        loop = load_loop(checkpoint, RANKS.rank)
        step, shape = step_of(checkpoint), self._loop_shape()
        # With another number of processes the stored completions would be divided otherwise, so they are generated again.
        self._step, self._buffered_inputs = step * shape[1], None
        if loop is not None and loop.get("shape", shape) == shape:
            with going_on_from(loop_file(checkpoint, RANKS.rank)):
                check_buffered(loop["buffered"] or [], shape[2])
                self.reward.load(loop)
                if self.ahead is not None:
                    self.ahead.load(loop.get("ahead"))
            self._step = loop["micro_step"]
            if len(loop["buffered"] or []) == self.args.steps_per_generation:  # pyright: ignore[reportAttributeAccessIssue]
                self._buffered_inputs = loop["buffered"]  # else TRL makes a generation of the new size now

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with going_on_from(Path(checkpoint or "", f"rng_state{f'_{RANKS.rank}' if RANKS.count > 1 else ''}.pth")):
            super()._load_rng_state(checkpoint)  # pyright: ignore[reportAttributeAccessIssue]


def check_buffered(buffered: list[dict[str, Any]], rows: int) -> None:
    """ValueError if a micro-batch of stored completions lacks a tensor that the loss reads, or if such a tensor does not have
    `rows` entries."""
    for batch in buffered:
        if wrong := [name for name in sorted(READ) if not isinstance(batch.get(name), Tensor) or len(batch[name]) != rows]:
            raise ValueError(f"its completions have no {wrong[0]} with {rows} rows")
