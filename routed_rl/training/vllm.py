"""TRL's vLLM generation on an engine of ours: it serves the policy, and is compared with the trainer.

Not covered: several trainer processes, images.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from torch import Tensor
from trl.generation.vllm_generation import VLLMGeneration

from routed_rl.rollout import ParityCheck, Served


class PolicyGeneration(VLLMGeneration):
    """`VLLMGeneration` whose engine is made elsewhere, because TRL's own has no dtype and no way to a CPU."""

    def __init__(self, trainer: Any, served: Served, parity: ParityCheck) -> None:
        self.trainer, self.served, self.parity = trainer, served, parity
        mode = "colocate" if hasattr(served.engine, "llm") else "server"
        own: dict[str, Any] = {"stop_token_ids": sorted(trainer.eos_token_ids), "ignore_eos": True}
        if mode == "colocate":
            own["detokenize"] = False
        super().__init__(trainer.model, trainer.accelerator, trainer.processing_class, mode=mode,
                         structured_outputs_regex=trainer.args.vllm_structured_outputs_regex,
                         repetition_penalty=trainer.repetition_penalty, temperature=trainer.temperature, top_p=trainer.top_p,
                         top_k=trainer.top_k, min_p=trainer.min_p, max_completion_length=trainer.max_completion_length,
                         logprobs=0, generation_kwargs=own | (trainer.args.generation_kwargs or {}))

    def _init_vllm(self) -> None:
        engine: Any = self.served.engine
        if self.mode == "colocate":
            self.llm = engine.llm
        else:
            self.vllm_client = engine

    def _iter_named_params(self) -> Generator[tuple[str, Tensor], None, None]:
        yield from self.served.weights.policy()

    def sync_weights(self) -> None:
        self.served.sync()
        self.trainer.rollout_metrics["time/sync_s"] = self.served.sync_seconds
        step = self.trainer.state.global_step
        if self.parity.is_due(step):
            self.trainer.rollout_metrics |= self.parity.run(step)


def use_engine(trainer: Any, served: Served, parity: ParityCheck) -> None:
    """Let a trainer that was built for transformers' generation take its rollouts from `served`."""
    trainer.use_vllm, trainer.vllm_mode = True, "colocate" if hasattr(served.engine, "llm") else "server"
    trainer.vllm_generation = PolicyGeneration(trainer, served, parity)
    trainer._last_loaded_step = -1
