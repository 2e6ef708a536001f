"""The reference model of a trainer's KL term. TRL itself would load it again from whatever `config._name_or_path` names."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel
from trl.models import prepare_deepspeed, prepare_fsdp
from trl.trainer.utils import add_fused_lm_head

from routed_rl.training.base import left_out


def use_base_model(trainer: Any, beta: float) -> None:
    """Make a trainer of a LoRA that was built with `beta=0` add `beta` times the KL from the model without the LoRA, the
    quarantine and edits of the stream. For a model that comes with an adapter, TRL would take a copy of that adapter as the
    reference."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    disabled = model.disable_adapter

    @contextmanager
    def base_model() -> Iterator[None]:
        with disabled(), left_out(trainer.router, trainer.edit):
            yield

    model.disable_adapter = base_model
    trainer.beta = trainer.args.beta = beta


def use_reference(trainer: Any, reference: PreTrainedModel, beta: float) -> None:
    """Make a trainer that was built with `beta=0` use `beta` times the KL from `reference`: added to its loss (GRPO, PPO) or
    subtracted from its rewards (RLOO)."""
    add_fused_lm_head(reference, temperature=trainer.temperature,
                      cast_lm_head_to_fp32=getattr(trainer.args, "cast_lm_head_to_fp32", False))
    if trainer.is_deepspeed_enabled:
        trainer.ref_model = prepare_deepspeed(reference, trainer.accelerator)
    elif trainer.is_fsdp_enabled:
        trainer.ref_model = prepare_fsdp(reference, trainer.accelerator)
    else:
        trainer.ref_model = trainer.accelerator.prepare_model(reference, evaluation_mode=True)
    trainer.beta = trainer.args.beta = beta
