"""Every field of the trainers' arguments is decided: what may be set, to what, and what a resume may change."""

from __future__ import annotations

import dataclasses
import math

import pytest

from routed_rl.artifacts import RunFolder
from routed_rl.config import Config
from routed_rl.errors import ConfigError
from routed_rl.pipeline.build import load_parts
from routed_rl.pipeline.changes import refuse_changes
from routed_rl.training.checks import RULES, check_trainer, keeps
from routed_rl.training.fields import ELSEWHERE, FIXED, FREE, GONE, NEEDS, STAYS, VALUES
from routed_rl.training.plan import make_plan
from routed_rl.training.trainers import TRAINERS
from routed_rl.training.trials import try_out
from tests.parts import own_config

FIELDS = {field.name: row.arguments for row in TRAINERS.values() for field in dataclasses.fields(row.arguments)}
SETTABLE = " ".join([*VALUES.values(), FREE]).split()


@pytest.fixture(scope="module")
def loaded(parts):
    return load_parts(own_config(parts, "unused"))


def test_every_field_of_the_installed_version_is_decided_once():
    decided = [*" ".join([*ELSEWHERE.values(), *STAYS.values()]).split(), *SETTABLE]
    assert sorted(decided) == sorted(FIELDS)
    assert set(FIXED.split()) <= set(SETTABLE) and {name for names, _, _ in NEEDS for name in names.split()} <= set(SETTABLE)
    assert not GONE.keys() & FIELDS.keys()
    assert all(condition.removeprefix("trainer.") in FIELDS or condition in ("rollout.engine", "launch.strategy")
               for _, condition, _ in NEEDS)


def test_every_default_is_allowed_by_its_rule():
    for rule, names in VALUES.items():
        for name in names.split():
            for row in TRAINERS.values():
                default = {field.name: field.default for field in dataclasses.fields(row.arguments)}.get(name)
                assert default is None or default == -1 or default == "auto" or keeps(default, rule), name
        assert rule in RULES or " or " in rule


def test_values_that_no_field_takes_are_refused_in_one_line():
    for name in SETTABLE:
        algorithm = next(each for each, row in TRAINERS.items() if row.arguments is FIELDS[name])
        text = name in FREE.split() and "str" in str(FIELDS[name].__dataclass_fields__[name].type)
        for value in (math.nan, math.inf, -math.inf, -3, 10**400, [object()], *([] if text else ["nonsense"])):
            if (name, value) == ("entropy_coef", -3):
                continue  # it may pull either way
            with pytest.raises(ConfigError) as caught:
                check_trainer({"algorithm": algorithm, name: value})
            assert "\n" not in str(caught.value) and f"trainer.{name}" in str(caught.value)


CASES = {
    "eval_strategy": ("steps", "set evaluation.every=N"), "num_train_epochs": (1, "set trainer.max_steps=N"),
    "reward_weights": ([1.0], "each environment pays one reward"), "save_only_model": (True, "all that a resume needs"),
    "ignore_data_skip": (True, "train on the same tasks again"), "use_transformers_continuous_batching": (True, "leave it out"),
    "max_prompt_length": (9, "prompts are not cut"), "max_stepz": (9, "did you mean trainer.max_steps"),
    "nothing_like_it": (1, "is no field of TRL"), "_VALID_DICT_FIELDS": (1, "is no field"),
    "temperature": (0, "must be above 0"), "top_p": (0, "above 0 and at most 1"), "min_p": (2, "from 0 to 1"),
    "max_grad_norm": (-1, "at least 0"), "save_total_limit": (0, "at least 1"), "loss_type": ("nonsense", "dapo"),
    "max_completion_length": (None, "must be int"), "logging_steps": (0, "or a share"), "save_steps": (2.5, "or a share"),
    "lr_scheduler_kwargs": ("abc", "a mapping"), "log_level": ("loud", "warning"), "max_steps": (0, "at least 1"),
    "warmup_steps": (3, "does nothing with trainer.lr_scheduler_type=constant"), "vespo_k_pos": (3.0, "does nothing with"),
    "vllm_importance_sampling_clip_max": (2.0, "does nothing with rollout.engine=transformers"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_would_end_late_or_be_ignored_is_refused_by_name(parts, tmp_path, name):
    value, message = CASES[name]
    with pytest.raises(ConfigError, match=message) as caught:
        make_plan(own_config(parts, tmp_path / "run", trainer={name: value}), RunFolder(tmp_path))
    assert f"trainer.{name}" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("bounds", [("entropy_coef_min", "entropy_coef_max"),
                                    ("vllm_importance_sampling_clip_min", "vllm_importance_sampling_clip_max")])
def test_bounds_that_leave_nothing_between_them_are_refused(bounds):
    low, high = bounds
    for trainer in ({low: 9.5}, {low: 3.0, high: 2.0}):
        with pytest.raises(ConfigError, match=rf"trainer.{high}=\S+ is below trainer.{low}="):
            check_trainer(trainer)
    check_trainer({low: 2.0, high: 2.0})


def test_what_the_arguments_own_class_refuses_is_said_of_the_field_that_it_names(parts, tmp_path):
    trainer = {"algorithm": "ppo", "off_policy_mask_threshold": 0.5}
    with pytest.raises(ConfigError, match=r"^trainer.off_policy_mask_threshold=0.5: .* leave it at null$"):
        make_plan(own_config(parts, tmp_path / "run", trainer=trainer), RunFolder(tmp_path))


TRIALS = {
    "a schedule that lacks a setting": {"lr_scheduler_type": "warmup_stable_decay"},
    "a setting that no schedule has": {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"nonsense": 1}},
    "an optimizer whose package is missing": {"optim": "lomo"},
    "a setting that the optimizer does not read": {"optim": "sgd", "adam_beta1": 0.5},
    "arguments that the optimizer does not read": {"optim_args": "a=b"},
    "a setting of the generation that is none": {"generation_kwargs": {"nonsense": 1}},
    "a setting of the generation that is set elsewhere": {"generation_kwargs": {"temperature": 0.5}},
    "a generation that gives more than tokens": {"generation_kwargs": {"return_dict_in_generate": True}},
    "a cache that is none": {"cache_implementation": "nonsense"},
    "a tracker that is none": {"report_to": "nonsense"},
    "checkpointing that is none": {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"nonsense": 1}},
    "balance of a mixture that is none": {"router_aux_loss_coef": 0.1},
}


@pytest.mark.parametrize("trial", TRIALS)
def test_what_only_a_library_or_the_model_refuses_is_tried_before_anything_is_done(parts, loaded, tmp_path, trial):
    with pytest.raises(ConfigError, match=f"trainer.{list(TRIALS[trial])[-1]}") as caught:
        try_out(make_plan(own_config(parts, tmp_path / "run", trainer=TRIALS[trial]), RunFolder(tmp_path)), loaded.model,
                loaded.tokenizer)
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_settings_that_work_are_let_through(parts, loaded, tmp_path):
    for trainer in ({}, {"lr_scheduler_type": "cosine", "warmup_steps": 0.1}, {"optim": "rmsprop"}, {"optim": "adafactor"},
                    {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 2}},
                    {"generation_kwargs": {"no_repeat_ngram_size": 2}}, {"algorithm": "ppo"}, {"algorithm": "rloo"}):
        try_out(make_plan(own_config(parts, tmp_path, trainer=trainer), RunFolder(tmp_path)), loaded.model, loaded.tokenizer)


@pytest.mark.parametrize(("was", "now", "name"), [
    ({}, {"num_generations": 4}, "trainer.num_generations: 8 -> 4"), ({}, {"num_iterations": 2}, "num_iterations: 1 -> 2"),
    ({}, {"generation_batch_size": 64}, "made at a time"), ({}, {"steps_per_generation": 2}, "made at a time"),
    ({}, {"per_device_train_batch_size": 16}, "of a step"), ({}, {"adam_beta1": 0.5}, "trainer.adam_beta1"),
    ({}, {"optim": "sgd"}, "trainer.optim"), ({"algorithm": "ppo"}, {"algorithm": "grpo"}, "trainer.algorithm: ppo -> grpo")])
def test_a_resume_refuses_what_its_checkpoint_depends_on(parts, tmp_path, was, now, name):
    with pytest.raises(ConfigError, match=f"resume cannot change .*{name}"):
        refuse_changes(own_config(parts, tmp_path, trainer=was), own_config(parts, tmp_path, trainer=now), (), "resume")


def test_a_resume_may_cut_a_step_otherwise_and_change_the_rest(parts, tmp_path):
    for now in ({"per_device_train_batch_size": 16, "gradient_accumulation_steps": 2}, {"learning_rate": 1e-5, "max_steps": 9}):
        refuse_changes(own_config(parts, tmp_path), own_config(parts, tmp_path, trainer=now), (), "resume")


@pytest.mark.parametrize("seed", [-1, 2**31, 1e99, 0.5])
def test_a_seed_that_no_generator_takes_is_refused(seed):
    with pytest.raises(ConfigError, match="seed must be a whole number from 0"):
        Config(seed=seed)
