"""The TRL subclasses; the only unit that imports TRL's trainers."""

from trl import GRPOConfig

from routed_rl.training.arguments import check_trainer, completions_per_step, training_arguments
from routed_rl.training.backends import check_launch, join
from routed_rl.training.grpo import RoutedGRPOTrainer, build_trainer
from routed_rl.training.mixin import RoutedTrainerMixin
from routed_rl.training.watch import Watch

__all__ = ["GRPOConfig", "RoutedGRPOTrainer", "RoutedTrainerMixin", "Watch", "build_trainer", "check_launch",
           "check_trainer", "completions_per_step", "join", "training_arguments"]
