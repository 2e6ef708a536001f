"""The table of algorithms, each with its trainer: a subclass of a trainer of TRL, or of our `PPOTrainer`, with
`RoutedTrainerMixin` as the first base class. A new algorithm is one entry of `TRAINERS`. The trainers are given their parts
ready-made: the module `build` makes these from a config, and the package `library` from the arguments of TRL's trainers."""

from dataclasses import dataclass
from typing import Any

import torch
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from routed_rl.ranks import RANKS
from routed_rl.training.mixin import RoutedTrainerMixin
from routed_rl.training.ppo import PPOConfig, PPOTrainer
from routed_rl.training.tasks import RewardFunction

TrainerArguments = GRPOConfig | RLOOConfig


class AssembledGRPOTrainer(RoutedTrainerMixin, GRPOTrainer):
    """TRL's `GRPOTrainer` with routing, made from ready-made parts."""


class AssembledRLOOTrainer(RoutedTrainerMixin, RLOOTrainer):
    """TRL's `RLOOTrainer` with routing, made from ready-made parts."""

    def _calculate_rewards(self, inputs: list[dict[str, Any]], prompts: list[Any], completions: list[Any], *others: Any
                           ) -> torch.Tensor:
        by_function = super()._calculate_rewards(inputs, prompts, completions, *others)
        if isinstance(self.reward, RewardFunction):
            # Else the KL of a row that could not be scored or was screened, which TRL subtracts from its reward, would count in
            # the baseline of its group. TRL leaves rows that are nan out of every mean.
            failed = [row for rows in RANKS.gather(self.reward.failed) for row in rows]
            by_function[torch.tensor(failed, device=by_function.device)] = torch.nan
        return by_function


class AssembledPPOTrainer(RoutedTrainerMixin, PPOTrainer):
    """Our `PPOTrainer` with routing, made from ready-made parts."""

    reads_states = True  # the value head

    def _calculate_rewards(self, *args: object, **kwargs: object) -> torch.Tensor:
        by_function = super()._calculate_rewards(*args, **kwargs)
        # A row that could not be scored is paid its group's mean, which is no advantage in GRPO; here it would be one.
        self._scored_B &= ~torch.tensor(self.reward.failed, device=by_function.device)
        return by_function


RoutedTrainer = AssembledGRPOTrainer | AssembledRLOOTrainer | AssembledPPOTrainer


@dataclass(frozen=True)
class Algorithm:
    """One entry of `TRAINERS`: an algorithm with its trainer and the class of its arguments."""

    trainer: type[RoutedTrainer]
    arguments: type[TrainerArguments]
    episodes: bool
    """Whether `trainer` can learn from episodes, which have several turns."""


TRAINERS = {
    "grpo": Algorithm(AssembledGRPOTrainer, GRPOConfig, episodes=True),
    "rloo": Algorithm(AssembledRLOOTrainer, RLOOConfig, episodes=False),
    "ppo": Algorithm(AssembledPPOTrainer, PPOConfig, episodes=True),
}
"""For each value of `trainer.algorithm`, the trainer and the class of its arguments."""
