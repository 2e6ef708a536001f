"""What a run needs, before it does it: completions a step, and memory a device. Estimates; activations are left out."""

from __future__ import annotations

from typing import Any

from routed_rl.config import Config
from routed_rl.envs import trained
from routed_rl.pipeline.build import Parts
from routed_rl.training import TrainerArguments, default

FLOAT = 4
"""Bytes; weights and all that follows them are float32."""
STATES = {"adam": 2, "sgd": 0, "rmsprop": 1, "adagrad": 1, "adafactor": 0}
"""Numbers that an optimizer keeps for each weight, by how its name begins; 2 for others."""


def batch_sentence(config: Config, arguments: TrainerArguments) -> str:
    """How the completions of a step come about."""
    device, accumulation = arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps
    world, group = config.launch.world, arguments.num_generations or 1
    total, steps = device * accumulation * world, arguments.steps_per_generation or accumulation
    made = device * steps * world
    return (f"{total} completions a step = {device} on a device x {accumulation} accumulated x {world} "
            f"process{'es' if world > 1 else ''}; {made} at a time: {made // group} groups of {group}")


def memory_bytes(parts: Parts) -> dict[str, int]:
    """Of one device, in bytes, by what takes it."""
    config, world = parts.config, parts.config.launch.world
    strategy = config.launch.strategy
    everything = sum(parameter.numel() for parameter in parts.model.parameters())
    optimizer = config.trainer.get("optim", default(config.trainer, "optim"))
    states = next((count for name, count in STATES.items() if str(optimizer).startswith(name)), 2)
    weights, trainable = everything * FLOAT, everything * FLOAT
    share = {"weights": world if strategy in ("zero3", "fsdp2") else 1,
             "gradients": world if strategy in ("zero2", "zero3", "fsdp2") else 1,
             "optimizer": world if strategy not in ("none", "ddp") else 1}
    copy = trainable if strategy.startswith("zero") else 0  # DeepSpeed steps a copy of the weights
    found = {"weights": weights // share["weights"], "gradients": trainable // share["gradients"],
             "optimizer": (states * trainable + copy) // share["optimizer"]}
    if config.routing.mode != "none":
        environments = len(trained(parts.environments))
        entries = sum(rank * columns for rank, columns in ranks(parts)) * FLOAT
        found |= {"quarantine": (2 * environments + 2) * entries, "ledgers": environments * entries}
    return found | {"engine": engine_bytes(parts)}


def ranks(parts: Parts) -> list[tuple[int, int]]:
    """Largest rank and number of inputs of each target; a spanning basis takes in all later layers."""
    settings, model = parts.config.subspace, parts.model.config.get_text_config()
    rank, layers = settings.rank or 8, model.num_hidden_layers
    spans = settings.layout == "spanning"
    return [(min(model.hidden_size, rank * (layers - writer.layer) if spans else rank),
             _inputs(writer, model.hidden_size)) for writer in parts.writers]


def _inputs(writer: Any, width: int) -> int:
    weight = writer.module.weight if writer.expert is None else writer.module.down_proj[writer.expert]
    return weight.numel() // width


def engine_bytes(parts: Parts) -> int:
    """What the rollouts keep: the cache of keys and values of transformers, or vLLM's setting on a CPU."""
    config, model = parts.config, parts.model.config.get_text_config()
    if config.rollout.engine == "vllm_colocate":
        return config.rollout.memory_gb * 2**30
    if config.rollout.engine == "vllm_server":
        return 0
    heads = getattr(model, "num_key_value_heads", None) or model.num_attention_heads
    size = getattr(model, "head_dim", None) or model.hidden_size // model.num_attention_heads
    rows = config.trainer.get("per_device_train_batch_size", 8) * config.trainer.get("gradient_accumulation_steps", 1)
    return 2 * model.num_hidden_layers * heads * size * rows * (parts.max_new_tokens + 64) * FLOAT


def memory_sentence(parts: Parts) -> str:
    """`memory_bytes` as a person reads it."""
    found = memory_bytes(parts)
    listed = ", ".join(f"{name} {_size(count)}" for name, count in found.items() if count)
    return f"about {_size(sum(found.values()))} a device and activations: {listed}"


def _size(count: float) -> str:
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
