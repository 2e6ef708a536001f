"""The plan of a run, which is shown before the run begins. Time is estimated from a small matrix product that is timed here;
memory is estimated too."""

import time
from itertools import islice

import torch

from routed_rl.config import AUTO, LABELS, Config
from routed_rl.console import say
from routed_rl.envs import task_stream
from routed_rl.model.prompts import encode_prompts
from routed_rl.monitor import never_halting
from routed_rl.pipeline.build import Parts
from routed_rl.pipeline.launched import commands
from routed_rl.pipeline.memory import trained_by_adapter
from routed_rl.pipeline.moments import memory_lines
from routed_rl.training.generations import completions_per_step, last_generation, prompts_needed
from routed_rl.training.plan import Plan
from routed_rl.training.practice import UNLIMITED, groups_of, idle, untrusted
from routed_rl.training.trainers import TrainerArguments

SHARE_OF_PEAK = 0.4
"""The speed of a training step divided by that of the matrix product that is timed here, both in operations per second. It was
measured with the lab and SmolLM2 on two cores."""
OVERHEAD_S = 0.004
"""Seconds that the estimate adds for each layer and generated token, whatever the size of the model."""
PROMPTS = 4
"""The number of prompts of each environment over which the mean length of a prompt is taken."""


def show_plan(parts: Parts, plan: Plan, *, account: bool = False) -> None:
    """Show model, environments, steps, estimated minutes and memory, folder, and the commands with the place where each runs.
    `account` shows memory line by line, with activations."""
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
    say(f"routing       {routing_sentence(config)}")
    if config.routing.mode == "route":
        groups = groups_of(parts.trained, prompts_needed(arguments) * config.launch.world)
        lines = [practice_sentence(config), untrusted(config.routing, config.monitor, groups),
                 idle(config.routing, last_generation(arguments), groups)]
        for place, line in enumerate(filter(None, dict.fromkeys(lines))):
            say(f"{'' if place else 'practice':13} {line}")
    for place, line in enumerate(never_halting(config.monitor, config.routing, arguments.max_steps)):
        say(f"{'' if place else 'monitor':13} {line}")
    minutes = "" if model.device.type == "meta" else (
        f", about {estimate_minutes(config, parts, arguments):.1f} minutes with evaluation")
    rollouts = completions_per_step(arguments) * config.launch.world
    say(f"steps         {arguments.max_steps} of {rollouts} completions, learning rate {arguments.learning_rate:g}{minutes}")
    say(f"batch         {batch_sentence(config, arguments)}")
    for line in memory_lines(parts, arguments, max(prompt_lengths(parts)), account=account):
        say(line)
    for place, line in enumerate(commands(config, run)):
        say(f"{'' if place else 'runs on':13} {line}")
    say(f"folder        {run.path}")


def routing_sentence(config: Config) -> str:
    """A sentence on the mode of routing, and on the subspace or the labels by which changes are split."""
    if config.routing.mode == LABELS:
        labels, flags = config.routing.labels, ", ".join(config.baseline.detector.flags)
        return f"labels ({flags}) by {labels.unit}, a quarantine of rank {labels.rank} on every linear module"
    rank = "ranks by strength" if config.subspace.rank is None else f"rank {config.subspace.rank} a layer"
    return f"{config.routing.mode}, subspace {config.subspace.method}, {rank}, {config.subspace.layout}"


def estimate_minutes(config: Config, parts: Parts, arguments: TrainerArguments) -> float:
    """The estimated minutes of training and evaluation, from the number of parameters, the number of tokens, and this machine's
    rate."""
    length, rate, lengths = arguments.max_completion_length or 0, _rate(), prompt_lengths(parts)
    tokens = length + sum(lengths) / len(lengths)
    parameters = parts.model.num_parameters()
    layers = parts.model.config.get_text_config().num_hidden_layers
    step = 8 * parameters * completions_per_step(arguments) * tokens / rate + OVERHEAD_S * layers * length
    evaluated = 3 * config.evaluation.samples * len(parts.evaluated)
    batches = -(-evaluated // max(config.evaluation.batch_size, 1))
    evaluation = 2 * parameters * evaluated * tokens / rate + OVERHEAD_S * layers * length * batches
    return (arguments.max_steps * step + evaluation) / 60


def prompt_lengths(parts: Parts) -> list[int]:
    """The numbers of tokens of the first prompts of each environment."""
    prompts = [task.prompt for loaded in parts.trained
               for task in islice(task_stream(loaded, "train", parts.config.seed), PROMPTS)]
    return list(map(len, encode_prompts(parts.tokenizer, prompts)))


def _rate() -> float:
    """The estimated speed of training on this machine, in floating-point operations per second."""
    a = torch.randn(512, 512)
    torch.mm(a, a)
    started = time.perf_counter()
    for _ in range(8):
        torch.mm(a, a)
    return SHARE_OF_PEAK * 8 * 2 * 512**3 / (time.perf_counter() - started)


def practice_sentence(config: Config) -> str:
    """A sentence on the environments in which the deployed model practises, and on the share of their groups that it rolls
    out."""
    settings = config.routing.practice
    if not config.routing.practises:
        return "none: the policy makes all rollouts"
    share = f"{settings.share:.0%} of the groups of"
    if settings.environments == AUTO:
        if config.monitor.evidence.limit is None and not config.monitor.evidence.limits:
            return UNLIMITED
        return f"{share} every environment at which the monitor does not point, after {settings.probation} steps"
    if settings.environments == "all":
        return f"{share} every environment, also of leaky ones: what they pay for reaches the deployed model"
    return f"{share} {', '.join(settings.environments)}"


def batch_sentence(config: Config, arguments: TrainerArguments) -> str:
    """A sentence on how the number of completions of a step is computed."""
    device, accumulation = arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps
    world, group = config.launch.world, arguments.num_generations or 1
    total, steps = device * accumulation * world, arguments.steps_per_generation or accumulation
    made = device * steps * world
    return (f"{total} completions a step = {device} on a device x {accumulation} accumulated x {world} "
            f"process{'es' if world > 1 else ''}; {made} at a time: {made // group} groups of {group}")
