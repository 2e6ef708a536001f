"""From the config's `trainer:` to the algorithm's arguments: every field reachable, unknown and unsupported ones refused."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any

import torch
from transformers import PreTrainedModel, Trainer

from routed_rl.artifacts import RunFolder
from routed_rl.config import Config, unknown
from routed_rl.config.references import SECRET, masked, resolved
from routed_rl.errors import ConfigError
from routed_rl.tracking import split_report_to
from routed_rl.training.backends import backend_arguments
from routed_rl.training.ppo import PPOConfig
from routed_rl.training.trainers import TRAINERS, Algorithm, TrainerArguments

OURS = {"output_dir": "set out=FOLDER", "seed": "set seed=N", "data_seed": "set seed=N",
        "remove_unused_columns": "the environments' labels travel in columns of their own",
        "shuffle_dataset": "the mixture of environments orders the tasks",
        "resume_from_checkpoint": "use `routed-rl resume RUN`",
        "disable_tqdm": "progress is shown by routed_rl", "run_name": "set name=NAME", "project": "set tracking.project=NAME",
        "deepspeed": "set launch=zero1, zero2 or zero3", "fsdp": "set launch=fsdp2", "fsdp_config": "set launch=fsdp2",
        "ddp_backend": "the machine decides", "ddp_timeout": "set launch.timeout_s=SECONDS"}
"""Fields that other settings decide."""

UNSUPPORTED = {"fp16": "fp16 loses small updates; use trainer.bf16=true, which keeps float32 weights",
               "use_vllm": "set rollout=vllm_colocate or rollout=vllm_server",
               "use_liger_kernel": "its fused loss hides the writers' cotangents; leave trainer.use_liger_kernel=false",
               "use_transformers_paged": "leave trainer.use_transformers_paged=false",
               "push_to_hub": "push the folder that `routed-rl discard` writes",
               "load_best_model_at_end": "a discarded best model would mix two runs' quarantines; roll back instead",
               "sync_ref_model": "the reference model is the base model; leave trainer.sync_ref_model=false",
               "chat_template_kwargs": "extraction and evaluation render prompts with the plain template",
               "bf16_full_eval": "weights stay float32", "fp16_full_eval": "weights stay float32"}
"""Fields that must stay off, with the reason."""


def check_trainer(trainer: dict[str, Any]) -> None:
    """Refuse unknown keys with the closest known one, and what cannot be routed with the reason."""
    kind = algorithm(trainer).arguments
    hints = typing.get_type_hints(kind)
    known = [f"trainer.{field.name}" for field in dataclasses.fields(kind) if field.init]
    for key, value in settings(trainer).items():
        if key == "peft_config" or key.startswith("lora"):
            raise ConfigError(f"trainer.{key} is refused: routed_rl trains full weights only for now; an adapter is what "
                              "`routed-rl export RUN --quarantine DIR` writes")
        if f"trainer.{key}" not in known:
            raise ConfigError(_unknown(key, known, trainer))
        if key.startswith("vllm_") and not key.startswith(("vllm_importance", "vllm_structured")):
            raise ConfigError(f"trainer.{key} is not set here: vLLM's settings are rollout.{key.removeprefix('vllm_')} and the "
                              "like; rollout=vllm_colocate or rollout=vllm_server chooses it")
        if key in OURS:
            raise ConfigError(f"trainer.{key} is not set here: {OURS[key]}")
        _check_type(key, value, hints[key])
        if key == "save_strategy" and str(value) != "steps":
            raise ConfigError(f"trainer.save_strategy={value} is not supported: a run's end is its last checkpoint; set "
                              "trainer.save_steps=N")
        if key == "report_to":
            split_report_to(value)
        if value and key in UNSUPPORTED:
            raise ConfigError(f"trainer.{key}={value} is not supported: {UNSUPPORTED[key]}")


def algorithm_name(trainer: dict[str, Any]) -> str:
    """What `trainer.algorithm` says; grpo where it says nothing, as in runs that are older than the choice."""
    return trainer.get("algorithm", "grpo")


def algorithm(trainer: dict[str, Any]) -> Algorithm:
    """The row of `TRAINERS` that `trainer.algorithm` names; an unknown one lists them."""
    if (name := algorithm_name(trainer)) not in TRAINERS:
        raise ConfigError(f"trainer.algorithm={name} is not known; choose from {', '.join(TRAINERS)}")
    return TRAINERS[name]


def settings(trainer: dict[str, Any]) -> dict[str, Any]:
    """What of the config's `trainer:` is a field of the algorithm's arguments, with what references stand for.

    A secret stays a reference: checkpoints hold the arguments, and what it would be for, pushing, is refused.
    """
    return {key: value if SECRET.fullmatch(key) else resolved(value, f"trainer.{key}")
            for key, value in trainer.items() if key != "algorithm"}


def _unknown(key: str, known: list[str], trainer: dict[str, Any]) -> str:
    """What is close, or which algorithms have this setting."""
    having = [name for name, row in TRAINERS.items() if key in {field.name for field in dataclasses.fields(row.arguments)}]
    if having:
        return (f"trainer.{key} is a setting of {' and '.join(having)}, and trainer.algorithm is "
                f"{algorithm_name(trainer)}; leave it out, or set trainer={having[0]}")
    return unknown(f"trainer.{key}", [*known, "trainer.algorithm"])


def _check_type(key: str, value: Any, hint: Any) -> None:
    """Refuse a value of another type where the field takes plain ones; others are for GRPOConfig to judge."""
    kinds = set(typing.get_args(hint)) if typing.get_origin(hint) in (typing.Union, types.UnionType) else {hint}
    if not kinds <= {bool, int, float, str, types.NoneType}:
        return
    if isinstance(value, bool):
        fits = bool in kinds
    else:
        fits = type(value) in kinds or (isinstance(value, int) and float in kinds)
    if not fits:
        names = " or ".join(sorted("null" if kind is types.NoneType else kind.__name__ for kind in kinds))
        raise ConfigError(f"trainer.{key} must be {names}, got {masked(repr(value))}")


def training_arguments(config: Config, run: RunFolder) -> TrainerArguments:
    """The arguments of a run's algorithm; what TRL itself refuses comes back as one line."""
    check_trainer(config.trainer)
    if (max_steps := config.trainer.get("max_steps", 0)) <= 0:
        raise ConfigError(f"trainer.max_steps must be >= 1, got {max_steps}: tasks are endless, so a run has no epochs")
    # wandb is told by routed_rl.tracking, under the names of METRICS; transformers' callback would prefix them all.
    trackers: dict[str, Any] = {"report_to": split_report_to(config.trainer.get("report_to"))[1] or "none"}
    try:
        return algorithm(config.trainer).arguments(
            output_dir=str(run.path), seed=config.seed, run_name=run.path.name, project=config.tracking.project,
            remove_unused_columns=False, shuffle_dataset=False, disable_tqdm=True,
            **_defaults(config) | backend_arguments(config) | trackers)
    except (ValueError, TypeError) as error:
        raise ConfigError(masked(f"trainer: {' '.join(str(error).split())}")) from error


def check_optimizer(arguments: TrainerArguments, model: PreTrainedModel) -> None:
    """Refuse a `trainer.optim` whose package is missing, or that PPO's value head cannot have."""
    name = getattr(arguments.optim, "value", arguments.optim)
    try:
        kind, wanted = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
    except (ImportError, RuntimeError, ValueError) as error:
        raise ConfigError(f"trainer.optim={name}: {' '.join(str(error).split())}; or set trainer.optim=adamw_torch") from error
    own = {"params", "model", "optimizer_dict"}  # what transformers gives those that are made for a model's parameters
    if isinstance(arguments, PPOConfig) and (not issubclass(kind, torch.optim.Optimizer) or wanted.keys() & own):
        raise ConfigError(f"trainer.optim={name} is made for a certain model's parameters and cannot train PPO's value head "
                          "beside it; set trainer.optim=adamw_torch")


def optimizer_name(trainer: dict[str, Any]) -> str:
    """What `trainer.optim` says, or its default."""
    default = next(field.default for field in dataclasses.fields(algorithm(trainer).arguments) if field.name == "optim")
    return str(trainer.get("optim", default))


def _defaults(config: Config) -> dict[str, Any]:
    """The config's `trainer:` with what a machine without an accelerator needs (bf16 asks for `use_cpu`, and pinned memory
    warns), and with a correction of vLLM's probabilities by token, since TRL's default drops long completions."""
    wanted: dict[str, Any] = {"dataloader_pin_memory": torch.cuda.is_available(), "use_cpu": not torch.cuda.is_available()}
    corrected = "vllm_importance_sampling_mode"
    if config.rollout.engine != "transformers" and hasattr(algorithm(config.trainer).arguments, corrected):
        wanted[corrected] = "token_truncate"
    return wanted | settings(config.trainer)


def prompts_needed(arguments: TrainerArguments) -> int:
    """Tasks that the whole run consumes: one epoch exactly, so that a resume never crosses one."""
    steps, prompts = _generations(arguments)
    return -(-arguments.max_steps * arguments.gradient_accumulation_steps // steps) * prompts


def prompts_used(arguments: TrainerArguments, step: int) -> int:
    """Tasks of the generations that are done with after `step`; one in the middle of its use is not."""
    steps, prompts = _generations(arguments)
    return step * arguments.gradient_accumulation_steps // steps * prompts


def _generations(arguments: TrainerArguments) -> tuple[int, int]:
    """Micro-batches that one generation serves, and its tasks."""
    steps, batch, group = arguments.steps_per_generation, arguments.generation_batch_size, arguments.num_generations
    assert steps is not None and batch is not None and group is not None  # filled in by itself
    return steps * arguments.num_iterations, batch // group


def completions_per_step(arguments: TrainerArguments) -> int:
    """Completions that one optimizer step learns from."""
    return arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
