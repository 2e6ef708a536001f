"""PPO's value head: what it learns, how fast, and what a checkpoint knows of it."""

from __future__ import annotations

import math
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer

from routed_rl.artifacts import RunFolder
from routed_rl.errors import CheckpointError, ConfigError
from routed_rl.pipeline.build import load_parts
from routed_rl.tracking import MetricsFile
from routed_rl.training.plan import make_plan
from routed_rl.training.trials import check_optimizer
from routed_rl.training.value import VALUE_HEAD, ValueHead
from tests import pipeline
from tests.algorithms import config_of, make_trainer
from tests.builders import relative
from tests.parts import own_config
from tests.tiers import tiered


@pytest.fixture(scope="module")
def trained(parts, tmp_path_factory) -> Path:
    """A finished run of two steps."""
    return pipeline.train(config_of(parts, tmp_path_factory.mktemp("runs") / "run", "ppo", max_steps=2), [])


FORESEEN = '''
import random
from routed_rl.envs import Score, Task


class Given:
    """Pays by the prompt alone, whatever the model says."""

    def tasks(self, split, seed):
        draw = random.Random(f"{split}{seed}")
        while True:
            yield Task(f"add {draw.randrange(2)} =")

    def score(self, task, completion):
        return Score(reward=float(task.prompt == "add 1 ="))
'''


@pytest.mark.parametrize(("rate", "low", "high"), tiered([(0.03, 0.3, 1.0), (0.0, -1e-6, 1e-6)], slow=[(0.0, -1e-6, 1e-6)]))
def test_a_value_head_learns_what_prompts_pay_and_a_frozen_one_explains_nothing(parts, tmp_path, rate, low, high):
    (tmp_path / "given.py").write_text(FORESEEN)
    config = own_config(parts, tmp_path / "run", env={"a": {"path": f"{tmp_path}/given.py:Given", "isolate": False}},
                        trainer={"algorithm": "ppo", "max_steps": 16, "num_generations": 2, "value_learning_rate": rate},
                        evaluation={"samples": 0})
    rows = MetricsFile(pipeline.train(config, []) / "metrics.jsonl").rows()
    last = [row["train/value/explained_variance"] for row in rows if "train/value/explained_variance" in row][-4:]
    assert all(low <= value <= high for value in last), last


def test_a_completion_that_could_not_be_scored_has_no_advantage_under_ppo(parts, tmp_path):
    env = {"a": {"path": f"{parts}/environment.py:Add", "fails": 0.5, "returns": "nan"}}
    config = own_config(parts, tmp_path, env=env, trainer={"algorithm": "ppo"}, evaluation={"max_failures": 1.0})
    trainer = make_trainer(config, tmp_path)
    inputs = trainer._generate_and_score_completions([trainer.train_dataset[row] for row in range(4) for _ in range(8)])
    failed = torch.tensor(trainer.reward.failed)
    assert failed.any() and not failed.all()
    assert (inputs["advantages"][failed] == 0).all() and (inputs["value_mask"][failed] == 0).all()
    assert (inputs["advantages"][~failed] != 0).any()


def stored(run: Path) -> dict[str, Any]:
    """The value head of a run's last checkpoint, and its optimizer."""
    return torch.load(RunFolder(run).require_checkpoint() / VALUE_HEAD, weights_only=True)


def going_on(trained: Path, parts: Path, out: Path, **settings: Any) -> dict[str, Any]:
    """What a third step makes of the value head of a run of two."""
    shutil.copytree(trained, out)
    pipeline.resume(str(out), ["x"], lambda _: config_of(parts, out, "ppo", max_steps=3, **settings))
    return stored(out)


@pytest.mark.slow
def test_a_value_heads_rate_is_the_settings_after_a_resume_and_moves_with_the_models_schedule(trained, parts, tmp_path):
    before = stored(trained)
    frozen = going_on(trained, parts, tmp_path / "frozen", value_learning_rate=0.0)
    assert before["head"]["weight"].any() and torch.equal(frozen["head"]["weight"], before["head"]["weight"])
    faster = going_on(trained, parts, tmp_path / "faster", value_learning_rate=0.5)
    assert relative(faster["head"]["bias"], before["head"]["bias"]) > 1
    assert faster["optimizer"]["param_groups"][0]["lr"] == 0.5
    trainer = make_trainer(config_of(parts, tmp_path, "ppo", max_steps=2, lr_scheduler_type="linear"), tmp_path / "linear")
    trainer.train()
    half = trainer.args.value_learning_rate / 2  # in the second step of two
    assert math.isclose(trainer.value_head.optimizer.param_groups[0]["lr"], half)


def test_a_checkpoint_without_a_value_heads_optimizer_is_refused_in_one_line(trained, parts, tmp_path):
    """Of an older version, whose head stood in the model's optimizer."""
    trainer = make_trainer(config_of(parts, tmp_path, "ppo", max_steps=3), tmp_path / "run")
    checkpoint = shutil.copytree(RunFolder(trained).require_checkpoint(), tmp_path / "step-2")
    (checkpoint / VALUE_HEAD).unlink()
    with pytest.raises(CheckpointError, match=f"step-2 has no {VALUE_HEAD}.*manifest.json names, or start a new run") as caught:
        trainer.train(resume_from_checkpoint=str(checkpoint))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("optim", "package"), [
    ("lomo", "lomo"), ("galore_adamw", "galore"), ("schedule_free_adamw", "schedulefree")])
def test_an_optimizer_whose_package_is_missing_is_refused_before_anything_is_written(parts, tmp_path, optim, package):
    with pytest.raises(ConfigError, match=rf"trainer.optim={optim}: .*{package}.*set trainer.optim=adamw_torch"):
        pipeline.train(config_of(parts, tmp_path / "run", "ppo", optim=optim), [])
    assert not (tmp_path / "run").exists()


def test_an_optimizer_that_is_made_for_a_models_parameters_cannot_have_a_value_head(parts, tmp_path, monkeypatch):
    made = torch.optim.SGD, {"lr": 0.1, "optimizer_dict": {}}
    monkeypatch.setattr(Trainer, "get_optimizer_cls_and_kwargs", staticmethod(lambda *_: made))
    model = load_parts(config_of(parts, tmp_path, "ppo")).model
    for name in ("ppo", "grpo"):
        arguments = make_plan(config_of(parts, tmp_path, name), RunFolder(tmp_path)).arguments
        with pytest.raises(ConfigError, match="set trainer.optim=adamw_torch") if name == "ppo" else nullcontext():
            check_optimizer(arguments, model)


class WithoutSchedule(torch.optim.SGD):
    """Steps in train mode alone, as schedule-free optimizers do."""

    training = False

    def train(self) -> None:
        self.training = True

    def step(self, closure=None):
        assert self.training
        return super().step(closure)


def test_an_optimizer_with_a_train_mode_steps_the_head_in_it():
    head = ValueHead(4, torch.device("cpu"), WithoutSchedule, {"lr": 0.1})
    assert not any(parameter.any() for parameter in head.parameters())
    head.values(torch.ones(1, 3, 4), 2).sum().backward()
    head.step(0.1, 1.0)
    assert all(parameter.any() for parameter in head.parameters())


def test_a_resume_keeps_the_optimizer_whose_state_it_reads(trained, parts, tmp_path):
    config = config_of(parts, trained, "ppo", optim="sgd")
    before = (trained / "config.yaml").read_bytes()
    with pytest.raises(ConfigError, match=r"resume cannot change trainer.optim: \w+ -> sgd; start a new run"):
        pipeline.resume(str(trained), ["trainer.optim=sgd"], lambda _: config)
    assert (trained / "config.yaml").read_bytes() == before
