"""A run's settings, checked once: whatever trains the run receives this plan and checks nothing again."""

from __future__ import annotations

import time
from dataclasses import dataclass

from routed_rl.artifacts import RunFolder
from routed_rl.config import Config
from routed_rl.rollout import check_engine
from routed_rl.training.arguments import training_arguments
from routed_rl.training.backends import check_launch
from routed_rl.training.checks import algorithm
from routed_rl.training.trainers import Algorithm, TrainerArguments


@dataclass(frozen=True)
class Plan:
    """What a run trains with; nobody changes `arguments`, a trainer has a copy of its own."""

    config: Config
    run: RunFolder
    algorithm: Algorithm
    arguments: TrainerArguments
    begun: float
    """When the command began."""


def make_plan(config: Config, run: RunFolder) -> Plan:
    """Check what the settings alone tell; ConfigError for the first that is refused. `run` needs no folder yet."""
    begun = time.perf_counter()
    check_engine(config.rollout)
    check_launch(config)
    return Plan(config, run, algorithm(config.trainer), training_arguments(config, run), begun)
