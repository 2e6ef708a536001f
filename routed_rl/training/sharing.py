"""What changes in TRL's trainer where the processes share the weights: mixed in before the routed trainer's own part.

With one process it does nothing but go on from a checkpoint.
"""

from __future__ import annotations

import zlib
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from routed_rl.artifacts import read_json
from routed_rl.checkpoint import going_on_from
from routed_rl.errors import ConfigError
from routed_rl.ranks import RANKS
from routed_rl.routing import Router
from routed_rl.training.backends import shard
from routed_rl.training.resuming import check_optimizer, take_schedule
from routed_rl.training.whole import take_optimizer, take_weights, torch_optimizer, whole_optimizer, whole_weights


class SharedTrainerMixin:
    """Shards the model, clips, saves and loads whole checkpoints. `strategy` is `launch.strategy`."""

    strategy: str
    shared: bool
    """A process holds a piece of the weights, or of the optimizer's copy of them."""
    router: Router | None
    optimizer_names: list[list[str]]

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        trainer: Any = self
        if trainer.optimizer is not None:
            return trainer.optimizer
        if self.strategy == "fsdp2":
            shard(trainer.model)  # before: it replaces the parameters
            # Else accelerate would put DDP around it.
            trainer.accelerator.prepare_model = partial(trainer.accelerator.prepare_model, evaluation_mode=True)
        optimizer = super().create_optimizer(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
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
        # Not transformers' own, which takes no expert of a mixture, and a file without any of the model's weights.
        if not self.shared:  # else when the model is in its pieces
            take_weights(self.model, Path(resume_from_checkpoint))  # pyright: ignore[reportAttributeAccessIssue]

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        state = whole_weights(self.model) if self.shared else None  # pyright: ignore[reportAttributeAccessIssue]
        if RANKS.rank == 0:
            self._save(output_dir, state_dict=state)  # pyright: ignore[reportAttributeAccessIssue]

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        trainer: Any = self
        optimizer = trainer.optimizer
        state = whole_optimizer(optimizer, trainer.model, self.optimizer_names) if self.shared else optimizer.state_dict()
        if RANKS.rank == 0:
            torch.save(state, Path(output_dir, "optimizer.pt"))
            torch.save(trainer.lr_scheduler.state_dict(), Path(output_dir, "scheduler.pt"))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        trainer: Any = self
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
        if (file := Path(checkpoint, "entropy_ctrl_state.json")).exists():  # of TRL's adaptive entropy
            with going_on_from(file):
                state = read_json(file)
                trainer.entropy_coef, trainer._last_world_entropy = state["entropy_coef"] + 0.0, state["last_world_entropy"] + 0.0

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        norm = super()._clip_grad_norm(model)  # pyright: ignore[reportAttributeAccessIssue]
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


def say_what_is_used(model: nn.Module, arguments: Any) -> None:
    """Spare DDP its search for parameters without gradient: only a mixture has some, experts that no token chose."""
    if arguments.ddp_find_unused_parameters is None and not any(hasattr(module, "experts") for module in model.modules()):
        arguments.ddp_find_unused_parameters = False


def check_alike(environments: list[str]) -> None:
    """The ids of environments go over the wire as places in this list, so it must be the same in every process."""
    marks = RANKS.gather(zlib.crc32("/".join(environments).encode()))
    if len(set(marks)) > 1:
        raise ConfigError(f"the processes of this run train different environments, this one {', '.join(environments)}; give all "
                          "of them the same plug-ins and run folder")
