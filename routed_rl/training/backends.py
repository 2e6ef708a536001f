"""How the processes of a run share the model: what TRL, accelerate and DeepSpeed are told for each strategy."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from routed_rl.config import Config, LaunchConfig
from routed_rl.errors import ConfigError


def join(launch: LaunchConfig) -> None:
    """Meet the other processes of the run."""
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
                            timeout=timedelta(seconds=launch.timeout_s))


def backend_arguments(config: Config) -> dict[str, Any]:
    """Fields of TRL's config; none in the process that starts the others."""
    if not dist.is_initialized():
        return {}
    return {"ddp_timeout": int(config.launch.timeout_s)} | ({} if torch.cuda.is_available() else {"ddp_backend": "gloo"})


def check_launch(config: Config) -> None:
    """Refuse what several processes cannot do."""
    if config.launch.strategy == "none":
        return
    if config.rollout.engine != "transformers":
        raise ConfigError(f"rollout.engine={config.rollout.engine} is not supported with launch.strategy="
                          f"{config.launch.strategy}; set rollout=transformers or launch=local")
