"""The library: TRL's own trajectory where nothing is routed, the commands' where something is, and what a script reads."""

from __future__ import annotations

import copy
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainerCallback
from trl import GRPOTrainer

import routed_rl
from routed_rl import MonitorConfig, RoutedRLError, RoutingConfig, RuleConfig
from routed_rl.artifacts import LOCK, RunFolder, alone_in, broken_seal
from routed_rl.envs import Score
from routed_rl.pipeline.build import load_parts
from routed_rl.tracking import MetricsFile
from routed_rl.training.completions import CompletionFiles
from routed_rl.training.lean.passes import PASS_COST
from routed_rl.training.library.folder import check_place
from routed_rl.training.library.labelled import LabelledRows
from routed_rl.training.plan import make_plan
from routed_rl.training.resuming import take_schedule, use_rates
from tests.algorithms import config_of, make_trainer
from tests.library import PLAIN, arguments, load, right, rows, short, subspace_of, trainer


def test_the_package_names_its_api_and_imports_nothing_heavy_for_it():
    code = "import sys, routed_rl; assert not {'torch', 'trl', 'transformers'} & set(sys.modules); print(*routed_rl.__all__)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert said == sorted(said) and all(getattr(routed_rl, name).__doc__ for name in said)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = routed_rl.nothing  # pyright: ignore[reportAttributeAccessIssue]


def test_mode_none_is_trl_bit_for_bit(parts, tmp_path):
    settings: dict[str, Any] = {"beta": 0.3, "num_iterations": 2, "reward_weights": [1.0, 0.5], "scale_rewards": "none"}
    ours = trainer(parts, tmp_path, functions=[right, short], args=arguments(tmp_path / "ours", **settings), routing=PLAIN,
                   subspace=None, lean=False)
    ours.train()
    model, tokenizer = load(parts)
    plain = GRPOTrainer(model, [right, short], arguments(tmp_path / "plain", **settings), rows(), processing_class=tokenizer)
    plain.train()
    before, theirs = load(parts)[0].state_dict(), model.state_dict()
    (tmp_path / "ours" / "quarantine.safetensors").write_bytes(b"another run's, which would pass for this model's")
    ours.save_model()
    assert (tmp_path / "ours" / "model.safetensors").exists() and not (tmp_path / "ours" / "quarantine.safetensors").exists()
    assert all(value.equal(ours.model.state_dict()[key]) for key, value in theirs.items())
    assert any(not value.equal(before[key]) for key, value in theirs.items()) and ours.quarantine is None
    logged = [{key: value for key, value in row.items() if "environment/" not in key and "time" not in key and "/s" not in key}
              for row in (ours.state.log_history[0], plain.state.log_history[0])]
    assert logged[0].items() >= {key: value for key, value in logged[1].items() if key != "step_time"}.items()


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [{}, {"kind": "lora", "r": 4, "alpha": 8}])
def test_a_dataset_trains_as_the_same_tasks_do_by_the_command_to_the_bit(parts, tmp_path, adapter):
    routing = {"mode": "route", "practice": {"environments": "all"}, "quarantine": {"pace": "fast"}}
    config = config_of(parts, tmp_path / "run", "grpo", routing, adapter, max_steps=3)
    command = make_trainer(config, tmp_path / "run")
    command.train()
    table = command.reward.table
    tasks = [table.task(index) for index in range(len(command.train_dataset))]
    data = rows(len(tasks), prompt=[task.prompt for _, task in tasks], environment=[table.names[e] for e, _ in tasks],
                answer=[task.data["answer"] for _, task in tasks])
    args = copy.copy(make_plan(config, RunFolder(tmp_path / "run")).arguments)
    args.output_dir = str(tmp_path / "library")
    loaded, subspace = load_parts(config_of(parts, tmp_path, "grpo")), subspace_of(parts)
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear") if adapter else None
    ours = trainer(parts, tmp_path, dataset=data, args=args, model=loaded.model, processing_class=loaded.tokenizer,
                   subspace=subspace, peft_config=lora)
    ours.train()
    assert all(value.equal(command.model.state_dict()[key]) for key, value in ours.model.state_dict().items())
    ours_C, theirs_C = ours.quarantine.state_dict(), command.router.quarantine.state_dict()
    assert all(value.equal(theirs_C[key]) for key, value in ours_C.items()) and ours.quarantine.norm() > 0
    areas = ("ledger", "quarantine", "completions", "practice")
    pairs = zip(ours.rows, MetricsFile(tmp_path / "run" / "metrics.jsonl").rows(), strict=True)
    assert [key for row, other in pairs for key in row if key.split("/")[0] in areas and row[key] != other[key]] == []


class Heard(TrainerCallback):
    """What a tracker is told."""

    def __init__(self) -> None:
        self.keys: set[str] = set()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.keys |= set(logs or {})


@pytest.fixture(scope="module")
def whole(parts, tmp_path_factory):
    """A trainer that was not stopped, over several rounds of its dataset, and what its tracker was told."""
    heard = Heard()
    args = arguments(tmp_path_factory.mktemp("whole") / "run", **ROUNDS)
    made = trainer(parts, Path("unused"), args=args, functions=[right, late], callbacks=[heard], eval_dataset=rows(4))
    made.train()
    return made, heard.keys


ROUNDS = {"max_steps": 6, "save_steps": 2, "eval_strategy": "steps", "eval_steps": 3}
"""Sixteen rows, four in a step: the second round of the dataset begins with step 5."""


async def late(completions: list[Any], **_: Any) -> list[float | None]:
    """Of no completion that is long; TRL waits for it beside the others."""
    return [None if len(said) > 12 else 0.25 for said in completions]


@pytest.mark.slow
def test_a_process_that_sees_several_gpus_trains_on_one(parts, tmp_path):
    args = arguments(tmp_path)
    args._n_gpu = 2  # as transformers sets it on such a machine; TRL refuses it
    made = trainer(parts, tmp_path, args=args)
    assert made.args.n_gpu == 1 and made.args.train_batch_size == args.per_device_train_batch_size


def test_metrics_by_environment_reach_trackers_and_rows_and_say_who_did_it(whole):
    made, keys = whole
    wanted = {"practice/a/reward", "practice/b/paid_right", "ledger/a/share", "completions/b/evidence", "quarantine/norm"}
    assert keys >= wanted | {"eval_environment/a/reward", "eval_environment/b/paid_late", "rewards/late/mean"}
    assert [row["step"] for row in made.rows] == [1, 2, 3, 4, 5, 6] and {key for row in made.rows for key in row} >= wanted
    assert any(key.startswith("environment/a/") for row in made.rows for key in row)
    assert set(made.blame().evidence) == {"a", "b"} and made.halted == []


def test_what_is_saved_is_the_deployed_model_with_its_quarantine(whole, tmp_path):
    made, _ = whole
    made.save_model(str(tmp_path / "saved"))
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    ids, model = torch.arange(3, 9)[None], made.model.eval()
    with torch.no_grad():
        policy = model(ids).logits
        with made.quarantine.ablated():
            deployed = model(ids).logits
        assert stock(ids).logits.equal(deployed) and not deployed.equal(policy)
    stored = load_file(tmp_path / "saved" / "quarantine.safetensors")
    assert all(value.equal(stored[key]) for key, value in made.quarantine.state_dict().items())


def test_the_base_model_is_not_saved_over(parts, whole):
    made, _ = whole
    before = (parts / "model" / "model.safetensors").read_bytes()
    with pytest.raises(RoutedRLError, match=r"save_model\('.*/model'\) would overwrite the model from which the training began"):
        made.save_model(str(parts / "model"))
    assert (parts / "model" / "model.safetensors").read_bytes() == before


def test_no_model_is_saved_into_a_sealed_folder_or_beside_an_adapter_that_would_be_loaded_instead(whole, tmp_path):
    made, _ = whole
    checkpoint = RunFolder(made.args.output_dir).checkpoint(6)
    with pytest.raises(RoutedRLError, match=r"step-6'\) would change a folder that is sealed, such as a checkpoint .*give an"):
        made.save_model(str(checkpoint))
    assert broken_seal(checkpoint) is None
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(RoutedRLError, match=r"whole model beside an adapter \(adapter_config.json\), .*; give another folder"):
        made.save_model(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["adapter_config.json"]
    check_place(tmp_path, adapted=True)


def test_one_process_trains_into_a_folder_at_a_time_and_one_after_another_may(whole, monkeypatch):
    """The first process of a launch holds the lock for all of them."""
    made, _ = whole
    out = Path(made.args.output_dir)
    with alone_in(out):
        with pytest.raises(RoutedRLError, match=r"run is being written by .*; wait until that has ended, or end it"):
            made.train(resume_from_checkpoint=True)
        monkeypatch.setattr("routed_rl.training.library.folder.RANKS", SimpleNamespace(rank=1))
        with made.folder.alone():
            pass
    monkeypatch.undo()
    held = list[bool]()
    monkeypatch.setattr(made.folder, "begin_from", lambda *_: held.append((out / LOCK).exists()) or made.folder.begin())
    with pytest.raises(RoutedRLError, match="holds a run already"):
        made.train(resume_from_checkpoint=True)
    assert held == [True] and not (out / LOCK).exists()


def test_gradients_that_a_script_computes_after_training_enter_no_ledger(whole):
    made, _ = whole
    made.model(torch.arange(3, 9)[None]).logits.sum().backward()  # one row, where a step had sixteen
    made.model.zero_grad()
    assert not any(target.tape.fired for target in made.quarantine.targets)


@pytest.mark.parametrize("returned", [1.0, ["1.0"], [1.0, 2.0], [[1.0, 2.0]]])
def test_what_is_no_reward_is_told_in_one_line_and_a_function_that_fails_by_itself(whole, monkeypatch, returned):
    made, _ = whole
    made.model.eval()
    monkeypatch.setattr(made, "reward_funcs", [lambda **_: returned, late])
    with pytest.raises(RoutedRLError, match="one of the reward functions right, late returned what TRL cannot take: .*; return"):
        made._calculate_rewards([{"environment": "a"}], ["add"], ["1"], [[1]])
    monkeypatch.setattr(made, "reward_funcs", [lambda **_: int("x"), late])
    with pytest.raises(ValueError, match="invalid literal for int"):
        made._calculate_rewards([{"environment": "a"}], ["add"], ["1"], [[1]])


def test_training_inside_a_block_that_restores_the_quarantine_is_refused(whole):
    made, _ = whole
    for block in (made.quarantine.ablated(), made.quarantine.scaled(0.5), made.quarantine.kept({"a": 1.0})):
        with block, pytest.raises(RoutedRLError, match="is called inside quarantine.ablated.*; leave that block first"):
            made.train(resume_from_checkpoint=True)
    assert not made.quarantine.held


def test_no_subspace_is_extracted_through_a_quarantine_that_has_learned(parts, whole):
    made, _ = whole
    prompts, tokenizer = parts / "prompts.jsonl", load(parts)[1]
    with pytest.raises(RoutedRLError, match="has a quarantine that has learned already, .*inside `with trainer.quarantine.ablat"):
        routed_rl.extract_subspace(made.model, tokenizer, prompts=prompts)
    with made.quarantine.ablated():
        routed_rl.extract_subspace(made.model, tokenizer, prompts=prompts, rank=2)


@pytest.mark.slow
def test_a_training_that_is_too_short_to_practise_says_so_first(parts, tmp_path, capsys):
    said = "practice: none in this run, whose completions are all made in its first 10 steps (routing.practice.probation)"
    for number, routing in enumerate((RoutingConfig(), PLAIN)):
        made = trainer(parts, tmp_path, args=arguments(tmp_path / str(number), max_steps=1), routing=routing)
        made.train()
        assert (said in capsys.readouterr().out.splitlines()) == (not number)
    trainer(parts, tmp_path, args=arguments(tmp_path / "none", max_steps=1), routing=RoutingConfig(), monitor=None).train()
    assert "practice: none without a monitor, which says who may practise" in capsys.readouterr().out
    assert made.labelled.counts(rows(6)) == {"a": 3, "b": 3}


@pytest.mark.slow
def test_a_schedule_that_notes_no_initial_rate_goes_on_too(parts, tmp_path):
    settings = {"eval_strategy": "steps", "eval_steps": 1, "lr_scheduler_type": "reduce_lr_on_plateau",
                "metric_for_best_model": "reward"}
    for last in (2, 4):
        args = arguments(tmp_path / "run", max_steps=last, **settings)
        made = trainer(parts, tmp_path, args=args, eval_dataset=rows(4))
        made.train(resume_from_checkpoint=last == 4)
    assert [row["step"] for row in made.rows] == [1, 2, 3, 4] and made.optimizer.param_groups[0]["lr"] == 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["epoch", "no"])
def test_each_step_has_one_row_and_is_judged_once_however_often_trl_logs(parts, tmp_path, strategy):
    made = trainer(parts, tmp_path, args=arguments(tmp_path / "run", logging_strategy=strategy, max_steps=5))
    judged = list[int]()
    seen = made.watch.see
    made.watch.see = lambda row, control: judged.append(row["step"]) or seen(row, control)
    made.train()
    assert [row["step"] for row in made.rows] == judged == [1, 2, 3, 4, 5]


def test_a_halt_is_saved_also_where_only_the_best_steps_are(whole, monkeypatch):
    made, _ = whole
    assert not made._determine_best_metric({"eval_loss": 1.0}, None)
    monkeypatch.setattr(made.watch, "halting", ["a verdict"])
    assert made._determine_best_metric({"eval_loss": 1.0}, None)


@pytest.mark.parametrize("step", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_going_on_from_a_checkpoint_is_not_stopping_to_the_bit(parts, whole, tmp_path, step):
    """Step 4 ends a round of the dataset, and the next one has another order."""
    made, _ = whole
    shutil.copytree(made.args.output_dir, tmp_path / "run")
    for later in range(step + 2, 7, 2):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / f"step-{later}")
    again = trainer(parts, tmp_path, args=arguments(tmp_path / "run", **ROUNDS), functions=[right, late], eval_dataset=rows(4))
    again.train(resume_from_checkpoint=True)
    assert all(value.equal(made.model.state_dict()[key]) for key, value in again.model.state_dict().items())
    assert all(value.equal(made.router.state_dict()[key]) for key, value in again.router.state_dict().items())
    assert [{key: value for key, value in row.items() if "time" not in key and "/s" not in key} for row in again.rows] == [
        {key: value for key, value in row.items() if "time" not in key and "/s" not in key} for row in made.rows]


class Breaks(TrainerCallback):
    """Ctrl-C in the third step, behind its backward pass."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 2:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_the_same_trainer_goes_on_after_an_interruption_as_if_nothing_had_happened(parts, whole, tmp_path):
    made, _ = whole
    breaks = Breaks()
    args = arguments(tmp_path / "run", **ROUNDS)
    again = trainer(parts, tmp_path, args=args, functions=[right, late], callbacks=[breaks], eval_dataset=rows(4))
    with pytest.raises(KeyboardInterrupt):
        again.train()
    again.remove_callback(breaks)
    again.train(resume_from_checkpoint=True)
    assert all(value.equal(made.model.state_dict()[key]) for key, value in again.model.state_dict().items())
    assert all(value.equal(made.router.state_dict()[key]) for key, value in again.router.state_dict().items())
    kept = [{key: value for key, value in row.items() if "time" not in key and "/s" not in key} for row in again.rows]
    assert kept == [{key: value for key, value in row.items() if "time" not in key and "/s" not in key} for row in made.rows]
    again.args.max_steps, again.args.learning_rate = 8, 0.5
    again.train(resume_from_checkpoint=True)
    assert again.optimizer.param_groups[0]["initial_lr"] == 0.5 and [row["step"] for row in again.rows] == [*range(1, 9)]


class Terminates(TrainerCallback):
    """SIGTERM, as a scheduler sends it, behind the backward pass of the third step."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
def test_sigterm_ends_a_step_with_a_checkpoint_from_which_a_run_goes_on_as_if_nothing_had_happened(parts, whole, tmp_path):
    """If the script asks for it in the words of transformers. Its own handler is back afterwards."""
    (made, _), before = whole, signal.getsignal(signal.SIGTERM)
    args = arguments(tmp_path / "run", **ROUNDS, enable_jit_checkpoint=True)
    given = {"args": args, "functions": [right, late], "eval_dataset": rows(4)}
    ended = trainer(parts, tmp_path, callbacks=[Terminates()], **given)
    ended.train()
    assert ended.folder.steps() == [2, 3] and ended.stopped == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before
    again = trainer(parts, tmp_path, **given)
    with pytest.raises(RoutedRLError, match="enable_jit_checkpoint=True waits for SIGTERM, which only the main thread"):
        ThreadPoolExecutor().submit(again.train, True).result()
    again.train(resume_from_checkpoint=True)
    assert all(value.equal(made.router.state_dict()[key]) for key, value in again.router.state_dict().items())
    assert all(value.equal(made.model.state_dict()[key]) for key, value in again.model.state_dict().items())
    assert not again.stopped


def test_a_model_that_checkpoints_its_activations_runs_a_micro_batch_in_one_pass(parts, tmp_path, monkeypatch):
    """Whoever asked for it: a recomputed pass would find the record of a later one."""
    monkeypatch.setitem(PASS_COST, "cpu", 0)
    made, everyone = trainer(parts, tmp_path), torch.arange(3)
    assert len(made._passes(everyone, torch.tensor([9, 5, 2]))) == 3
    made.model.gradient_checkpointing_enable()
    assert len(made._passes(everyone, torch.tensor([9, 5, 2]))) == 1


def test_a_schedule_of_any_kind_goes_on_from_its_file(tmp_path):
    def step() -> tuple[Any, Any]:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.8)
        return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)

    (optimizer, schedule), (other, again) = step(), step()
    for _ in range(3):
        optimizer.step()
        schedule.step()
    torch.save(schedule.state_dict(), tmp_path / "scheduler.pt")
    other.load_state_dict(optimizer.state_dict())
    take_schedule(again, tmp_path / "scheduler.pt")
    use_rates(other, again, [(0.8, 0.0)])
    for _ in range(2):
        assert other.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
        for each in (optimizer, schedule, other, again):
            each.step()
    assert other.param_groups[0]["lr"] == 0.2


def test_rows_without_an_environment_are_evaluated_without_metrics_of_one():
    made = LabelledRows(["a"], "environment", [right], 1, CompletionFiles(None, 0))
    entries: list[dict[str, Any]] = [{"environment": "a"}, {"environment": None}, {}]
    made.evaluated(entries, [Score(1.0), Score(2.0), None])
    assert made.take_evaluated() == {
        "environment/a/reward": 1.0, "environment/a/solve": 0.0, "environment/a/failures": 0}


@pytest.mark.slow
def test_each_of_several_datasets_is_evaluated_under_its_name_by_means_over_rows_and_not_over_batches(parts, tmp_path):
    def worth(completions: list[Any], worth: list[float], **_: Any) -> list[float]:
        return worth

    easy = rows(4, environment=["a", "a", "a", "b"], worth=[0.0, 0.0, 1.0, 0.0])  # two prompts in a batch
    hard = easy.map(lambda row: {"worth": row["worth"] - 1})
    made = trainer(parts, tmp_path, functions=worth, dataset=rows(worth=[0.0] * 16), routing=PLAIN, subspace=None,
                   eval_dataset={"easy": easy, "hard": hard})
    found = made.evaluate()
    assert found["eval_easy_environment/a/reward"] == pytest.approx(1 / 3)
    assert found["eval_hard_environment/a/reward"] == found["eval_environment/a/reward"] == pytest.approx(-2 / 3)
    assert made.evaluate(easy)["eval_environment/a/reward"] == pytest.approx(1 / 3)


def test_a_halt_stops_after_a_checkpoint_and_is_told_and_going_on_wants_new_evidence(parts, tmp_path):
    monitor = MonitorConfig(warmup=1, collapse=RuleConfig(limit=-1.0, action="halt"))
    args = arguments(tmp_path / "run", max_steps=4, save_steps=50)
    made = trainer(parts, tmp_path, args=args, monitor=monitor, routing=RoutingConfig(mode="observe"))
    made.train()
    assert [verdict.rule for verdict in made.halted] == ["collapse"] and made.state.global_step == 2
    again = trainer(parts, tmp_path, args=args, monitor=None, routing=RoutingConfig(mode="observe"))
    again.train(resume_from_checkpoint=True)
    assert again.halted == [] and again.state.global_step == 4
