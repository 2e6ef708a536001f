"""Finds settings that only a library or the model refuses, by trying them out before a run writes anything or takes long."""

import copy
from contextlib import AbstractContextManager
from typing import Any, cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, Trainer, get_scheduler
from transformers.integrations import get_reporting_integration_callbacks

from routed_rl.errors import ConfigError, ModelError, reading
from routed_rl.training.plan import Plan
from routed_rl.training.ppo import PPOConfig
from routed_rl.training.trainers import TrainerArguments

OF_THE_OPTIMIZER = {"optim_args": None, "optim_target_modules": None, "adam_beta1": 0.9, "adam_beta2": 0.999,
                    "adam_epsilon": 1e-8}
"""Fields of the arguments that some optimizers do not read, with their defaults."""
GENERATED = {"max_new_tokens", "max_length", "num_return_sequences", "eos_token_id", "pad_token_id", "bos_token_id",
             "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "cache_implementation", "disable_compile"}
"""Keys of a generation config that `trainer.generation_kwargs` may not have, because other settings, the model or the size of
TRL's groups decide them."""


def try_out(plan: Plan, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Try out the settings of a plan on a model. ConfigError for the first setting with which the model cannot be trained, or
    which an installed library refuses; ModelError for a model that cannot generate. Neither the model nor the random state
    changes."""
    arguments: Any = plan.arguments
    optimizer = check_optimizer(arguments, model)
    with _trying(arguments, "lr_scheduler_type", "lr_scheduler_kwargs"):
        _schedule(arguments, optimizer)
    with _trying(arguments, "report_to"):
        _ = [kind() for kind in get_reporting_integration_callbacks(arguments.report_to)]
    if arguments.gradient_checkpointing:
        chosen = {"use_reentrant": False} | (arguments.gradient_checkpointing_kwargs or {})
        with _trying(arguments, "gradient_checkpointing_kwargs"):
            cast(Any, checkpoint)(torch.square, torch.ones(1), **chosen)
    text = cast(Any, model.config).get_text_config()
    if arguments.router_aux_loss_coef and not hasattr(text, "output_router_logits"):
        raise ConfigError(f"trainer.router_aux_loss_coef={arguments.router_aux_loss_coef} needs a mixture of experts, and "
                          f"{plan.config.model.path} is none; leave it out")
    if getattr(arguments, "cast_lm_head_to_fp32", False) and not hasattr(getattr(model, "model", None), "embed_tokens"):
        raise ConfigError(f"trainer.cast_lm_head_to_fp32=true is not supported for {plan.config.model.path}, whose output layer "
                          "has another name; leave it out, because the weights are float32 anyway")
    if plan.config.rollout.engine == "transformers":
        given = arguments.generation_kwargs or arguments.cache_implementation
        with _trying(arguments, "generation_kwargs", "cache_implementation") if given else reading(
                ModelError, f"transformers cannot generate a token with {plan.config.model.path}, so there would be no rollouts"):
            _generate(arguments, model, tokenizer)


def check_optimizer(arguments: TrainerArguments, model: PreTrainedModel) -> torch.optim.Optimizer | None:
    """Make the optimizer that `arguments` choose, for a single dummy parameter, and return it; None if such an optimizer can only
    be made for the parameters of a model. ConfigError if the optimizer's package is missing, if it ignores a setting that the
    user has made, or if it cannot train PPO's value head."""
    name = getattr(arguments.optim, "value", arguments.optim)
    try:
        kind, wanted = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
    except Exception as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"trainer.optim={name}: {why}; or set trainer.optim=adamw_torch") from error
    for field, default in OF_THE_OPTIMIZER.items():
        value = getattr(arguments, field)
        if value != default and _optimizer_without(arguments, model, field, default) == (kind, wanted):
            raise ConfigError(f"trainer.{field}={value} does nothing with trainer.optim={name}; leave it out")
    own = {"params", "model", "optimizer_dict"}  # given to optimizers made for a model's parameters
    if not issubclass(kind, torch.optim.Optimizer) or wanted.keys() & own:
        if isinstance(arguments, PPOConfig):
            raise ConfigError(f"trainer.optim={name} is made for a certain model's parameters and cannot train PPO's value head "
                              "beside it; set trainer.optim=adamw_torch")
        return None
    with _trying(arguments, "optim", "optim_args"):
        return kind([nn.Parameter(torch.zeros(1))], **wanted)


def _optimizer_without(arguments: TrainerArguments, model: PreTrainedModel, field: str, default: Any) -> Any:
    """Return the class and the settings that the optimizer would have if `field` had the value `default`; None if no optimizer
    can be chosen with this value."""
    other = copy.copy(arguments)
    setattr(other, field, default)
    try:
        return Trainer.get_optimizer_cls_and_kwargs(other, model)
    except Exception:
        return None


def _schedule(arguments: TrainerArguments, optimizer: torch.optim.Optimizer | None) -> None:
    """Make the learning rate's schedule and evaluate it at a few steps. ValueError if a rate would be negative or not finite."""
    steps = arguments.max_steps
    stepped = optimizer or torch.optim.SGD([nn.Parameter(torch.zeros(1))], 1e-3)
    try:
        schedule: Any = get_scheduler(arguments.lr_scheduler_type, stepped, arguments.get_warmup_steps(steps), steps,
                                      cast(Any, arguments.lr_scheduler_kwargs))
    except TypeError as error:
        raise TypeError(f"{error}; write what it takes as trainer.lr_scheduler_kwargs={{NAME: VALUE}}") from error
    for step in {0, 1, steps // 2, steps - 1, steps}:
        for factor in schedule.lr_lambdas:
            if not 0 <= (found := factor(step)) < float("inf"):
                raise ValueError(f"the learning rate at step {step} would be {found} times trainer.learning_rate")


def _generate(arguments: Any, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Generate one token from a prompt of one token, with the settings that TRL will use. ValueError for a key of
    `generation_kwargs` that other settings decide, or that transformers does not know."""
    wanted = arguments.generation_kwargs or {}
    if bad := sorted(wanted.keys() & GENERATED):
        raise ValueError(f"{bad[0]} is not set here; the field of trainer with such a name, or the model, decides it")
    if bad := sorted(wanted.keys() - GenerationConfig().to_dict().keys()):
        raise ValueError(f"{bad[0]} is no setting of transformers' GenerationConfig")
    config = GenerationConfig(**cast(Any, {"max_new_tokens": 1, "do_sample": True, "pad_token_id": tokenizer.pad_token_id,
                                 "cache_implementation": arguments.cache_implementation} | wanted), disable_compile=True)
    ids = torch.full((1, 1), cast(int, tokenizer.eos_token_id), device=model.device)
    with torch.random.fork_rng(), torch.no_grad():
        found: Any = cast(Any, model).generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    if not isinstance(found, torch.Tensor):
        raise ValueError("generation must give tokens alone")


def _trying(arguments: Any, *names: str) -> AbstractContextManager[None]:
    """Inside this context, any error of a library becomes a ConfigError that names those settings `trainer.NAME` of `names` that
    are set, with their values."""
    said = [f"trainer.{name}={getattr(value, 'value', value)}" for name in names if (value := getattr(arguments, name))]
    return reading(ConfigError, " ".join(said))
