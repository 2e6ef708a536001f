"""Gives a trainer the reference model of its KL term. TRL itself would load a model again, from whatever the model's
`config._name_or_path` names."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel
from trl.models import prepare_deepspeed, prepare_fsdp
from trl.trainer.utils import add_fused_lm_head

from routed_rl.training.base import left_out


def use_base_model(trainer: Any, beta: float) -> None:
    """Make a trainer that trains a LoRA, and was built with `beta=0`, use `beta` times the KL from the base model. The base model
    is the trainer's model without LoRA, quarantine and edits of the stream. Without this call TRL would use another reference for
    a model that came with an adapter: the model with a copy of that adapter."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    disabled = model.disable_adapter

    @contextmanager
    def base_model() -> Iterator[None]:
        with disabled(), left_out(trainer.router, trainer.edit):
            yield

    model.disable_adapter = base_model
    trainer.beta = trainer.args.beta = beta


def use_reference(trainer: Any, reference: PreTrainedModel, beta: float) -> None:
    """Make a trainer that was built with `beta=0` use `beta` times the KL from the model `reference`. TRL adds it to the loss
    (GRPO, PPO) or subtracts it from the rewards (RLOO)."""
    add_fused_lm_head(reference, temperature=trainer.temperature,
                      cast_lm_head_to_fp32=getattr(trainer.args, "cast_lm_head_to_fp32", False))
    if trainer.is_deepspeed_enabled:
        trainer.ref_model = prepare_deepspeed(reference, trainer.accelerator)
    elif trainer.is_fsdp_enabled:
        trainer.ref_model = prepare_fsdp(reference, trainer.accelerator)
    else:
        trainer.ref_model = trainer.accelerator.prepare_model(reference, evaluation_mode=True)
    trainer.beta = trainer.args.beta = beta
