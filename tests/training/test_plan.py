"""From the command line to the trainer each setting is checked once, and each model's writers are found once."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from trl import GRPOConfig

import routed_rl.cli.compose as composing
from routed_rl.cli import main
from routed_rl.errors import RolloutError
from routed_rl.model.targets import find_writers
from routed_rl.rollout import check_engine
from routed_rl.training.backends import check_launch
from routed_rl.training.build import build_trainer
from routed_rl.training.checks import check_needs, check_trainer
from routed_rl.training.plan import make_plan, training_arguments
from routed_rl.training.trials import try_out
from tests.parts import typed, write_parts

CHECKS = (check_engine, check_launch, check_trainer, check_needs, training_arguments, make_plan, try_out, find_writers)


def test_settings_are_checked_and_writers_found_once_before_the_trainer_is_there(tmp_path, monkeypatch, capsys):
    counts: Counter[str] = Counter()
    made: list[Any] = []

    def replace(function: Callable[..., Any], by: Callable[..., Any]) -> None:
        for name, module in list(sys.modules.items()):
            if name.startswith("routed_rl") and getattr(module, function.__name__, None) is function:
                monkeypatch.setattr(module, function.__name__, by)

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return function(*args, **kwargs)
        return call

    def build(*args: Any, **kwargs: Any) -> Any:
        made.append(build_trainer(*args, **kwargs))
        raise RolloutError("far enough")

    monkeypatch.setattr(composing, "from_mapping", counted("from_mapping", composing.from_mapping))
    monkeypatch.setattr(GRPOConfig, "__post_init__", counted("GRPOConfig", GRPOConfig.__post_init__))
    for check in CHECKS:
        replace(check, counted(check.__name__, check))
    replace(build_trainer, build)
    out = tmp_path / "run"
    assert main(["train", *typed(write_parts(tmp_path), out, "evaluation.samples=0", "trainer.max_steps=1")]) == 2
    assert "far enough" in capsys.readouterr().err
    assert counts == dict.fromkeys(["from_mapping", "GRPOConfig", *(check.__name__ for check in CHECKS)], 1)
    assert made[0].evaluator is not None and made[0].metrics_file.listener is not None


def test_a_plan_is_frozen_and_a_trainer_leaves_its_arguments_alone(tmp_path):
    from dataclasses import FrozenInstanceError

    from tests.algorithms import config_of, make_trainer

    parts = write_parts(tmp_path)
    trainer = make_trainer(config_of(parts, tmp_path, "grpo", beta=0.1), tmp_path)
    assert trainer.beta == trainer.args.beta == 0.1 and trainer.ref_model is not None
    plan: Any = make_plan(config_of(parts, tmp_path, "grpo"), trainer.run)
    with pytest.raises(FrozenInstanceError):
        plan.arguments = None
