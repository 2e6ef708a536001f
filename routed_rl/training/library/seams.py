"""The methods in which a library trainer (one that `import routed_rl` offers) differs from the trainers of the commands: it
leaves rollouts and rewards to TRL, and only records the rows and their rewards."""

import copy
import os
import traceback
from typing import Any

import torch
import trl
from torch import Tensor

from routed_rl import console
from routed_rl.config import RoutingConfig
from routed_rl.errors import TaskError
from routed_rl.monitor import never_halting
from routed_rl.training.generations import last_generation, prompts_needed
from routed_rl.training.library.hub import push
from routed_rl.training.library.labelled import LabelledRows, scores_of
from routed_rl.training.mixin import RoutedTrainerMixin
from routed_rl.training.practice import idle, untrusted

TRL = os.path.dirname(str(trl.__file__)) + os.sep
"""The folder of TRL's own code."""


class LibrarySeams(RoutedTrainerMixin):
    """The base class of `LibraryMixin`, with all its methods that replace methods of TRL; `LibraryMixin` adds the constructor."""

    prints = True
    labelled: LabelledRows
    """The rows of the trainer's dataset."""
    _evaluating = ""
    """The name of the dataset that is evaluated, if `eval_dataset` has several; otherwise empty."""
    _sampler: Any = None
    """The sampler by which TRL draws the order of the dataset's entries; None for a dataset that is streamed."""

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if self.model.training:  # pyright: ignore[reportAttributeAccessIssue]
            return super()._generate_and_score_completions(inputs)
        return super(RoutedTrainerMixin, self)._generate_and_score_completions(inputs)  # pyright: ignore[reportAttributeAccessIssue]

    def _calculate_rewards(self, inputs: list[dict[str, Any]], prompts: list[Any], completions: list[Any], *others: Any
                           ) -> Tensor:
        trainer: Any = self
        try:
            with self.rolling_out(()):  # what a function has the model read is no row that practises
                by_function: Tensor = super()._calculate_rewards(inputs, prompts, completions, *others)  # pyright: ignore
        except (RuntimeError, TypeError, ValueError) as error:
            if not traceback.extract_tb(error.__traceback__)[-1].filename.startswith(TRL):  # the function itself failed
                raise
            raise TaskError(f"one of the reward functions {', '.join(trainer.reward_func_names)} returned what TRL cannot take: "
                            f"{error}; return a list with one number, or None, for each completion") from error
        scores = scores_of(by_function, trainer.reward_weights, trainer.reward_func_names)
        if trainer.model.training:
            self.labelled.paid(inputs, prompts, completions, scores, trainer.state.global_step + 1)
        else:
            self.labelled.evaluated(inputs, scores)
        return by_function

    def evaluate(self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
                 ) -> dict[str, float]:
        """TRL's evaluation, which calls this method once more for each of several datasets, with the prefix `eval_NAME`."""
        self.labelled.take_evaluated()  # of an evaluation that an exception has ended
        self._evaluating = metric_key_prefix.removeprefix("eval").removeprefix("_")
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)  # pyright: ignore[reportAttributeAccessIssue]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the metrics of an evaluation. TRL names its own ones alike for all datasets, so that of several datasets only the
        last one's would be left; therefore they are there under the dataset's name as well."""
        trainer: Any = self
        for key, value in ({} if trainer.model.training else self.labelled.take_evaluated()).items():
            for name in (key, *([f"{self._evaluating}_{key}"] if self._evaluating else [])):
                trainer._metrics["eval"][name].append(value)
        super().log(logs, start_time)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        if self.router is not None:
            self.router.context.end_batch()  # a callback or a reward function may have the model read other rows
        return loss

    def _choose_rollouts(self, inputs: list[dict[str, Any]]) -> None:
        """Does nothing, so that TRL makes the rollouts, or the `rollout_func` that the script gave."""

    def _tokenize_prompts(self, prompts: list[Any]) -> Any:
        return super(RoutedTrainerMixin, self)._tokenize_prompts(prompts)  # pyright: ignore[reportAttributeAccessIssue]

    def _generate(self, prompts: list[Any]) -> Any:
        return super(RoutedTrainerMixin, self)._generate(prompts)  # pyright: ignore[reportAttributeAccessIssue]

    def _determine_best_metric(self, *args: Any, **given: Any) -> bool:
        """Whether a step is saved with `args.save_strategy=best`. A step at which the monitor halts is saved in any case."""
        best = super()._determine_best_metric(*args, **given)  # pyright: ignore[reportAttributeAccessIssue]
        return best or (self.watch is not None and bool(self.watch.halting))

    def push_to_hub(self, commit_message: str | None = "End of training", blocking: bool = True, token: str | None = None,
                    revision: str | None = None, **card: Any) -> Any:
        """Upload the deployed model, without its quarantine and with a model card, to the repository `args.hub_model_id`, or to
        one with the name of the folder `args.output_dir`, which is made if it does not exist. The upload is one commit, and is
        waited for. `token`: None for `args.hub_token`, or that of `hf auth login`. `revision`: the branch; None for
        `args.hub_revision`. `card`: `model_name`, `dataset_name`, `tags`, `license` and `language` of the card. Returns the hub's
        information on the commit. ConfigError if the model is a LoRA on a model that is not on the hub, or if
        `args.hub_private_repo` is set and the repository is public. HubError if the hub does not take it."""
        return push(self, commit_message, blocking=blocking, token=token, revision=revision, **card)

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        """Before the first step, say which rules of the monitor cannot halt, because they have nothing to read, and which
        environments will not practise, because the monitor trusts none or the run is too small."""
        trainer: Any = self
        arguments, counts = copy.copy(trainer.args), self.labelled.counts(trainer.train_dataset)
        arguments.max_steps = max_steps
        groups = {name: prompts_needed(arguments) * count / counts.total() for name, count in counts.items()}
        monitor = self.watch.monitor.config if self.watch is not None else None
        routing = self.router.config if self.router is not None else RoutingConfig(mode="none")
        for line in never_halting(monitor, routing, max_steps, truth=False) if monitor is not None else []:
            console.say(f"monitor: {line}")
        if self.router is not None:
            nobody = (untrusted(self.router.config, monitor, self.labelled.names),  # a stream has no groups that could be counted
                      idle(self.router.config, last_generation(arguments), groups))
            for line in filter(None, nobody):
                console.say(f"practice: {line}")
        return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)

    def _run_epoch(self, *args: Any, **given: Any) -> None:
        """Before the first epoch of a resumed training, draw the orders of all earlier epochs. TRL's sampler draws one order of
        the dataset for each epoch in turn, and in a resumed process it has not drawn the orders of the earlier epochs."""
        sampler, done = self._sampler, given["epochs_trained"]
        if given["resume_from_checkpoint"] is not None and given["epoch"] == done and getattr(sampler, "shuffle", False):
            for _ in range(done):
                torch.randperm(sampler.num_samples, generator=sampler.generator)
        super()._run_epoch(*args, **given)  # pyright: ignore[reportAttributeAccessIssue]

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        self._sampler = super()._get_train_sampler(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        return self._sampler
