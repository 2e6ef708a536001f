"""Builds the trainer of a run with all its parts: tasks, reward function, reference model, and what the arm needs."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from routed_rl.envs import LoadedEnvironment, Scorer, has_episodes
from routed_rl.errors import ConfigError
from routed_rl.extraction.pooled import Said, pooled
from routed_rl.extraction.probe import Probe
from routed_rl.model.adapter import plain
from routed_rl.model.load import load_model
from routed_rl.routing import Router
from routed_rl.subspace import Subspace
from routed_rl.training.advantages import Advantages
from routed_rl.training.base import BaseModel
from routed_rl.training.baselines import Payment, ProbeDetector, Projection, PromptContexts, StreamEdit, TraitAdapter
from routed_rl.training.checks import LEAN, algorithm_name
from routed_rl.training.completions import CompletionFiles
from routed_rl.training.generations import prompts_needed, prompts_used, steps_of_a_generation
from routed_rl.training.health import Health
from routed_rl.training.labels import linear_modules
from routed_rl.training.plan import Plan
from routed_rl.training.practice import make_practice
from routed_rl.training.tasks import RewardFunction, TaskTable
from routed_rl.training.trainers import RoutedTrainer

AFRESH = 7919
"""If the mixture of environments starts afresh after step n, n times this number is added to the seed of the tasks."""


def build_trainer(plan: Plan, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, environments: list[LoadedEnvironment],
                  router: Router | None, *, fresh_from: int = 0, **given: Any) -> RoutedTrainer:
    """Build the trainer of a run. `environments`: those that are trained on, in the router's order. `router`: None if
    `routing.mode` is none. `fresh_from`: 0, or the number of the step after which a rollback has changed the mixture of
    environments; the mixture then starts afresh, with tasks of another seed. `given`: further arguments of the trainer, see
    `RoutedTrainerMixin`. ConfigError if environments with episodes cannot be combined with the settings."""
    config, run, arguments = plan.config, plan.run, plan.arguments
    if playing := [loaded.name for loaded in environments if has_episodes(loaded.environment)]:
        if not plan.algorithm.episodes:
            raise ConfigError(f"environment {playing[0]} has episodes, which TRL's {algorithm_name(config.trainer)} cannot roll "
                              "out; set trainer=grpo or trainer=ppo")
        if config.rollout.ahead:
            raise ConfigError(f"environment {playing[0]} has episodes, whose turns cannot be asked for ahead; set "
                              "rollout.ahead=0")
    table = TaskTable(environments, config.seed + AFRESH * fresh_from, prompts_used(arguments, fresh_from))
    scorer = Scorer({loaded.name: loaded for loaded in environments}, config.evaluation.max_failures)
    practice = make_practice(config.routing, table, given.get("watch")) if router is not None else None
    completions = CompletionFiles(run.completions if config.tracking.completions else None, config.monitor.completions)
    assert arguments.num_generations is not None
    contexts = PromptContexts(config.baseline, environments) if config.baseline.swaps else None
    projection = Projection(config.baseline, Subspace.load(run.subspace), arguments.num_generations,
                            arguments.per_device_train_batch_size) if config.baseline.projects else None
    edit = _edit_of(plan, model, tokenizer, environments)
    base = BaseModel(model, config, router, edit) if config.reads_base else None
    detector = _probe_detector(plan, base, tokenizer) if base is not None and config.learns_detector else None
    health = Health(config, Subspace.load(run.subspace), base, tokenizer, steps_of_a_generation(arguments)
                    ) if base is not None and config.monitor.health else None
    payment = Payment(config.baseline, config.seed, arguments.num_generations, detector, table.names
                      ) if config.asks_detector else None
    reward = RewardFunction(table, scorer, arguments.num_generations, completions, payment)
    advantages = Advantages(reward, tokenizer, router, projection, targets=config.baseline.target_rewards)
    return plan.algorithm.trainer(
        model=model, args=arguments, train_dataset=table.dataset(prompts_needed(arguments)), processing_class=tokenizer,
        reference=load_model(config.model.path) if arguments.beta and not config.model.adapter.trains else None,
        router=router, run=run, practice=practice, reward=reward, contexts=contexts, edit=edit, advantages=advantages,
        health=health, strategy=config.launch.strategy, lean=config.trainer.get(LEAN, True), ahead=config.rollout.ahead > 0,
        **given)


def _probe_detector(plan: Plan, base: BaseModel, tokenizer: PreTrainedTokenizerBase) -> ProbeDetector:
    """Load the linear probe that was learned before the run's first step, and return it as a detector. The detector gets the
    activations of the base model on the completions."""
    def read(said: Sequence[Said], layers: Sequence[int]) -> Tensor:
        with base.reading() as model:
            return pooled(model, tokenizer, said, plan.config.evaluation.batch_size, layers=layers)

    return ProbeDetector(plan.config.baseline.detector, Probe.load(plan.run.detector)[0], read)


def _edit_of(plan: Plan, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, environments: list[LoadedEnvironment]
             ) -> StreamEdit | TraitAdapter | None:
    """Make the temporary edit of the stream, or the trait's adapter, that the baseline puts on the model while it trains; None if
    the baseline has neither."""
    config, run = plan.config, plan.run
    if config.baseline.edits:
        return StreamEdit(plain(model), config.baseline, Subspace.load(run.subspace))
    if not config.baseline.inoculation_adapter:
        return None
    inner = plain(model)
    trait = TraitAdapter(inner, linear_modules(inner), config)
    trait.prepare(run.trait, inner, tokenizer, environments, config)
    return trait
