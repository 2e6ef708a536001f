"""Turns a config into the plan of a run, and checks the config once: code that trains a run takes the plan and need not check
again."""

import re
import time
from dataclasses import dataclass
from typing import Any

import torch

from routed_rl.artifacts import RunFolder
from routed_rl.config import Config
from routed_rl.config.references import masked
from routed_rl.errors import ConfigError
from routed_rl.model.fourbit import require_four_bit
from routed_rl.rollout import check_engine
from routed_rl.tracking import split_report_to
from routed_rl.training.backends import SHARED, backend_arguments, check_launch
from routed_rl.training.baselines import check_baseline
from routed_rl.training.checks import algorithm, algorithm_name, check_needs, check_trainer, fields, settings
from routed_rl.training.generations import STEPS, TOTAL, micro_batches
from routed_rl.training.trainers import Algorithm, TrainerArguments


@dataclass(frozen=True)
class Plan:
    """The settings of a run's training. `arguments` must not be changed; a trainer has its own copy."""

    config: Config
    run: RunFolder
    algorithm: Algorithm
    arguments: TrainerArguments
    begun: float
    """The time at which the command began, by `time.perf_counter`."""


def make_plan(config: Config, run: RunFolder, *, here: bool = True) -> Plan:
    """Check everything that the settings alone show, and return the plan of the run; ConfigError for the first problem. The
    folder of `run` need not exist yet. `here`: whether the run trains on this machine, which must then have what the settings
    need."""
    begun = time.perf_counter()
    check_baseline(config)
    if here:
        check_adapter(config)
        check_engine(config.rollout)
        check_launch(config)
    return Plan(config, run, algorithm(config.trainer), training_arguments(config, run), begun)


def check_adapter(config: Config) -> None:
    """ConfigError for settings with which a LoRA on weights of 4 bit (`model.adapter=qlora`) cannot be trained."""
    if not config.model.adapter.four_bit:
        return
    require_four_bit()
    if config.launch.strategy in SHARED:
        raise ConfigError(f"model.adapter=qlora is not supported with launch.strategy={config.launch.strategy}, which would cut "
                          "up packed weights; set launch=ddp, or model.adapter=lora model.dtype=bfloat16 launch=fsdp2")
    if config.rollout.engine != "transformers":
        raise ConfigError(f"rollout={config.rollout.engine} would generate with the full weights, and model.adapter=qlora "
                          "trains on those in 4 bit; set rollout=transformers, or model.adapter=lora model.dtype=bfloat16")


def check_ahead(config: Config) -> None:
    """ConfigError if rollouts are made one generation ahead but the algorithm does not correct for the older weights that made
    them."""
    corrects = "vllm_importance_sampling_correction"
    if not config.rollout.ahead:
        return
    if corrects not in fields(config.trainer):
        raise ConfigError(f"rollout.ahead=1 trains on completions of older weights, for which TRL's "
                          f"{algorithm_name(config.trainer)} does not correct; set trainer=grpo, or rollout.ahead=0")
    if not settings(config.trainer).get(corrects, True):
        raise ConfigError(f"trainer.{corrects}=false leaves completions of older weights as they are, and rollout.ahead=1 trains "
                          "on such; leave it out, or set rollout.ahead=0")


def training_arguments(config: Config, run: RunFolder) -> TrainerArguments:
    """Check the settings of `trainer:` and make TRL's arguments for the run's algorithm. An error of TRL becomes a ConfigError of
    one line."""
    check_trainer(config.trainer)
    check_needs(config)
    check_ahead(config)
    if "max_steps" not in config.trainer:
        raise ConfigError("trainer.max_steps is not set: tasks are endless, so a run has no epochs; set trainer.max_steps=N")
    micro_batches(config)
    # routed_rl.tracking sends metrics to wandb under the names of METRICS; transformers' callback would prefix them all.
    trackers: dict[str, Any] = {"report_to": split_report_to(config.trainer.get("report_to"))[1] or "none"}
    try:
        return algorithm(config.trainer).arguments(
            output_dir=str(run.path), seed=config.seed, run_name=run.path.name, project=config.tracking.project,
            remove_unused_columns=False, shuffle_dataset=False, disable_tqdm=True,
            **_defaults(config) | backend_arguments(config) | trackers)
    except Exception as error:
        said = " ".join(str(error).split())
        named = next((f".{key}={value}" for key, value in config.trainer.items() if re.search(rf"\b{key}\b", said)), "")
        raise ConfigError(masked(f"trainer{named}: {said}")) from error


def _defaults(config: Config) -> dict[str, Any]:
    """Return the settings of `trainer:`, completed by defaults of our own. Without a GPU, the trainer uses the CPU and no pinned
    memory. With another engine than transformers, TRL's importance sampling correction is truncated token by token, because TRL's
    default drops long completions."""
    wanted: dict[str, Any] = {"dataloader_pin_memory": torch.cuda.is_available(), "use_cpu": not torch.cuda.is_available()}
    corrected = "vllm_importance_sampling_mode"
    if config.rollout.engine != "transformers" and hasattr(algorithm(config.trainer).arguments, corrected):
        wanted[corrected] = "token_truncate"
    wanted |= settings(config.trainer)
    # TRL divides the total by the processes that have been started, and this one may be about to start them.
    return wanted if wanted.pop(TOTAL, None) is None else wanted | {STEPS: micro_batches(config)}
