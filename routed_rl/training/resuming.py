"""Checks the optimizer, the schedule and the trainer's state in a checkpoint before a run resumes from them. The libraries accept
whatever a file holds: a moment of Adam in another shape would end the process later, and wrong numbers would be trained with
silently."""

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerState

from routed_rl.artifacts import read_object, step_of
from routed_rl.checkpoint import going_on_from

STATE = {"global_step": int, "max_steps": int, "num_train_epochs": int, "epoch": float, "total_flos": float,
         "train_batch_size": int | None, "log_history": list[dict[str, Any]], "stateful_callbacks": dict[str, Any]}
"""The fields of `trainer_state.json` that a resumed run reads."""


def check_trainer_state(checkpoint: Path) -> None:
    """CheckpointError if the checkpoint's `trainer_state.json` is of another step than its folder's name says, or lacks a
    field."""
    with going_on_from(file := checkpoint / "trainer_state.json"):
        found = read_object(file, STATE)
        if found is None or TrainerState(**found).global_step != step_of(checkpoint):
            raise ValueError(f"it is not the state of a trainer after step {step_of(checkpoint)}")


def check_optimizer(optimizer: torch.optim.Optimizer, shapes: list[torch.Size], stored: Any) -> None:
    """ValueError if `stored`, the state dict from a checkpoint, does not fit this optimizer with parameters of these `shapes`. If
    the optimizer is not one of torch's own, only the settings of its groups are checked."""
    for group, kept in zip(optimizer.param_groups, stored["param_groups"], strict=True):
        for key, value in group.items():
            kind = (int, float) if isinstance(value, (int, float)) else type(value)
            if key != "params" and value is not None and not isinstance(kept[key], kind):
                raise ValueError(f"{key} is {kept[key]!r:.40}")
    expected = _expected(optimizer)
    if expected and not stored["state"]:
        raise ValueError("it holds no moments of the optimizer")
    for place, state in stored["state"].items() if expected else []:
        for key, like in expected.items():
            value, shape = state[key], shapes[place]
            if isinstance(like, Tensor) and value.shape != (like.shape if like.dim() == 0 else shape):
                raise ValueError(f"{key} has the shape {tuple(value.shape)} for a weight of {tuple(shape)}")


def _expected(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return by name an example of each tensor that the optimizer keeps for a weight and that is a scalar or has the weight's
    shape. The examples come from one step of a trial optimizer on a small weight; a checkpoint's state is compared with them."""
    kind = type(optimizer)
    if not kind.__module__.startswith("torch.optim"):
        return {}
    known = inspect.signature(kind).parameters
    weight = nn.Parameter(torch.zeros(2, 3))
    weight.grad = torch.ones_like(weight)
    trial = kind([weight], **{key: value for key, value in optimizer.defaults.items() if key in known})
    trial.step()
    return {key: value for key, value in trial.state[weight].items()
            if isinstance(value, Tensor) and value.shape in (torch.Size(), weight.shape)}


def take_schedule(scheduler: Any, file: Path) -> None:
    """Restore the state of a schedule from `file`. CheckpointError if the file holds no state of this schedule. Call `use_rates`
    afterwards, which sets the learning rates to those of the present settings."""
    with going_on_from(file):
        stored, now = torch.load(file, map_location="cpu", weights_only=True), scheduler.state_dict()
        groups = [len(state.get("lr_lambdas", ())) for state in (stored, now)]
        if not isinstance(stored["last_epoch"], int) or groups[0] != groups[1]:
            raise ValueError("it is no state of this schedule")
        scheduler.load_state_dict(stored)


def use_rates(optimizer: Any, scheduler: Any, wanted: list[tuple[float, float]]) -> None:
    """Set the initial learning rate and the weight decay of each parameter group to `wanted`, which has one pair (rate, decay)
    for each group. The schedule goes on from the checkpoint's step with its present settings. If a script gave a schedule that
    has no `lr_lambdas`, nothing is changed, so the checkpoint's rates stay."""
    schedule = getattr(scheduler, "scheduler", scheduler)
    if not hasattr(schedule, "lr_lambdas"):
        return
    for place, (group, (rate, decay)) in enumerate(zip(optimizer.param_groups, wanted, strict=True)):
        group["weight_decay"] = decay
        group["initial_lr"] = schedule.base_lrs[place] = rate
        group["lr"] = schedule._last_lr[place] = rate * schedule.lr_lambdas[place](schedule.last_epoch)
