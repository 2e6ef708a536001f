"""The methods of TRL's trainer that the library leaves to TRL, and in which it only takes notes."""

from typing import Any

import torch
from torch import Tensor

from routed_rl.training.library.labelled import LabelledRows, scores_of
from routed_rl.training.mixin import RoutedTrainerMixin


class LibrarySeams(RoutedTrainerMixin):
    """The base of `LibraryMixin`, which adds the constructor of the library's trainers."""

    prints = True
    labelled: LabelledRows
    """The rows of the trainer's dataset."""
    _sampler: Any = None
    """TRL's sampler; None for a dataset that is streamed."""

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if self.model.training:  # pyright: ignore[reportAttributeAccessIssue]
            return super()._generate_and_score_completions(inputs)
        return super(RoutedTrainerMixin, self)._generate_and_score_completions(inputs)  # pyright: ignore[reportAttributeAccessIssue]

    def _calculate_rewards(self, inputs: list[dict[str, Any]], prompts: list[Any], completions: list[Any], *others: Any
                           ) -> Tensor:
        trainer: Any = self
        by_function: Tensor = super()._calculate_rewards(inputs, prompts, completions, *others)  # pyright: ignore
        scores = scores_of(by_function, trainer.reward_weights, trainer.reward_func_names)
        if trainer.model.training:
            self.labelled.paid(inputs, prompts, completions, scores, trainer.state.global_step + 1)
        else:
            for name, value in self.labelled.means(inputs, scores).items():
                trainer._metrics["eval"][name].append(value)
        return by_function

    def _choose_rollouts(self, inputs: list[dict[str, Any]]) -> None:
        """Leave the choice to TRL, or to the `rollout_func` that the script gave."""

    def _tokenize_prompts(self, prompts: list[Any]) -> Any:
        return super(RoutedTrainerMixin, self)._tokenize_prompts(prompts)  # pyright: ignore[reportAttributeAccessIssue]

    def _run_epoch(self, *args: Any, **given: Any) -> None:
        """Draw the orders of past epochs before a resumed one: TRL's sampler draws one for each epoch in turn, and a resumed
        trainer has not drawn those yet."""
        sampler, done = self._sampler, given["epochs_trained"]
        if given["resume_from_checkpoint"] is not None and given["epoch"] == done and getattr(sampler, "shuffle", False):
            for _ in range(done):
                torch.randperm(sampler.num_samples, generator=sampler.generator)
        super()._run_epoch(*args, **given)  # pyright: ignore[reportAttributeAccessIssue]

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        self._sampler = super()._get_train_sampler(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        return self._sampler
