"""What a run will do, before it does it; the time is a rough estimate from a small product timed here."""

from __future__ import annotations

import time
from itertools import islice

import torch

from routed_rl.config import Config
from routed_rl.console import say
from routed_rl.envs import task_stream
from routed_rl.model.prompts import encode_prompts
from routed_rl.pipeline.arithmetic import batch_sentence, memory_sentence
from routed_rl.pipeline.build import Parts
from routed_rl.pipeline.launched import commands
from routed_rl.training import Plan, TrainerArguments, completions_per_step

SHARE_OF_PEAK = 0.4
"""Of the timed product's rate that a training step reaches; from the lab and SmolLM2 on two cores."""
OVERHEAD_S = 0.004
"""Per layer and generated token, whatever the size of the model."""
PROMPTS = 4
"""Of each environment, whose mean length stands for all."""


def show_plan(parts: Parts, plan: Plan) -> None:
    """Model, environments, steps, estimated minutes and memory, folder, what runs where."""
    config, model, arguments, run = parts.config, parts.model, plan.arguments, plan.run
    shares = {loaded.name: loaded.weight for loaded in parts.trained}
    total = sum(shares.values())
    say(f"model         {config.model.path}, {model.num_parameters() / 1e6:.2f} M parameters")
    say("environments  " + ", ".join(
        f"{loaded.label} " + ("probe" if loaded.name not in shares else f"{shares[loaded.name] / total:.0%}")
        + (" at first" if loaded.schedule else "")
        for loaded in parts.environments))
    say(f"routing       {config.routing.mode}, subspace {config.subspace.method}, "
        f"{'ranks by strength' if config.subspace.rank is None else f'rank {config.subspace.rank} a layer'}, "
        f"{config.subspace.layout}")
    say(f"steps         {arguments.max_steps} of {completions(config, arguments)} completions, about "
        f"{estimate_minutes(config, parts, arguments):.1f} minutes with evaluation")
    say(f"batch         {batch_sentence(config, arguments)}")
    say(f"memory        {memory_sentence(parts)}")
    for place, line in enumerate(commands(config, run)):
        say(f"{'' if place else 'runs on':13} {line}")
    say(f"folder        {run.path}")


def completions(config: Config, arguments: TrainerArguments) -> int:
    """Of one step, from all processes; this one may be about to start them."""
    return completions_per_step(arguments) * config.launch.world


def estimate_minutes(config: Config, parts: Parts, arguments: TrainerArguments) -> float:
    """Training and evaluation, from parameter count, tokens, and this machine's rate."""
    length = arguments.max_completion_length or 0
    tokens, rate = length + prompt_tokens(parts), _rate()
    parameters = parts.model.num_parameters()
    layers = parts.model.config.get_text_config().num_hidden_layers
    step = 8 * parameters * completions_per_step(arguments) * tokens / rate + OVERHEAD_S * layers * length
    evaluated = 3 * config.evaluation.samples * len(parts.environments)
    batches = -(-evaluated // max(config.evaluation.batch_size, 1))
    evaluation = 2 * parameters * evaluated * tokens / rate + OVERHEAD_S * layers * length * batches
    return (arguments.max_steps * step + evaluation) / 60


def prompt_tokens(parts: Parts) -> float:
    """Mean length of the trained environments' first prompts."""
    prompts = [task.prompt for loaded in parts.trained
               for task in islice(task_stream(loaded, "train", parts.config.seed), PROMPTS)]
    return sum(map(len, encode_prompts(parts.tokenizer, prompts))) / len(prompts)


def _rate() -> float:
    """Floating-point operations a second that training may reach here."""
    a = torch.randn(512, 512)
    torch.mm(a, a)
    started = time.perf_counter()
    for _ in range(8):
        torch.mm(a, a)
    return SHARE_OF_PEAK * 8 * 2 * 512**3 / (time.perf_counter() - started)
