"""What some of TRL's settings mean for a run of the library: which checkpoints stay, what a run that goes on takes over, and what
is said of settings that cannot work."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.optimization import Adafactor

from routed_rl import MonitorConfig, RoutingConfig, RuleConfig
from routed_rl.artifacts import broken_seal, read_json
from routed_rl.errors import ConfigError
from routed_rl.training.library.checks import check_arguments, check_monitor, check_rates
from tests.library import PLAIN, arguments, rows, trainer


@pytest.mark.slow
def test_the_best_checkpoint_stays_beside_the_newest_and_the_state_names_it(parts, subspace, tmp_path):
    """Each step is worse than the one before."""
    args = arguments(tmp_path / "run", save_steps=1, save_total_limit=1, eval_strategy="steps", eval_steps=1,
                     metric_for_best_model="reward")
    made = trainer(parts, tmp_path, args=args, eval_dataset=rows(4), subspace=subspace)
    made.evaluate = lambda **_: {"eval_reward": -made.state.global_step}
    made.train()
    best, newest = (made.folder.checkpoint(step) for step in (1, 3))
    assert made.folder.steps() == [1, 3] and made.state.best_model_checkpoint == str(best)
    for checkpoint in (best, newest):
        assert read_json(checkpoint / "trainer_state.json")["best_model_checkpoint"] == str(best)
        assert broken_seal(checkpoint) is None
    AutoModelForCausalLM.from_pretrained(made.state.best_model_checkpoint)


@pytest.mark.slow
def test_a_constant_entropy_bonus_is_not_the_adaptive_one_with_which_the_run_began(parts, subspace, tmp_path):
    made: Any = None
    for last, own in ((1, {"use_adaptive_entropy": True, "entropy_coef": 0.5}), (2, {"entropy_coef": 0.02})):
        args = arguments(tmp_path / "run", max_steps=last, save_steps=1, **own)
        made = trainer(parts, tmp_path, args=args, subspace=subspace)
        made.train(resume_from_checkpoint=last == 2)
    assert made.entropy_coef == 0.02


@pytest.mark.slow
def test_a_run_that_goes_on_with_larger_generations_makes_one_where_its_stored_one_ends(parts, subspace, tmp_path):
    """After one micro-batch of a generation, which has two now."""
    for last in (1, 3):
        args = arguments(tmp_path / "run", max_steps=last, save_steps=1, steps_per_generation=last // 3 + 1,
                         per_device_train_batch_size=8, gradient_accumulation_steps=1)
        made = trainer(parts, tmp_path, args=args, subspace=subspace)
        made.train(resume_from_checkpoint=last == 3)
    assert [row["step"] for row in made.rows] == [1, 2, 3]


@pytest.mark.slow
def test_of_a_stream_too_it_is_said_truly_who_practises(parts, subspace, tmp_path, capsys):
    """Its rows cannot be counted before they are read; the monitor trusts its environment all the same."""
    made = trainer(parts, tmp_path, dataset=rows().to_iterable_dataset(), environment_column=None, subspace=subspace,
                   args=arguments(tmp_path / "run", max_steps=1), routing=RoutingConfig())
    made.train()
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("practice: ")]
    assert len(said) == 1 and "are all made in its first 10 steps" in said[0]


@pytest.mark.slow
def test_rules_that_halt_and_that_nothing_feeds_are_named_before_the_first_step(parts, tmp_path, capsys):
    monitor = MonitorConfig(evidence=RuleConfig(limit=6.0, action="halt"), collapse=RuleConfig(limit=2.0, action="halt"),
                            warmup=0)
    trainer(parts, tmp_path, subspace=None, routing=PLAIN, monitor=monitor, args=arguments(tmp_path / "run", max_steps=1)).train()
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("monitor: ")]
    assert said == ["monitor: evidence will never halt: it has nothing to read with routing.mode=none; set routing.mode=route, "
                    "or let only collapse halt"]


def test_a_rule_on_true_scores_cannot_halt_where_reward_functions_report_none():
    check_monitor(MonitorConfig())
    with pytest.raises(ConfigError, match=r"monitor\.gap\.action=halt compares .* reward functions report none; .* another rule"):
        check_monitor(MonitorConfig(gap=RuleConfig(limit=1.0, action="halt")))


@pytest.mark.parametrize(("name", "said"), [
    ("fp16", "set args.bf16=true, which keeps float32 weights; leave it out"),
    ("load_best_model_at_end", r"trainer\.state\.best_model_checkpoint names the best one, which is kept; leave it out")])
def test_what_is_refused_is_told_in_the_words_of_a_script(tmp_path, name, said):
    args = arguments(tmp_path / "run")
    setattr(args, name, True)
    with pytest.raises(ConfigError, match=said):
        check_arguments(args)


def test_an_optimizer_without_a_learning_rate_is_refused():
    """By the rate of the weights the quarantine has its own pace."""
    made = Adafactor(torch.nn.Linear(2, 2).parameters())
    with pytest.raises(ConfigError, match="a Adafactor without a learning rate .*; give it one, such as Adafactor"):
        check_rates(made)
    check_rates(torch.optim.SGD(torch.nn.Linear(2, 2).parameters(), lr=0.1))
    check_rates(SimpleNamespace(param_groups=[{"lr": torch.tensor(0.1), "params": []}]))
