"""The algorithms: TRL's own trainers, or a thin one built on them, each with the routed trainer's mixin as its first base class.
A new algorithm is one row of `TRAINERS`. The trainers take parts that are already made: `build` makes them from a config,
`library` from the arguments of TRL's trainers."""

from dataclasses import dataclass

import torch
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from routed_rl.training.mixin import RoutedTrainerMixin
from routed_rl.training.ppo import PPOConfig, PPOTrainer

TrainerArguments = GRPOConfig | RLOOConfig


class AssembledGRPOTrainer(RoutedTrainerMixin, GRPOTrainer):
    """GRPO in which the change of the weights is split at a subspace."""


class AssembledRLOOTrainer(RoutedTrainerMixin, RLOOTrainer):
    """RLOO in which the change of the weights is split at a subspace."""


class AssembledPPOTrainer(RoutedTrainerMixin, PPOTrainer):
    """PPO in which the change of the weights is split at a subspace."""

    reads_states = True  # the value head

    def _calculate_rewards(self, *args: object, **kwargs: object) -> torch.Tensor:
        by_function = super()._calculate_rewards(*args, **kwargs)
        # A row that could not be scored is paid its group's mean, which is no advantage in GRPO; here it would be one.
        self._scored_B &= ~torch.tensor(self.reward.failed, device=by_function.device)
        return by_function


RoutedTrainer = AssembledGRPOTrainer | AssembledRLOOTrainer | AssembledPPOTrainer


@dataclass(frozen=True)
class Algorithm:
    """One row of `TRAINERS`: an algorithm with its trainer and the class of its arguments."""

    trainer: type[RoutedTrainer]
    arguments: type[TrainerArguments]
    episodes: bool
    """Whether TRL's trainer takes rollouts of several turns."""


TRAINERS = {
    "grpo": Algorithm(AssembledGRPOTrainer, GRPOConfig, episodes=True),
    "rloo": Algorithm(AssembledRLOOTrainer, RLOOConfig, episodes=False),
    "ppo": Algorithm(AssembledPPOTrainer, PPOConfig, episodes=True),
}
"""For each value of `trainer.algorithm`, the trainer and the class of its arguments."""
