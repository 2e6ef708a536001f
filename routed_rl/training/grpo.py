"""`RoutedGRPOTrainer`: TRL's GRPO with routing. A further algorithm is one class like this one."""

from __future__ import annotations

from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainerCallback
from trl import GRPOTrainer

from routed_rl.artifacts import RunFolder
from routed_rl.config import Config
from routed_rl.envs import LoadedEnvironment, Scorer
from routed_rl.rollout import ParityCheck, Served
from routed_rl.routing import Router
from routed_rl.training.arguments import prompts_needed, training_arguments
from routed_rl.training.mixin import RoutedTrainerMixin
from routed_rl.training.tasks import RewardFunction, TaskTable
from routed_rl.training.vllm import use_engine
from routed_rl.training.watch import Watch

AFRESH = 7919
"""Added to the seed of the tasks for each step before a mixture starts afresh."""


class RoutedGRPOTrainer(RoutedTrainerMixin, GRPOTrainer):
    """GRPO whose change of the weights is split at a subspace."""



def build_trainer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, environments: list[LoadedEnvironment],
                  router: Router | None, config: Config, run: RunFolder, callbacks: list[TrainerCallback],
                  *, watch: Watch | None = None, fresh_from: int = 0, served: Served | None = None,
                  parity: ParityCheck | None = None) -> RoutedGRPOTrainer:
    """The trainer of a run; `environments` are the trained ones, in the order of the router's.

    `fresh_from`: the step after which the mixture starts afresh, with tasks of another seed. With `served` the rollouts come
    from there, compared by `parity`.
    """
    arguments = training_arguments(config, run)
    table = TaskTable(environments, config.seed + AFRESH * fresh_from, prompts_needed(arguments, fresh_from))
    scorer = Scorer({loaded.name: loaded for loaded in environments}, config.evaluation.max_failures)
    completions = run.completions if config.tracking.completions else None
    assert arguments.num_generations is not None
    reward = RewardFunction(table, scorer, arguments.num_generations, completions)
    trainer = RoutedGRPOTrainer(model=model, args=arguments, train_dataset=table.dataset(prompts_needed(arguments)),
                                processing_class=tokenizer, router=router, run=run, reward=reward, callbacks=callbacks,
                                watch=watch, strategy=config.launch.strategy)
    trainer.remove_callback(PrinterCallback)
    if served is not None and parity is not None:
        use_engine(trainer, served, parity)
    return trainer
