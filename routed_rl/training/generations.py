"""Computes the size of a generation in completions, tasks and steps. A generation is all completions that the processes of a run
roll out at a time."""

from math import gcd, lcm

from routed_rl.config import Config
from routed_rl.errors import ConfigError
from routed_rl.training.checks import default, settings
from routed_rl.training.trainers import TrainerArguments

TOTAL, STEPS = "generation_batch_size", "steps_per_generation"
"""TRL's two settings for the size of a generation: the number of completions in all processes together, or the number of
micro-batches in each process."""


def micro_batches(config: Config) -> int:
    """Return the number of micro-batches into which each process divides its share of a generation, by the settings of
    `trainer:`.

    ConfigError if the share is no whole number of micro-batches or of groups. A process must have whole groups, because the
    rewards of a group are compared within one process.
    """
    trainer, world = settings(config.trainer), config.launch.world

    def value(key: str) -> int:
        return trainer.get(key, default(config.trainer, key))

    rows, group, total, steps = (value(key) for key in ("per_device_train_batch_size", "num_generations", TOTAL, STEPS))
    if total and steps:
        raise ConfigError(f"trainer.{TOTAL}={total} and trainer.{STEPS}={steps} are two ways to say the same; leave one out")
    if total and total % (rows * world):
        raise ConfigError(f"trainer.{TOTAL}={total} is not divisible by trainer.per_device_train_batch_size={rows} x processes="
                          f"{world}; set it to a multiple of {rows * world}")
    name, count = (STEPS, steps) if steps else ("gradient_accumulation_steps", value("gradient_accumulation_steps"))
    count = total // (rows * world) if total else count
    if rows * count % group:
        way = f"trainer.{TOTAL} to a multiple of {lcm(rows, group) * world}" if total else (
            f"trainer.per_device_train_batch_size to a multiple of {group}, or trainer.{name} to a multiple of "
            f"{group // gcd(rows, group)}")
        made = f"trainer.{TOTAL}={total} / processes={world}" if total else (
            f"trainer.per_device_train_batch_size={rows} x trainer.{name}={count}")
        raise ConfigError(f"trainer.num_generations={group} does not divide the {rows * count} completions that a process makes "
                          f"at a time ({made}), and a group must not be cut; set {way}")
    return count


def prompts_needed(arguments: TrainerArguments) -> int:
    """Return how many tasks the whole run consumes. The dataset has exactly as many, so that the run is one epoch and a resumed
    run never crosses the end of an epoch."""
    steps, prompts = _generations(arguments)
    return -(-arguments.max_steps * arguments.gradient_accumulation_steps // steps) * prompts


def prompts_used(arguments: TrainerArguments, step: int) -> int:
    """Return how many tasks belong to generations that have been learned from completely by the end of step `step`. A generation
    from which later steps learn too does not count."""
    steps, prompts = _generations(arguments)
    return step * arguments.gradient_accumulation_steps // steps * prompts


def _generations(arguments: TrainerArguments) -> tuple[int, int]:
    """Return how many micro-batches learn from one generation, and how many tasks a generation has."""
    steps, batch, group = arguments.steps_per_generation, arguments.generation_batch_size, arguments.num_generations
    assert steps is not None and batch is not None and group is not None  # TRL's config fills these in
    return steps * arguments.num_iterations, batch // group


def steps_of_a_generation(arguments: TrainerArguments) -> int:
    """Return how many optimizer steps learn from one generation, at least 1."""
    steps, _ = _generations(arguments)
    return max(steps // arguments.gradient_accumulation_steps, 1)


def last_generation(arguments: TrainerArguments) -> int:
    """Return the step after which the run makes its last generation; 0 if it makes a single one, before its first step."""
    return max(arguments.max_steps - 1, 0) // steps_of_a_generation(arguments) * steps_of_a_generation(arguments)


def completions_per_step(arguments: TrainerArguments) -> int:
    """Return from how many completions, of all processes together, one optimizer step learns."""
    return arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
