"""The reference model of the KL term: given, where TRL would load again whatever `config._name_or_path` names."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel
from trl.models import prepare_deepspeed, prepare_fsdp
from trl.trainer.utils import add_fused_lm_head


def use_reference(trainer: Any, reference: PreTrainedModel, beta: float) -> None:
    """Let a trainer that was built with `beta=0` take `beta` times the KL to `reference` into its loss (GRPO, PPO) or its
    rewards (RLOO)."""
    add_fused_lm_head(reference, temperature=trainer.temperature,
                      cast_lm_head_to_fp32=getattr(trainer.args, "cast_lm_head_to_fp32", False))
    if trainer.is_deepspeed_enabled:
        trainer.ref_model = prepare_deepspeed(reference, trainer.accelerator)
    elif trainer.is_fsdp_enabled:
        trainer.ref_model = prepare_fsdp(reference, trainer.accelerator)
    else:
        trainer.ref_model = trainer.accelerator.prepare_model(reference, evaluation_mode=True)
    trainer.beta = trainer.args.beta = beta
