"""The trainer: TRL's own trajectory where routing is off, labels that stay with their rows, bad input that is refused."""

from __future__ import annotations

import json
import math

import pytest
import torch
from trl import GRPOTrainer

from routed_rl.artifacts import RunFolder
from routed_rl.envs import Scorer
from routed_rl.errors import ConfigError, TaskError
from routed_rl.pipeline.build import load_parts, make_router, make_subspace
from routed_rl.tracking import METRICS, MetricsFile
from routed_rl.training.build import build_trainer
from routed_rl.training.completions import CompletionFiles
from routed_rl.training.generations import prompts_needed
from routed_rl.training.plan import make_plan
from routed_rl.training.tasks import RewardFunction, TaskTable
from tests import pipeline
from tests.parts import own_config
from tests.tiers import tiered


def routed(config, run) -> dict[str, torch.Tensor]:
    loaded = load_parts(config)
    router = None if config.routing.mode == "none" else make_router(loaded, make_subspace(loaded))
    if router is None:
        make_router(loaded, None)
    trainer = build_trainer(make_plan(config, RunFolder(run)), loaded.model, loaded.tokenizer, loaded.trained, router)
    trainer.train()
    if router is not None:
        router.quarantine.remove()
    return {name: value.clone() for name, value in loaded.model.state_dict().items()}


def plain_trl(config, run) -> dict[str, torch.Tensor]:
    """TRL's own class, fed the same rows and rewards; nothing of the mixin."""
    loaded = load_parts(config)
    make_router(loaded, None)
    arguments = make_plan(config, RunFolder(run)).arguments
    table = TaskTable(loaded.trained, config.seed)
    scorer = Scorer({entry.name: entry for entry in loaded.trained}, 0.0)
    reward = RewardFunction(table, scorer, arguments.num_generations, CompletionFiles(None))
    trainer = GRPOTrainer(loaded.model, reward, args=arguments, train_dataset=table.dataset(prompts_needed(arguments)),
                          processing_class=loaded.tokenizer)
    trainer.train()
    return loaded.model.state_dict()


SETTINGS = {"max_steps": 4, "save_steps": 100, "weight_decay": 0.1, "lean": False}


def test_mode_none_is_trls_trajectory_bit_for_bit_and_route_is_not(parts, tmp_path):
    def config(mode):
        return own_config(parts, tmp_path / mode, trainer=SETTINGS, routing={"mode": mode})

    ours, theirs = routed(config("none"), tmp_path / "none"), plain_trl(config("none"), tmp_path / "trl")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    other = routed(config("route"), tmp_path / "route")
    assert not all(torch.equal(other[name], theirs[name]) for name in theirs)


@pytest.mark.slow
def test_every_step_is_one_line_of_metrics_however_seldom_trl_logs(parts, tmp_path):
    run = pipeline.train(own_config(parts, tmp_path / "run", trainer={"logging_steps": 4}), [])
    rows = MetricsFile(run / "metrics.jsonl").rows()
    assert [row["step"] for row in rows if "quarantine/norm" in row] == [1, 2, 3, 4, 5, 6]
    for row in rows:
        for name in row:
            assert name in ("step", "time/step_s") or name.split("/")[0] in {key.split("/")[0] for key in METRICS}, name


def test_pushes_sum_to_the_growth_of_the_quarantine(parts, tmp_path):
    run = pipeline.train(own_config(parts, tmp_path / "run"), [])
    rows = MetricsFile(run / "metrics.jsonl").rows()
    for row in rows:
        pushes = sum(value for name, value in row.items() if name.endswith("/push"))
        assert math.isclose(pushes, row["quarantine/growth"], rel_tol=1e-4, abs_tol=1e-6)
    summary = json.loads((run / "summary.json").read_text())
    whole = sum(entry["push"] for entry in summary["attribution"].values())
    assert math.isclose(whole, summary["routing"]["quarantine_norm"], rel_tol=1e-4)
    assert math.isclose(sum(entry["share"] for entry in summary["attribution"].values()), 1, rel_tol=1e-4)


def test_labels_stay_with_their_rows_through_trls_shuffle(parts, tmp_path):
    """The environment of a row decides its label: rows of `b` carry another prompt, so ids must match the prompts."""
    config = own_config(parts, tmp_path / "run", trainer={"max_steps": 2, "steps_per_generation": 2})
    loaded = load_parts(config)
    router = make_router(loaded, make_subspace(loaded))
    trainer = build_trainer(make_plan(config, RunFolder(tmp_path)), loaded.model, loaded.tokenizer, loaded.trained, router)
    table, seen = trainer.reward.table, []
    original = router.set_batch

    def check(ids, *others):
        seen.append(ids.tolist())
        original(ids, *others)

    router.set_batch = check
    compute = trainer._compute_loss

    def rows(model, inputs):
        prompts = loaded.tokenizer.batch_decode(inputs["prompt_ids"], skip_special_tokens=True)
        known = {(task.prompt, place) for place, task in map(table.task, range(len(table._tasks)))}
        assert all((prompt, int(e)) in known for prompt, e in zip(prompts, inputs["environment_ids"], strict=True))
        return compute(model, inputs)

    trainer._compute_loss = rows
    trainer.train()
    assert seen and all(set(ids) == {0, 1} for ids in seen)


@pytest.mark.parametrize("returns", tiered(["raises", "nan"], slow=["raises"]))
def test_a_failing_environment_is_counted_and_fatal_past_its_share(parts, tmp_path, returns):
    path = f"{parts}/environment.py:Add"
    env = {"a": {"path": path, "fails": 0.5, "returns": returns}}
    config = own_config(parts, tmp_path / "fatal", env=env, evaluation={"samples": 0})
    with pytest.raises(TaskError, match=r"environment a failed to score \d+ of its last \d+ completions \(limit 5%\)"):
        pipeline.train(config, [])
    config = own_config(parts, tmp_path / "counted", env=env, evaluation={"samples": 0, "max_failures": 0.9})
    run = pipeline.train(config, [])
    rows = MetricsFile(run / "metrics.jsonl").rows()
    assert sum(row["environment/a/failures"] for row in rows) > 0
    # Every real reward is at least .5, so a failure paid as 0 would show.
    assert all(row["environment/a/reward"] >= 0.5 for row in rows)
    assert all(row["train/rewards/environment/mean"] >= 0.4 for row in rows)


@pytest.mark.parametrize(("trainer", "message"), [
    ({"fp16": True}, "trainer.fp16.*bf16=true"), ({"lerning_rate": 1}, "did you mean trainer.learning_rate"),
    ({"peft_config": {}}, "model.adapter=lora"), ({"use_vllm": True}, "rollout=vllm_colocate"), ({"max_steps": 0}, "max_steps"),
    ({"output_dir": "x"}, "set out=FOLDER"), ({"num_generations": 7}, "trainer.num_generations=7 does not divide the 32 ")])
def test_trainer_settings_that_cannot_work_are_refused_in_one_line(parts, tmp_path, trainer, message):
    with pytest.raises(ConfigError, match=message) as caught:
        pipeline.train(own_config(parts, tmp_path / "run", trainer=trainer), [])
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_bf16_autocast_trains_with_float32_weights(parts, tmp_path):
    run = pipeline.train(own_config(parts, tmp_path / "run", trainer={"max_steps": 2, "bf16": True, "use_cpu": True}), [])
    rows = MetricsFile(run / "metrics.jsonl").rows()
    assert rows[-1]["quarantine/norm"] > 0 and rows[-1]["routing/drift"] < 1e-6


@pytest.mark.slow
def test_gradient_checkpointing_gives_the_same_run(parts, tmp_path):
    whole = routed(own_config(parts, tmp_path / "a", trainer=SETTINGS), tmp_path / "a")
    again = routed(own_config(parts, tmp_path / "b", trainer=SETTINGS | {"gradient_checkpointing": True}), tmp_path / "b")
    assert all(torch.allclose(whole[name], again[name], atol=1e-6) for name in whole)


@pytest.mark.slow
def test_environments_score_whole_completions_as_in_evaluation_whatever_the_tokenizer_says_of_answers(parts, tmp_path):
    """TRL would give them the content that the template finds, which is nothing here."""
    add = {"path": f"{parts}/environment.py:Add", "isolate": False, "chat": True}
    config = own_config(parts, tmp_path / "run", env={"a": add}, trainer={"max_steps": 1})
    loaded = load_parts(config)
    loaded.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    answer = {"defaults": {"role": "assistant"}, "start_anchor": "add", "fields": {"other": {
        "open": "=", "close_pattern": "never", "content": "text"}}}
    loaded.tokenizer.response_template = answer
    trainer = build_trainer(make_plan(config, RunFolder(tmp_path / "run")), loaded.model, loaded.tokenizer, loaded.trained,
                            make_router(loaded, make_subspace(loaded)))
    trainer.train()
    assert any(said.split() for _, said in trainer.reward.said) and loaded.tokenizer.response_template == answer
