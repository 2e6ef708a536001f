"""Parts that a trainer is given and that TRL would make itself: vLLM's engine, which serves the policy and is compared with the
trainer, and the reference model, which TRL would load again from whatever `config._name_or_path` names.

Not covered: several trainer processes with vLLM in them, images.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel
from trl.generation.vllm_generation import VLLMGeneration
from trl.models import prepare_deepspeed, prepare_fsdp
from trl.trainer.utils import add_fused_lm_head

from routed_rl.ranks import RANKS
from routed_rl.rollout import ParityCheck, Served
from routed_rl.training.base import left_out


class AdaptedLLM:
    """vLLM's `LLM`, with an adapter in every request."""

    def __init__(self, engine: Any, adapter: str) -> None:
        self.engine, self.adapter = engine, adapter

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        return self.engine.llm.generate(*args, lora_request=self.engine.request(self.adapter), **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine.llm, name)


class PolicyGeneration(VLLMGeneration):
    """`VLLMGeneration` with an engine made elsewhere, because TRL's own has no choice of dtype and cannot run on a CPU."""

    def __init__(self, trainer: Any, served: Served, parity: ParityCheck) -> None:
        self.trainer, self.served, self.parity = trainer, served, parity
        mode = "colocate" if hasattr(served.engine, "llm") else "server"
        own = {"stop_token_ids": sorted(trainer.eos_token_ids), "ignore_eos": True} | (
            {"detokenize": False} if mode == "colocate" else {})
        same = ("repetition_penalty", "temperature", "top_p", "top_k", "min_p", "max_completion_length")
        super().__init__(trainer.model, trainer.accelerator, trainer.processing_class, mode=mode, logprobs=0,
                         structured_outputs_regex=trainer.args.vllm_structured_outputs_regex,
                         generation_kwargs=own | (trainer.args.generation_kwargs or {}),
                         **{name: getattr(trainer, name) for name in same})

    def _init_vllm(self) -> None:
        engine: Any = self.served.engine
        if self.mode == "colocate":
            self.llm = engine.llm
        else:
            self.vllm_client = engine

    def generate(self, prompts: list[list[int]], images: Any, num_generations: int, profiler: Any = None) -> tuple[Any, ...]:
        """The completions in the order of the prompts: the deployed model writes those of rows that practise, the policy the
        others."""
        practice, rolling = self.trainer.practice, self.trainer.rolling
        if practice is None or not practice.active:
            with self._asking(self.served.show(deployed=False)):
                return self._ask(prompts, images, num_generations, profiler)
        mine = [False] * len(prompts) if rolling is None else rolling.tolist()
        answers: list[list[Any]] = [[None] * len(prompts) for _ in range(4)]
        for deployed in (False, True):
            adapter = self.served.show(deployed=deployed)  # in every process, even one without such rows
            places = [place for place, practises in enumerate(mine) if practises == deployed]
            if places:
                with self._asking(adapter):
                    found = self._ask([prompts[place] for place in places], images, num_generations, profiler)
                for answer, part in zip(answers, found, strict=True):
                    for place, row in zip(places, part or [None] * len(places), strict=True):
                        answer[place] = row
        self.served.show(deployed=False)
        return tuple(answers)

    @contextmanager
    def _asking(self, adapter: str | None) -> Iterator[None]:
        """Inside this context, requests are for this adapter."""
        if adapter is None:
            yield
        elif self.mode == "colocate":
            plain, self.llm = self.llm, AdaptedLLM(self.served.engine, adapter)
            try:
                yield
            finally:
                self.llm = plain
        else:
            with self.vllm_client.asking(adapter):
                yield

    def _ask(self, prompts: list[list[int]], images: Any, num_generations: int, profiler: Any = None) -> tuple[Any, ...]:
        if RANKS.count == 1:
            return super().generate(prompts, images, num_generations, profiler)
        # Not TRL's way through the first process: rows of several turns end at different times, so no call may wait for another
        # process.
        same = ("repetition_penalty", "temperature", "top_p", "top_k", "logprobs", "structured_outputs_regex",
                "generation_kwargs")
        answer = self.vllm_client.generate(prompts, n=1, min_p=self.min_p or 0.0, max_tokens=self.max_completion_length,
                                           **{name: getattr(self, name) for name in same})
        return answer["prompt_ids"], answer["completion_ids"], answer["logprobs"], answer["logprob_token_ids"]

    def sync_weights(self) -> None:
        self.served.sync()
        self.trainer.rollout_metrics["time/sync_s"] = self.served.sync_seconds
        step = self.trainer.state.global_step
        if self.parity.is_due(step):
            with self.trainer.rolling_out(()):  # because it compares rows of its own
                self.trainer.rollout_metrics |= self.parity.run(step)


def use_engine(trainer: Any, served: Served, parity: ParityCheck) -> None:
    """Let a trainer that was built for transformers' generation take its rollouts from `served`."""
    trainer.vllm_generation = PolicyGeneration(trainer, served, parity)
    trainer.use_vllm, trainer.vllm_mode, trainer._last_loaded_step = True, trainer.vllm_generation.mode, -1


def use_base_model(trainer: Any, beta: float) -> None:
    """Let a trainer of a LoRA that was built with `beta=0` add `beta` times the KL to the model without the LoRA; the quarantine
    and edits of the stream are left out too. For a model that comes with an adapter, TRL would compare with a copy of that."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    disabled = model.disable_adapter

    @contextmanager
    def base_model() -> Iterator[None]:
        with disabled(), left_out(trainer.router, trainer.edit):
            yield

    model.disable_adapter = base_model
    trainer.beta = trainer.args.beta = beta


def use_reference(trainer: Any, reference: PreTrainedModel, beta: float) -> None:
    """Let a trainer that was built with `beta=0` add `beta` times the KL to `reference` to its loss (GRPO, PPO) or subtract it
    from its rewards (RLOO)."""
    add_fused_lm_head(reference, temperature=trainer.temperature,
                      cast_lm_head_to_fp32=getattr(trainer.args, "cast_lm_head_to_fp32", False))
    if trainer.is_deepspeed_enabled:
        trainer.ref_model = prepare_deepspeed(reference, trainer.accelerator)
    elif trainer.is_fsdp_enabled:
        trainer.ref_model = prepare_fsdp(reference, trainer.accelerator)
    else:
        trainer.ref_model = trainer.accelerator.prepare_model(reference, evaluation_mode=True)
    trainer.beta = trainer.args.beta = beta
