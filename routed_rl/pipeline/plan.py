"""What a run will do and need, shown before it begins. Time (from a small product timed here) and memory are estimates;
activations are left out."""

import time
from itertools import islice
from typing import Any

import torch

from routed_rl.config import AUTO, Config
from routed_rl.console import say
from routed_rl.envs import task_stream
from routed_rl.model.prompts import encode_prompts
from routed_rl.pipeline.build import Parts
from routed_rl.pipeline.launched import commands
from routed_rl.training import Plan, TrainerArguments, completions_per_step, default

SHARE_OF_PEAK = 0.4
"""Of the timed product's rate that a training step reaches; from the lab and SmolLM2 on two cores."""
OVERHEAD_S = 0.004
"""Per layer and generated token, whatever the size of the model."""
PROMPTS = 4
"""Of each environment, whose mean length stands for all."""
FLOAT = 4
"""Bytes of a float32; only weights that are frozen may take fewer."""
STATES = {"adam": 2, "sgd": 0, "rmsprop": 1, "adagrad": 1, "adafactor": 0}
"""Numbers that an optimizer keeps for each weight, by how its name begins; 2 for others."""


def show_plan(parts: Parts, plan: Plan) -> None:
    """Model, environments, steps, estimated minutes and memory, folder, what runs where."""
    config, model, arguments, run = parts.config, parts.model, plan.arguments, plan.run
    shares = {loaded.name: loaded.weights[0][1] for loaded in parts.trained}
    total = sum(shares.values())
    say(f"model         {config.model.path}, {model.num_parameters() / 1e6:.2f} M parameters")
    if parts.adapted is not None:
        adapter = config.model.adapter
        say(f"adapter       {adapter.kind}, rank {adapter.r}, {trained_by_adapter(parts) / 1e6:.2f} M parameters are trained, on "
            f"weights in {config.model.dtype}")
    say("environments  " + ", ".join(
        loaded.label + (" not trained" if loaded.name not in shares else f" {shares[loaded.name] / total:.0%}")
        + (" at first" if len(loaded.weights) > 1 else "")
        for loaded in parts.environments))
    say(f"routing       {config.routing.mode}, subspace {config.subspace.method}, "
        f"{'ranks by strength' if config.subspace.rank is None else f'rank {config.subspace.rank} a layer'}, "
        f"{config.subspace.layout}")
    if config.routing.mode == "route":
        say(f"practice      {practice_sentence(config)}")
    say(f"steps         {arguments.max_steps} of {completions_per_step(arguments) * config.launch.world} completions, about "
        f"{estimate_minutes(config, parts, arguments):.1f} minutes with evaluation")
    say(f"batch         {batch_sentence(config, arguments)}")
    found = memory_bytes(parts)
    listed = ", ".join(f"{name} {_size(count)}" for name, count in found.items() if count)
    say(f"memory        about {_size(sum(found.values()))} a device and activations: {listed}")
    for place, line in enumerate(commands(config, run)):
        say(f"{'' if place else 'runs on':13} {line}")
    say(f"folder        {run.path}")


def estimate_minutes(config: Config, parts: Parts, arguments: TrainerArguments) -> float:
    """Training and evaluation, from parameter count, tokens, and this machine's rate."""
    length, rate = arguments.max_completion_length or 0, _rate()
    prompts = [task.prompt for loaded in parts.trained
               for task in islice(task_stream(loaded, "train", config.seed), PROMPTS)]
    tokens = length + sum(map(len, encode_prompts(parts.tokenizer, prompts))) / len(prompts)
    parameters = parts.model.num_parameters()
    layers = parts.model.config.get_text_config().num_hidden_layers
    step = 8 * parameters * completions_per_step(arguments) * tokens / rate + OVERHEAD_S * layers * length
    evaluated = 3 * config.evaluation.samples * len(parts.environments)
    batches = -(-evaluated // max(config.evaluation.batch_size, 1))
    evaluation = 2 * parameters * evaluated * tokens / rate + OVERHEAD_S * layers * length * batches
    return (arguments.max_steps * step + evaluation) / 60


def _rate() -> float:
    """Floating-point operations a second that training may reach here."""
    a = torch.randn(512, 512)
    torch.mm(a, a)
    started = time.perf_counter()
    for _ in range(8):
        torch.mm(a, a)
    return SHARE_OF_PEAK * 8 * 2 * 512**3 / (time.perf_counter() - started)


def practice_sentence(config: Config) -> str:
    """Who is rolled out and learned by the deployed model, and how much of it."""
    settings = config.routing.practice
    if not config.routing.practises:
        return "none: the policy makes all rollouts"
    share = f"{settings.share:.0%} of the groups of"
    if settings.environments == AUTO:
        return f"{share} every environment at which the monitor does not point, after {settings.probation} steps"
    if settings.environments == "all":
        return f"{share} every environment, also of leaky ones: what they pay for reaches the deployed model"
    return f"{share} {', '.join(settings.environments)}"


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
    weights = sum(parameter.numel() * parameter.element_size() for parameter in parts.model.parameters())
    trained = weights if parts.adapted is None else FLOAT * trained_by_adapter(parts)
    optimizer = config.trainer.get("optim", default(config.trainer, "optim"))
    states = next((count for name, count in STATES.items() if str(optimizer).startswith(name)), 2)
    states += strategy.startswith("zero")  # DeepSpeed steps a copy of the weights
    found = {"weights": weights // (world if strategy in ("zero3", "fsdp2") else 1),
             "gradients": trained // (world if strategy in ("zero2", "zero3", "fsdp2") else 1),
             "optimizer": states * trained // (world if strategy not in ("none", "ddp") else 1)}
    if config.routing.mode != "none":
        environments, entries = len(parts.trained), quarantine_entries(parts) * FLOAT
        found |= {"quarantine": (2 * environments + 2) * entries, "ledgers": environments * entries}
    return found | {"engine": engine_bytes(parts)}


def trained_by_adapter(parts: Parts) -> int:
    return sum(parameter.numel() for parameter in parts.model.parameters() if parameter.requires_grad)


def quarantine_entries(parts: Parts) -> int:
    """Of all targets, at the largest rank each may have; a spanning basis takes in all later layers."""
    settings, model, entries = parts.config.subspace, parts.model.config.get_text_config(), 0
    for writer in parts.writers:
        rank = (settings.rank or 8) * (model.num_hidden_layers - writer.layer if settings.layout == "spanning" else 1)
        module: Any = writer.module
        weight = module.weight if writer.expert is None else module.down_proj[writer.expert]
        entries += min(model.hidden_size, rank) * (weight.numel() // model.hidden_size)
    return entries


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


def _size(count: float) -> str:
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
