"""The trainer of a run: which algorithm, on which tasks, against which reference."""

from __future__ import annotations

from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainerCallback

from routed_rl.artifacts import RunFolder
from routed_rl.config import Config
from routed_rl.envs import LoadedEnvironment, Scorer, has_episodes
from routed_rl.errors import ConfigError
from routed_rl.model.load import load_model
from routed_rl.rollout import ParityCheck, Served
from routed_rl.routing import Router
from routed_rl.training.arguments import algorithm, algorithm_name, prompts_needed, prompts_used, training_arguments
from routed_rl.training.completions import CompletionFiles
from routed_rl.training.reference import use_reference
from routed_rl.training.tasks import RewardFunction, TaskTable
from routed_rl.training.trainers import RoutedTrainer
from routed_rl.training.vllm import use_engine
from routed_rl.training.watch import Watch

AFRESH = 7919
"""Added to the seed of the tasks for each step before a mixture starts afresh."""


def build_trainer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, environments: list[LoadedEnvironment],
                  router: Router | None, config: Config, run: RunFolder, callbacks: list[TrainerCallback],
                  *, watch: Watch | None = None, fresh_from: int = 0, served: Served | None = None,
                  parity: ParityCheck | None = None) -> RoutedTrainer:
    """The trainer of a run; `environments` are the trained ones, in the order of the router's.

    `fresh_from`: the step after which the mixture starts afresh, with tasks of another seed. With `served` the rollouts come
    from there, compared by `parity`.
    """
    arguments, row = training_arguments(config, run), algorithm(config.trainer)
    if not row.episodes and (playing := [loaded.name for loaded in environments if has_episodes(loaded.environment)]):
        raise ConfigError(f"environment {playing[0]} has episodes, which TRL's {algorithm_name(config.trainer)} cannot roll out; "
                          "set trainer=grpo or trainer=ppo")
    beta, arguments.beta = arguments.beta, 0.0
    table = TaskTable(environments, config.seed + AFRESH * fresh_from, prompts_used(arguments, fresh_from))
    scorer = Scorer({loaded.name: loaded for loaded in environments}, config.evaluation.max_failures)
    completions = CompletionFiles(run.completions if config.tracking.completions else None, config.monitor.completions)
    assert arguments.num_generations is not None
    reward = RewardFunction(table, scorer, arguments.num_generations, completions)
    trainer = row.trainer(model=model, args=arguments, train_dataset=table.dataset(prompts_needed(arguments)),
                          processing_class=tokenizer, router=router, run=run, reward=reward, callbacks=callbacks, watch=watch,
                          strategy=config.launch.strategy)
    trainer.remove_callback(PrinterCallback)
    if beta:
        use_reference(trainer, load_model(config.model.path), beta)
    if served is not None and parity is not None:
        use_engine(trainer, served, parity)
    return trainer
