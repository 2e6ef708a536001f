"""What every row of TRAINERS must do: train, route, attribute, stop and go on, deploy. A new algorithm is tested by its row."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from trl import GRPOTrainer, RLOOTrainer
from trl.trainer.utils import add_fused_lm_head

from routed_rl.artifacts import RunFolder
from routed_rl.envs import Scorer
from routed_rl.errors import CheckpointError, ConfigError
from routed_rl.pipeline.build import load_parts, make_router
from routed_rl.rollout.weights import PolicyWeights
from routed_rl.tracking import METRICS, MetricsFile
from routed_rl.training.completions import CompletionFiles
from routed_rl.training.generations import prompts_needed
from routed_rl.training.plan import make_plan
from routed_rl.training.ppo import PPOTrainer
from routed_rl.training.tasks import RewardFunction, TaskTable
from routed_rl.training.trainers import TRAINERS
from routed_rl.training.value import VALUE_HEAD
from tests import pipeline
from tests.algorithms import config_of, make_trainer
from tests.builders import relative
from tests.clamped import clamped_model
from tests.parts import own_config
from tests.tiers import tiered

PLAIN = {"grpo": GRPOTrainer, "rloo": RLOOTrainer, "ppo": PPOTrainer}
each = pytest.mark.parametrize("name", TRAINERS)
INNER = {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 2, "num_iterations": 2, "save_steps": 1}
"""Two micro-batches a step, two steps on the same completions."""


@pytest.fixture(scope="module")
def trained(parts, tmp_path_factory):
    """{algorithm: a finished run of two steps}."""
    folder = tmp_path_factory.mktemp("runs")
    return {name: pipeline.train(config_of(parts, folder / name, name, max_steps=2), []) for name in TRAINERS}


def test_every_algorithm_has_a_plain_class_to_be_compared_with_and_a_config():
    assert PLAIN.keys() == TRAINERS.keys()
    for name, row in TRAINERS.items():
        assert issubclass(row.trainer, PLAIN[name])


@each
def test_two_steps_are_two_rows_of_declared_metrics_with_an_exact_ledger(trained, name):
    rows = [row for row in MetricsFile(trained[name] / "metrics.jsonl").rows() if "quarantine/norm" in row]
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        assert row["routing/drift"] < 2e-7 and row["quarantine/norm"] > 1e-3  # float32 rounding
        pushes = [value for key, value in row.items() if key.endswith("/push")]
        assert len(pushes) == 2 and math.isclose(sum(pushes), row["quarantine/growth"], rel_tol=1e-4, abs_tol=1e-6)
        assert {key.split("/")[0] for key in row} - {"step", "time"} <= {key.split("/")[0] for key in METRICS}
    summary = json.loads((trained[name] / "summary.json").read_text())
    assert summary["models"].keys() == {"base", "policy", "deployed"} and summary["attribution"].keys() == {"a", "b"}


@each
def test_parts_sum_to_the_quarantine_and_no_head_is_deployed(trained, parts, name):
    folder = RunFolder(trained[name]).require_checkpoint()
    stored = load_file(folder / "quarantine.safetensors")
    targets = [key.removesuffix(".parts") for key in stored if key.endswith(".parts")]
    assert targets and all(torch.equal(stored[f"{target}.parts"].sum(0), stored[f"{target}.coefficients"]) for target in targets)
    base = load_file(parts / "model" / "model.safetensors").keys()
    assert (folder / VALUE_HEAD).exists() == (name == "ppo")
    assert all(load_file(place / "model.safetensors").keys() == base for place in (folder, trained[name] / "deployed"))
    assert not (trained[name] / "deployed" / VALUE_HEAD).exists()


@each
def test_no_head_is_pushed_to_an_engine(parts, tmp_path, name):
    trainer = make_trainer(config_of(parts, tmp_path, name), tmp_path)
    pushed = {key for key, _ in PolicyWeights(trainer.model, trainer.router.quarantine.targets).policy()}
    assert pushed and not any("value" in key.replace("v_proj", "") for key in pushed)
    assert pushed <= set(load_file(parts / "model" / "model.safetensors")) | {"lm_head.weight"}


@pytest.mark.parametrize(("name", "beta"), tiered(
    [(name, beta) for name in TRAINERS for beta in (0.0, 0.3)], quick=[("grpo", 0.3)]))
def test_mode_none_is_the_plain_class_bit_for_bit(parts, tmp_path, name, beta):
    """With `beta` TRL loads its reference by itself, so a reference of ours that is another model shows."""
    config = config_of(parts, tmp_path, name, {"mode": "none"}, max_steps=3, save_steps=9, beta=beta, num_iterations=2,
                       lean=False)
    ours = make_trainer(config, tmp_path / "ours", "none")
    ours.train()
    loaded = load_parts(config)
    make_router(loaded, None)
    arguments = make_plan(config, RunFolder(tmp_path / "plain")).arguments
    table = TaskTable(loaded.trained, config.seed)
    reward = RewardFunction(table, Scorer({entry.name: entry for entry in loaded.trained}, 0.0), 8,
                            CompletionFiles(None))
    plain = PLAIN[name](loaded.model, reward, args=arguments, train_dataset=table.dataset(prompts_needed(arguments)),
                        processing_class=loaded.tokenizer)
    plain.train()
    theirs, base = loaded.model.state_dict(), load_parts(config).model.state_dict()
    assert all(torch.equal(ours.model.state_dict()[key], value) for key, value in theirs.items())
    assert not all(torch.equal(base[key], value) for key, value in theirs.items())
    if name == "ppo":  # No step has a gradient of an earlier one in it.
        assert ours.value_head.weight.grad is None and ours.value_head.weight.any()


@pytest.mark.slow
@each
def test_going_on_in_the_middle_of_inner_epochs_is_not_stopping(parts, tmp_path, name):
    whole = pipeline.train(config_of(parts, tmp_path / "whole", name, **INNER, max_steps=4), [])
    run = pipeline.train(config_of(parts, tmp_path / "run", name, **INNER, max_steps=3), [])
    pipeline.resume(str(run), ["trainer.max_steps=4"], lambda _: config_of(parts, run, name, **INNER, max_steps=4))
    ours, theirs = RunFolder(run).require_checkpoint(), RunFolder(whole).require_checkpoint()
    assert ours.name == theirs.name == "step-4"
    for file in sorted(path.name for path in theirs.glob("*.safetensors")):
        a, b = load_file(ours / file), load_file(theirs / file)
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a), file
    if name == "ppo":  # Its optimizer's moments too.
        assert torch.equal(*(torch.cat([value.flatten() for value in tensors(torch.load(folder / VALUE_HEAD, weights_only=True))])
                             for folder in (ours, theirs)))


def tensors(stored: Any) -> list[torch.Tensor]:
    """All in nested dicts, in their order."""
    if isinstance(stored, dict):
        return [tensor for value in stored.values() for tensor in tensors(value)]
    return [stored] if isinstance(stored, torch.Tensor) else []


@pytest.mark.parametrize(("name", "settings"), [*((name, {}) for name in TRAINERS), ("ppo", {"value_detach": False})])
def test_a_ledger_is_the_gradient_of_the_clamped_loss_masked_to_its_environment(parts, tmp_path, name, settings):
    trainer = make_trainer(config_of(parts, tmp_path, name, **settings), tmp_path)
    inputs = batch_of(trainer)
    targets = trainer.router.quarantine.targets
    for target in targets:
        torch.nn.init.normal_(target.coefficients, std=0.1)
    if name == "ppo":
        torch.nn.init.normal_(trainer.value_head.weight)
    # The gradient of this must not be in the ledger.
    trainer._compute_loss(trainer.model, inputs).backward()
    ledgers = {target.name: target.tape.ledger.clone() for target in targets}
    for e in range(2):
        plain, leaves = clamped_model(trainer.model, targets, contained=True)
        add_fused_lm_head(plain, temperature=1.0, outputs=("log_probs", "entropy"))
        trainer._compute_loss(plain, only(inputs, e)).backward()
        for target in targets:
            assert ledgers[target.name][e].norm() > 1e-5
            assert relative(ledgers[target.name][e], leaves[target.name].grad) < 1e-4  # float32, sums in another order


@pytest.mark.slow
def test_the_values_loss_reaches_the_ledger_only_where_it_trains_the_stream(parts, tmp_path):
    found = []
    for settings in ({}, {"value_detach": False}, {"value_detach": False, "value_coefficient": 0.0}):
        trainer = make_trainer(config_of(parts, tmp_path, "ppo", **settings), tmp_path)
        torch.manual_seed(0)
        inputs = batch_of(trainer)
        torch.nn.init.normal_(trainer.value_head.weight)
        trainer._compute_loss(trainer.model, inputs).backward()
        found.append(trainer.router.quarantine.targets[0].tape.ledger.clone())
    assert torch.equal(found[0], found[2]) and relative(found[1], found[0]) > 1e-2


def batch_of(trainer: Any) -> dict[str, Any]:
    """Sixteen rows of both environments."""
    return trainer._generate_and_score_completions([trainer.train_dataset[row] for row in range(2) for _ in range(8)])


def only(inputs: dict[str, Any], environment: int) -> dict[str, Any]:
    """The same rows and denominators, every term of the loss masked to one environment's rows."""
    rows = (inputs["environment_ids"] == environment).float()
    masks = {"advantages": rows.view(-1, *[1] * (inputs["advantages"].dim() - 1)), "value_mask": rows.unsqueeze(1)}
    return inputs | {key: inputs[key] * mask for key, mask in masks.items() if key in inputs}


@pytest.mark.parametrize(("trainer", "message"), [
    ({"algorithm": "dpo"}, "trainer.algorithm=dpo is not known; choose from grpo, rloo, ppo"),
    ({"gamma": 0.9}, "trainer.gamma is a setting of ppo, and trainer.algorithm is grpo"),
    ({"algorithm": "rloo", "loss_type": "dapo"}, "a setting of grpo and ppo, and trainer.algorithm is rloo"),
    ({"algorithm": "ppo", "gama": 0.9}, "did you mean trainer.gamma"),
    ({"algoritm": "ppo"}, "did you mean trainer.algorithm"),
    ({"algorithm": "ppo", "loss_type": "luspo"}, "loss_type=luspo.*one advantage for each token; choose from grpo"),
    ({"algorithm": "ppo", "loss_type": "vespo"}, "loss_type=vespo"),
    ({"algorithm": "ppo", "importance_sampling_level": "sequence"}, "leave it at token"),
    ({"algorithm": "ppo", "scale_rewards": "none"}, "whiten_advantages"),
    ({"algorithm": "ppo", "gae_lambda": 1.5}, "gae_lambda must be from 0 to 1, got 1.5"),
    ({"algorithm": "ppo", "value_detach": 3}, "trainer.value_detach must be bool")])
def test_settings_that_do_not_fit_the_algorithm_are_refused_in_one_line(parts, tmp_path, trainer, message):
    config = own_config(parts, tmp_path / "run", trainer=trainer)
    with pytest.raises(ConfigError, match=message) as caught:
        make_plan(config, RunFolder(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_run_keeps_its_algorithm(trained, parts):
    for name, other in (("grpo", "ppo"), ("ppo", "grpo")):
        with pytest.raises((ConfigError, CheckpointError), match=f"cannot change trainer.algorithm: {name} -> {other}"):
            pipeline.resume(str(trained[name]), ["x"], lambda _, name=name, other=other: config_of(
                parts, trained[name], other, max_steps=3))
