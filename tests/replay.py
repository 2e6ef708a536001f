"""Training on completions that are the same for every number of processes and every backend. Not a test itself."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from routed_rl.artifacts import RunFolder
from routed_rl.config import Config
from routed_rl.pipeline.build import load_parts, make_router
from routed_rl.ranks import RANKS
from routed_rl.subspace import Subspace
from routed_rl.training.backends import join
from routed_rl.training.build import build_trainer
from routed_rl.training.plan import make_plan
from routed_rl.training.whole import whole_weights
from tests.parts import own_config

ALL_TOKENS = 10_000
"""Sampled by the bound: every process sees all of its tokens, as the one process does."""


def replay_config(parts: Path, out: Path, processes: int, strategy: str, **changes: Any) -> Config:
    """32 completions a step, 8 steps, whatever the number of processes."""
    trainer = {"max_steps": 8, "save_steps": 100, "per_device_train_batch_size": 32 // processes} | changes.pop("trainer", {})
    routing = {"mode": "route", "quarantine": {"sample_tokens": ALL_TOKENS}} | changes.pop("routing", {})
    launch = {"strategy": strategy, "processes": processes} if strategy != "none" else {}
    return own_config(parts, out, trainer=trainer, routing=routing, launch=launch, **changes)


def replayed(trainer: Any) -> None:
    """From now on the trainer's completions follow from the prompt and the place in its group alone."""
    group = trainer.num_generations

    def generate(prompt_ids: list[list[int]], *_: Any, **__: Any) -> tuple[list[list[int]], None]:
        return [completion(ids, place % group) for place, ids in enumerate(prompt_ids)], None

    trainer._generate_single_turn = generate


def completion(prompt: list[int], place: int) -> list[int]:
    generator = torch.Generator().manual_seed(zlib.crc32(f"{prompt}/{place}".encode()))
    return [*torch.randint(3, 27, (2 + place % 3,), generator=generator).tolist(), 1]


def train(config: Config, subspace: Path, resume: str | None = None) -> dict[str, Any]:
    """Train on replayed completions, in this process or as one of the ranks; what came out, whole."""
    loaded = load_parts(config)
    if config.launch.strategy != "none":
        join(config.launch)
    router = make_router(loaded, Subspace.load(subspace))
    base = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    run = RunFolder(config.out or "")
    run.path.mkdir(parents=True, exist_ok=True)
    trainer = build_trainer(make_plan(config, run), loaded.learner, loaded.tokenizer, loaded.trained, router)
    replayed(trainer)
    trainer.train(resume_from_checkpoint=resume)
    weights = whole_weights(loaded.model)
    found: dict[str, Any] = {"change": {name: weights[name] - base[name] for name in base}, "bytes": RANKS.bytes}
    if config.trainer.get("algorithm") == "ppo":
        found["head"] = torch.cat([value.detach().flatten() for value in trainer.value_head.parameters()])
    if router is not None:
        targets = router.quarantine.targets
        found["parts"] = {target.name: target.parts.clone() for target in targets}
        found["drift"] = max(inside(target, weights).item() for target in targets)
        found["shapes"] = {target.name: tuple(target.parts.shape) for target in targets}
    return found


def relative_change(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """‖found - expected‖ / ‖expected‖ over all tensors."""
    off = sum(float((found[name].double() - value.double()).square().sum()) for name, value in expected.items())
    return (off / sum(float(value.double().square().sum()) for value in expected.values())) ** 0.5


def inside(target: Any, weights: dict[str, Tensor]) -> Tensor:
    """‖BᵀW - R‖ / ‖W‖ of a target, from the whole weights, or ‖Bᵀ lora_B‖ / ‖lora_B‖ of its LoRA."""
    adapted = target.weight.up is not None
    weight = weights[f"{target.name}.lora_B.default.weight" if adapted else f"{target.name}.weight"]
    inside = target.pair.read.mT @ weight
    return (inside if adapted else inside - target.reference).norm() / weight.norm()
