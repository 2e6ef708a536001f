"""Configs and trainers of an algorithm, on a user's own parts. Not a test itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from routed_rl.artifacts import RunFolder
from routed_rl.pipeline.build import load_parts, make_router, make_subspace
from routed_rl.training.build import build_trainer
from routed_rl.training.plan import make_plan
from tests.parts import own_config


def config_of(parts: Path, out: Path, name: str, routing: dict[str, Any] | None = None, adapter: dict[str, Any] | None = None,
              **trainer: Any) -> Any:
    model = {"path": str(parts / "model"), "adapter": adapter or {}}
    return own_config(parts, out, trainer={"algorithm": name} | trainer, routing=routing or {}, evaluation={"samples": 8},
                      model=model)


def make_trainer(config: Any, folder: Path, mode: str = "route") -> Any:
    loaded = load_parts(config)
    router = make_router(loaded, make_subspace(loaded) if mode != "none" else None)
    trainer = build_trainer(make_plan(config, RunFolder(folder)), loaded.learner, loaded.tokenizer, loaded.trained, router)
    loaded.model.train()
    trainer.current_gradient_accumulation_steps = 1
    return trainer
