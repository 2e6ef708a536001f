"""Sets up how the processes of a run share the model, by the settings of TRL, accelerate and DeepSpeed for each
`launch.strategy`."""

import importlib.util
import os
import zlib
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from routed_rl.config import Config, LaunchConfig
from routed_rl.errors import ConfigError
from routed_rl.model.adapter import plain
from routed_rl.model.targets import decoder_layers
from routed_rl.ranks import RANKS

SHARED = ("zero1", "zero2", "zero3", "fsdp2")
"""Strategies under which a process holds a local shard of the weights, or of the optimizer's copy of them."""

PIECES = ("zero3", "fsdp2")
"""Strategies under which no process holds a full weight, so that every process must run the model whenever one process does."""


def join(launch: LaunchConfig) -> None:
    """Make this process join the process group of the run, with the backend that the strategy needs."""
    timeout = timedelta(seconds=launch.timeout_s)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    if not launch.strategy.startswith("zero"):
        dist.init_process_group(backend, timeout=timeout)
        return
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed  # pyright: ignore[reportMissingImports]  # an extra

    # Before TRL's config is built, because that would ask for another backend.
    deepspeed.init_distributed(backend, timeout=timeout)


def backend_arguments(config: Config) -> dict[str, Any]:
    """Return the values of those fields of TRL's arguments that the settings of `launch` decide, by name. Return {} in a process
    that has joined no process group, such as the one that starts the others."""
    if not dist.is_initialized():
        return {}
    fields: dict[str, Any] = {"ddp_timeout": int(config.launch.timeout_s)}
    if not torch.cuda.is_available():
        fields["ddp_backend"] = "gloo"
    if config.launch.strategy.startswith("zero"):
        zero = {"stage": int(config.launch.strategy.removeprefix("zero"))}  # float32 throughout, nothing offloaded
        if zero["stage"] == 3:
            # Otherwise small weights would also be kept in full, in a copy that does not follow a step of the quarantine.
            zero["stage3_param_persistence_threshold"] = 0
        keys = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
        fields["deepspeed"] = {"zero_optimization": zero, "zero_allow_untested_optimizer": True, **dict.fromkeys(keys, "auto")}
    return fields


def shard(model: Any) -> None:
    """Shard the model in place by FSDP2: first each decoder layer by itself, then all other parameters together. Gradients are
    averaged over the processes. If `model` is wrapped by PEFT, the model inside the wrapper is sharded."""
    from torch.distributed.fsdp import fully_shard

    model = plain(model)
    for layer in decoder_layers(model):
        fully_shard(layer)
    fully_shard(model)
    # transformers then keeps generating in every process until the slowest has ended.
    object.__setattr__(model, "_is_fsdp_managed_module", True)


def check_launch(config: Config) -> None:
    """ConfigError for settings that do not work with the processes that `launch` asks for, such as a dtype or a rollout engine
    that the strategy does not support, too few GPUs on this machine, or a strategy whose library is not installed."""
    strategy, trainer, gpus = config.launch.strategy, config.trainer, torch.cuda.device_count()
    if config.rollout.launch and 0 < gpus <= config.launch.processes:
        raise ConfigError(f"rollout.launch=true needs one GPU more than launch.processes={config.launch.processes}, and "
                          f"there are {gpus}; use fewer processes, or start `vllm serve` elsewhere and set "
                          "rollout.urls=[http://HOST:PORT]")
    if strategy == "none":
        return
    if config.rollout.engine == "vllm_colocate":
        raise ConfigError(f"rollout.engine=vllm_colocate is not supported with launch.strategy={strategy}; set "
                          "rollout=vllm_server, whose servers all processes share, or launch=local")
    if config.rollout.launch and config.launch.nodes > 1:
        raise ConfigError(f"rollout.launch=true starts a server that only its own machine reaches, and launch.nodes is "
                          f"{config.launch.nodes}; start `vllm serve` yourself and set rollout.urls=[http://HOST:PORT]")
    if strategy == "zero3" and config.model.dtype != "float32":
        raise ConfigError(f"model.dtype={config.model.dtype} is not supported with launch.strategy=zero3, which sums the "
                          "gradients of the LoRA in that dtype; set launch=fsdp2, which shards the weights too, or launch=zero2")
    if strategy.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        raise ConfigError(f"launch.strategy={strategy} needs DeepSpeed, which is built from source (g++ and ninja): pip install "
                          "'routed-rl[deepspeed]', or set launch=fsdp2")
    if strategy in SHARED and trainer.get("bf16"):
        raise ConfigError(f"trainer.bf16=true is not supported with launch.strategy={strategy}, whose weights would be bf16; set "
                          "trainer.bf16=false, or launch=ddp")


def say_what_is_used(model: nn.Module, arguments: Any) -> None:
    """Set `arguments.ddp_find_unused_parameters` to False if it is not set and the model is no mixture of experts. Only in a
    mixture can parameters be without gradient in a step: those of experts that no token chose."""
    if arguments.ddp_find_unused_parameters is None and not any(hasattr(module, "experts") for module in model.modules()):
        arguments.ddp_find_unused_parameters = False


def take_one_gpu(arguments: Any) -> None:
    """Change `arguments` so that this process trains on its first GPU if it sees several. Otherwise transformers would spread the
    rows over all of them (`nn.DataParallel`), which TRL refuses."""
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1


def check_alike(environments: list[str]) -> None:
    """ConfigError if the names of the environments are not the same list in every process, because processes refer to an
    environment by its index in the list."""
    marks = RANKS.gather(zlib.crc32("/".join(environments).encode()))
    if len(set(marks)) > 1:
        raise ConfigError(f"the processes of this run train on different environments, this process on "
                          f"{', '.join(environments)}; give all of them the same plug-ins and run folder")
