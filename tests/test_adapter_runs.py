"""Whole runs that train a LoRA: stock PEFT reads what they leave, they go on bit for bit, and what cannot be is said at once."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from routed_rl.artifacts import RunFolder, sealed_folder
from routed_rl.audit import audit
from routed_rl.audit.change import Change, read_change
from routed_rl.audit.groups import by_kind, putting_back
from routed_rl.cli import main
from routed_rl.config import AuditConfig, Config
from routed_rl.envs import Scorer, load_environments
from routed_rl.errors import CheckpointError, ConfigError, ModelError, RolloutError
from routed_rl.evaluate import evaluate
from routed_rl.model.load import load_tokenizer
from routed_rl.pipeline.adapters import with_adapter
from routed_rl.pipeline.build import Parts, load_parts, make_router, take_checkpoint
from routed_rl.pipeline.engines import adapters_for, check_served
from routed_rl.pipeline.record import read_config, tell, write_config
from routed_rl.report.run_page import write_report
from routed_rl.subspace import Subspace
from routed_rl.tracking import METRICS, MetricsFile
from routed_rl.training.build import build_trainer
from routed_rl.training.completions import CompletionFiles
from routed_rl.training.generations import prompts_needed
from routed_rl.training.plan import make_plan
from routed_rl.training.tasks import RewardFunction, TaskTable
from tests import pipeline
from tests.builders import relative, tiny
from tests.cards import loaded_by_card
from tests.parts import own_config, typed, write_parts
from tests.tiers import tiered
from tests.training.test_conformance import PLAIN
from tests.training.test_resume import metrics

IDS = torch.tensor([[3, 6, 8, 9, 5, 12], [4, 6, 10, 7, 5, 18]])
LEARNING = {"learning_rate": 1e-2, "max_steps": 4}
LORA = {"kind": "lora", "r": 4, "alpha": 8}


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    return write_parts(tmp_path_factory.mktemp("parts"))


def lora_config(parts: Path, out: Path | str, mode: str = "route", dtype: str = "float32", lora: dict | None = None,
                trainer: dict | None = None, **changes: Any) -> Config:
    model = {"path": str(parts / "model"), "adapter": LORA | (lora or {}), "dtype": dtype}
    routing = {"mode": mode, "quarantine": {"pace": "fast"}, "practice": {"share": 0.5 if mode == "route" else 0}}
    return own_config(parts, out, model=model, routing=routing, trainer=LEARNING | (trainer or {}), **changes)


class Runs(dict[str, Path]):
    """By mode a finished run, which is trained when a test first asks for it."""

    def __init__(self, parts: Path, folder: Path) -> None:
        self.parts, self.folder = parts, folder

    def __missing__(self, mode: str) -> Path:
        self[mode] = pipeline.train(lora_config(self.parts, self.folder / mode, mode), [])
        return self[mode]


@pytest.fixture(scope="module")
def runs(parts, tmp_path_factory) -> Runs:
    return Runs(parts, tmp_path_factory.mktemp("runs"))


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found = model.eval()(input_ids=IDS).logits.float()
    assert found.isfinite().all()
    return found


def in_memory(run: Path, step: int | None = None) -> dict[str, torch.Tensor]:
    """What base, deployed model and policy of a run's checkpoint give, by the run's own code."""
    config = read_config(RunFolder(run))
    loaded, folder = load_parts(config), RunFolder(run).require_checkpoint(step)
    found = {"base": logits(loaded.model)}
    router = make_router(loaded, Subspace.load(run / "subspace") if (run / "subspace").exists() else None)
    take_checkpoint(loaded, router, folder)
    if router is not None:
        with router.quarantine.ablated():
            found["deployed"] = logits(loaded.model)
    return found | {"policy": logits(loaded.model)}


def base_of(parts: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(parts / "model")


def read_by_peft(parts: Path, *adapters: Path) -> torch.Tensor:
    """The base model with these adapters, all at once."""
    model = PeftModel.from_pretrained(base_of(parts), str(adapters[0]), adapter_name="0")
    for place, adapter in enumerate(adapters[1:], 1):
        model.load_adapter(str(adapter), adapter_name=str(place))
    model.base_model.set_adapter([str(place) for place in range(len(adapters))])
    return logits(model)


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return relative(found, expected) < 1e-5


@pytest.mark.slow
def test_the_folder_of_a_lora_is_evaluated_as_its_run_evaluates_it(parts, runs, tmp_path, capsys):
    run, config = runs["route"], read_config(RunFolder(runs["route"]))
    pipeline.evaluate(str(run), None, str(tmp_path / "run.json"), None)
    pipeline.evaluate(str(run / "deployed"), None, str(tmp_path / "deployed.json"), config)
    pipeline.export(str(run), str(tmp_path / "quarantine"), None, str(tmp_path / "policy"))
    pipeline.evaluate(str(tmp_path / "policy"), None, str(tmp_path / "policy.json"), read_config(RunFolder(run)))
    found = json.loads((tmp_path / "run.json").read_text())["models"]
    for name in ("deployed", "policy"):
        assert json.loads((tmp_path / f"{name}.json").read_text())["models"] == {"model": found[name]}, name
    assert f"{run / 'deployed'} is a LoRA on {parts / 'model'}" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="holds a quarantine, which means something only beside the deployed model's LoRA"):
        pipeline.evaluate(str(tmp_path / "quarantine"), None, None, read_config(RunFolder(run)))


@pytest.mark.slow
def test_a_lora_goes_on_the_model_that_it_was_made_for_and_no_other(parts, runs, tmp_path):
    """A model of the same shape is told by the hash on the LoRA's card; what is trained from it begins on that model, too."""
    start = str(runs["route"] / "deployed")
    assert load_parts(lora_config(parts, "unused", lora={"path": start}), attached=False).adapted is None
    other = lora_config(write_parts(tmp_path / "other", seed=1), "unused", lora={"path": start})
    with pytest.raises(ModelError, match=r"deployed was not made for .*/other/model: its weights are .*; give that model"):
        load_parts(other)


@pytest.mark.slow
def test_a_lora_that_began_from_another_goes_on_the_model_with_that_one_merged(parts, runs, tmp_path):
    start = runs["route"] / "deployed"
    run = pipeline.train(lora_config(parts, tmp_path / "run", lora={"path": str(start)}, trainer={"max_steps": 2}), [])
    config = with_adapter(read_config(RunFolder(run)), run / "deployed")
    assert config.model.path == str(run / "base")
    assert close(logits(load_parts(config, attached=False).model), in_memory(run)["deployed"])


@pytest.mark.parametrize("mode", tiered(["route", "observe", "erase", "none"], quick=["route"]))
def test_every_checkpoint_is_a_stock_adapter_of_the_deployed_model(parts, runs, mode):
    for step in (2, 4):
        folder, models = runs[mode] / "checkpoints" / f"step-{step}", in_memory(runs[mode], step)
        assert close(read_by_peft(parts, folder), models.get("deployed", models["policy"])), step
        assert not list(folder.glob("model*.safetensors")) and not (folder / "config.json").exists()
        assert relative(models["policy"], models["base"]) > 1e-3
    assert sum(path.stat().st_size for path in (runs[mode] / "deployed").iterdir()) < 2 * base_of(parts).num_parameters()


@pytest.mark.parametrize("mode", tiered(["route", "observe"], slow=["observe"]))
def test_base_and_deployed_and_quarantine_are_the_policy_through_stock_peft(parts, runs, tmp_path, mode):
    run, models = runs[mode], in_memory(runs[mode])
    pipeline.discard(str(run), str(tmp_path / "deployed"))
    pipeline.export(str(run), str(tmp_path / "quarantine"), None, str(tmp_path / "policy"))
    assert close(read_by_peft(parts, tmp_path / "deployed"), models["deployed"])
    assert close(read_by_peft(parts, tmp_path / "deployed", tmp_path / "quarantine"), models["policy"])
    assert close(read_by_peft(parts, tmp_path / "policy"), models["policy"])
    assert relative(models["policy"], models["deployed"]) > 1e-5  # what a run observes is in the policy alone
    settings = json.loads((tmp_path / "policy" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(parts / "model")
    ranks = {name.rpartition(".")[2]: rank for name, rank in settings["rank_pattern"].items()}
    assert ranks["q_proj"] == 4 and ranks["o_proj"] > 4


def test_the_code_on_each_card_loads_the_model_that_it_tells_of(runs, tmp_path, monkeypatch):
    run, models = runs["route"], in_memory(runs["route"])
    pipeline.export(str(run), str(tmp_path / "quarantine"), None, str(tmp_path / "policy"))
    shutil.copytree(run / "deployed", tmp_path / "deployed")
    for name in ("deployed", "policy", "quarantine"):
        monkeypatch.chdir(tmp_path / name)
        assert close(logits(loaded_by_card(tmp_path / name)), models["deployed" if name == "deployed" else "policy"])


def test_merged_exports_are_plain_models_with_the_settings_of_the_base_model(parts, runs, tmp_path):
    run, models = runs["route"], in_memory(runs["route"])
    file = parts / "model" / "generation_config.json"
    before = file.read_text()
    file.write_text(json.dumps({"do_sample": True, "temperature": 0.6, "top_k": 7, "eos_token_id": 1}))
    pipeline.discard(str(run), str(tmp_path / "deployed"), merge=True)
    pipeline.export(str(run), None, None, str(tmp_path / "policy"), merge=True)
    for name in ("deployed", "policy"):
        assert not (tmp_path / name / "adapter_config.json").exists()
        found, said = AutoModelForCausalLM.from_pretrained(tmp_path / name, output_loading_info=True)
        assert close(logits(found), models[name]) and not any(said.values())
        assert found.generation_config.temperature == 0.6 and found.generation_config.top_k == 7
    pipeline.discard(str(run), str(tmp_path / "deployed"), merge=True)  # again is fine
    with pytest.raises(Exception, match="already holds something else"):
        pipeline.discard(str(run), str(tmp_path / "policy"), merge=True)
    file.write_text(before)


def test_parts_that_are_kept_are_ranks_beside_the_deployed_adapter(parts, runs, tmp_path):
    run = runs["route"]
    pipeline.discard(str(run), str(tmp_path / "kept"), keep={"a": 0.5}, force=True)
    pipeline.discard(str(run), str(tmp_path / "merged"), keep={"a": 0.5}, force=True, merge=True)
    config = read_config(RunFolder(run))
    loaded = load_parts(config)
    router = make_router(loaded, Subspace.load(run / "subspace"))
    take_checkpoint(loaded, router, RunFolder(run).require_checkpoint())
    with router.quarantine.kept({"a": 0.5}):
        expected = logits(loaded.model)
    assert close(read_by_peft(parts, tmp_path / "kept"), expected)
    assert close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")), expected)
    pipeline.export(str(run), str(tmp_path / "rest"), None, None, kept=str(tmp_path / "kept"))
    assert close(read_by_peft(parts, tmp_path / "kept", tmp_path / "rest"), in_memory(run)["policy"])
    assert json.loads((tmp_path / "merged" / "kept.json").read_text())["parts"]["a"]["share"] == 0.5


@pytest.mark.parametrize("mode", tiered(["route", "observe", "erase"], quick=["route"]))
def test_rows_are_declared_metrics_and_the_adapter_stays_outside(runs, mode):
    rows = [row for row in MetricsFile(runs[mode] / "metrics.jsonl").rows() if "quarantine/norm" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        assert row["routing/drift"] < 1e-6 and 0 < row["routing/routed_fraction"] < 1
        assert {key.split("/")[0] for key in row} - {"step", "time"} <= {key.split("/")[0] for key in METRICS}
    manifest = json.loads((runs[mode] / "manifest.json").read_text())
    assert manifest["frozen"] == ["every weight of the base model"] and len(manifest["targets"]) == 4
    assert all("reader" in reason and ".lora_" in name for name, reason in manifest["unrouted"].items())
    assert write_report(RunFolder(runs[mode])).exists() and len(manifest["unrouted"]) == 2 * 2 * 5


def same(run: Path, other: Path) -> None:
    ours, theirs = (RunFolder(path).require_checkpoint() for path in (run, other))
    assert ours.name == theirs.name
    for file in ("adapter_model.safetensors", "quarantine.safetensors"):
        if (theirs / file).exists():
            a, b = load_file(ours / file), load_file(theirs / file)
            assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a), file
    moments = [torch.load(path / "optimizer.pt", weights_only=True)["state"] for path in (ours, theirs)]
    assert all(torch.equal(moments[0][place][key], moments[1][place][key]) for place in moments[1] for key in ("exp_avg", "step"))
    assert metrics(run) == metrics(other)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["route", "observe", "none"])
def test_resume_is_not_stopping_and_rollback_is_not_having_gone_on(parts, runs, tmp_path, mode):
    run = pipeline.train(lora_config(parts, tmp_path / "run", mode, trainer={"max_steps": 2}), [])
    pipeline.resume(str(run), ["trainer.max_steps=4"], lambda _: lora_config(parts, run, mode))
    same(run, runs[mode])
    shutil.rmtree(run / "checkpoints" / "step-4")
    pipeline.resume(str(run), [], lambda _: lora_config(parts, run, mode))
    same(run, runs[mode])
    if mode == "route":
        back = pipeline.rollback(str(run), 2, [], False, [f"out={tmp_path / 'back'}"],
                                 lambda _: lora_config(parts, tmp_path / "back", mode))
        same(back, run)
        fewer = pipeline.rollback(str(run), 2, ["b"], False, [f"out={tmp_path / 'fewer'}"],
                                  lambda _: lora_config(parts, tmp_path / "fewer", mode))
        assert json.loads((fewer / "manifest.json").read_text())["inherited"] == ["b"]


@pytest.mark.slow
def test_a_run_in_bf16_has_its_adapter_in_float32(parts, tmp_path):
    config = lora_config(parts, tmp_path / "run", dtype="bfloat16", trainer={"bf16": True, "use_cpu": True})
    run = pipeline.train(config, [])
    assert {tensor.dtype for tensor in load_file(run / "deployed" / "adapter_model.safetensors").values()} == {torch.float32}
    assert load_parts(config).model.dtype == torch.bfloat16
    rows = [row for row in MetricsFile(run / "metrics.jsonl").rows() if "quarantine/norm" in row]
    assert all(row["routing/drift"] < 1e-6 for row in rows)
    pipeline.discard(str(run), str(tmp_path / "plain"), merge=True)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "plain").dtype == torch.bfloat16
    pipeline.discard(str(run), str(tmp_path / "full"), merge=True, dtype="float32")
    full, half = (AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float32) for name in ("full", "plain"))
    merged, rounded = (model.model.layers[0].mlp.down_proj.weight for model in (full, half))
    assert torch.equal(merged.bfloat16(), rounded.bfloat16()) and not torch.equal(merged, rounded)  # what was learned is kept


@pytest.mark.parametrize(("name", "beta"), tiered([(name, beta) for name in PLAIN for beta in (0.0, 0.3)], quick=[("grpo", 0.3)]))
def test_mode_none_is_trl_with_a_peft_config_bit_for_bit(parts, tmp_path, name, beta):
    trainer = {"algorithm": name, "max_steps": 3, "save_steps": 9, "beta": beta, "num_iterations": 2, "lean": False}
    config = lora_config(parts, tmp_path / "ours", "none", trainer=trainer)
    loaded = load_parts(config)
    make_router(loaded, None)
    plan = make_plan(config, RunFolder(tmp_path / "ours"))
    build_trainer(plan, loaded.learner, loaded.tokenizer, loaded.trained, None).train()
    plain = base_of(parts)
    table = TaskTable(loaded.trained, config.seed)
    reward = RewardFunction(table, Scorer({entry.name: entry for entry in loaded.trained}, 0.0), 8, CompletionFiles(None))
    plain.config.update({"eos_token_id": loaded.tokenizer.eos_token_id})
    torch.manual_seed(config.seed)
    theirs = PLAIN[name](plain, reward, args=plan.arguments, train_dataset=table.dataset(prompts_needed(plan.arguments)),
                         processing_class=loaded.tokenizer,
                         peft_config=LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear"))
    theirs.train()
    ours = {name: parameter for name, parameter in loaded.learner.named_parameters() if parameter.requires_grad}
    other = {name: parameter for name, parameter in theirs.model.named_parameters() if parameter.requires_grad}
    assert ours.keys() == other.keys() and all(torch.equal(ours[key], other[key]) for key in ours)
    assert any(parameter.any() for key, parameter in ours.items() if ".lora_B." in key)


def test_the_kl_is_to_the_base_model_without_the_quarantine(parts, runs, tmp_path):
    """Also of a policy that has learned: TRL would take a copy of the adapter that a model comes with."""
    config = lora_config(parts, tmp_path / "run", trainer={"beta": 0.1})
    loaded = load_parts(config)
    router = make_router(loaded, Subspace.load(runs["route"] / "subspace"))
    plan = make_plan(config, RunFolder(tmp_path / "run"))
    trainer = build_trainer(plan, loaded.learner, loaded.tokenizer, loaded.trained, router)
    base = logits(loaded.model)
    take_checkpoint(loaded, router, RunFolder(runs["route"]).require_checkpoint())
    assert trainer.beta == 0.1 and trainer.ref_model is None
    policy = logits(loaded.model)
    with trainer.model.disable_adapter():
        assert logits(loaded.model).equal(base)
    assert logits(loaded.model).equal(policy) and relative(policy, base) > 1e-3


@pytest.mark.slow
def test_a_run_begins_from_an_adapter_that_is_merged_first(parts, runs, tmp_path):
    """Its base model is the first run's deployed model, as a folder that the new adapters are put on."""
    start, expected = runs["route"] / "deployed", in_memory(runs["route"])["deployed"]
    config = lora_config(parts, tmp_path / "run", lora={"path": str(start)}, trainer={"max_steps": 2})
    run = pipeline.train(config, [])
    models, base = in_memory(run), AutoModelForCausalLM.from_pretrained(run / "base")
    assert close(models["base"], expected) and close(logits(base), expected)
    settings = json.loads((run / "deployed" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(run / "base")
    assert close(logits(PeftModel.from_pretrained(base, str(run / "deployed"))), models["deployed"])
    pipeline.discard(str(run), str(tmp_path / "plain"), merge=True)
    assert close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "plain")), models["deployed"])
    back = pipeline.rollback(str(run), 2, [], False, [f"out={tmp_path / 'back'}"], lambda _: dataclasses.replace(
        config, out=str(tmp_path / "back"), trainer=config.trainer | {"max_steps": 3}))
    assert (back / "base" / "COMPLETE.json").exists()
    (tmp_path / "other").mkdir()
    write_parts(tmp_path / "other", hidden=16)
    with pytest.raises(ModelError, match="deployed was not made for .*other/model"):
        pipeline.train(lora_config(tmp_path / "other", tmp_path / "refused", lora={"path": str(start)}), [])
    assert not (tmp_path / "refused").exists()


@pytest.mark.slow
def test_a_run_that_began_from_a_lora_needs_neither_that_lora_nor_its_old_place(parts, runs, tmp_path, monkeypatch, capsys):
    """It goes on, leaves models that name their base where it is now, and is read where it stands."""
    (tmp_path / "there").mkdir()
    start = Path(shutil.copytree(runs["route"] / "deployed", tmp_path / "there" / "start"))
    words = [*typed(parts, tmp_path / "there" / "run"), "model.adapter=lora", "model.adapter.r=4", f"model.adapter.path={start}"]
    main(["train", *words, "trainer.max_steps=2"])
    before = in_memory(tmp_path / "there" / "run")
    (tmp_path / "there").rename(tmp_path / "here")
    shutil.rmtree(tmp_path / "here" / "start")
    run, base = tmp_path / "here" / "run", str(tmp_path / "here" / "run" / "base")
    monkeypatch.chdir(tmp_path)
    settings = (run / "config.yaml").read_text()
    assert main(["discard", str(run), "--out", "deployed"]) == 0
    assert main(["discard", str(run), "--out", str(run / "deployed")]) == 0
    assert "holds this model already, with an older adapter_config.json; remove" in capsys.readouterr().out
    assert main(["discard", str(run), "--merge", "--out", "plain"]) == 0
    assert main(["export", str(run), "--quarantine", "quarantine", "--policy", "policy"]) == 0
    for name in ("deployed", "quarantine", "policy"):
        assert json.loads((tmp_path / name / "adapter_config.json").read_text())["base_model_name_or_path"] == base, name
    for place in (tmp_path / "plain", run / "deployed"):
        own = ["model.adapter.path=null"] if place.name == "plain" else []
        assert main(["evaluate", str(place), *words[2:9], *own]) == 0
    found = AutoModelForCausalLM.from_pretrained(base)
    assert close(logits(PeftModel.from_pretrained(found, str(tmp_path / "deployed"))), before["deployed"])
    assert main(["evaluate", str(run)]) == main(["resume", str(run), "trainer.max_steps=4"]) == 0
    assert settings.replace("max_steps: 2", "max_steps: 4") == (run / "config.yaml").read_text()
    assert json.loads((run / "deployed" / "adapter_config.json").read_text())["base_model_name_or_path"] == base
    assert main(["rollback", str(run), "--step", "2", "out=back"]) == 0
    assert (tmp_path / "back" / "deployed" / "README.md").exists()


def resealed(run: Path, change) -> Path:
    """The run's last checkpoint with a changed adapter, sealed as if it had been written so."""
    folder = RunFolder(run).require_checkpoint()
    (copy := run.parent / f"{folder.name}-copy").mkdir()
    shutil.copytree(folder, copy, dirs_exist_ok=True, ignore=shutil.ignore_patterns("COMPLETE.json"))
    change(copy / "adapter_model.safetensors")
    shutil.rmtree(folder)
    with sealed_folder(folder) as again:
        shutil.copytree(copy, again, dirs_exist_ok=True)
    return folder


def renamed(file: Path) -> None:
    save_file({f"x.{name}": tensor for name, tensor in load_file(file).items()}, file)


def reshaped(file: Path) -> None:
    save_file({name: tensor[:1].contiguous() for name, tensor in load_file(file).items()}, file)


@pytest.mark.parametrize(("change", "said"), [(renamed, "is not in it"), (reshaped, "has the shape"),
                                              (Path.unlink, "No such file"), (lambda file: file.write_bytes(b"3"), "")])
def test_an_adapter_that_is_not_what_a_run_writes_is_named_with_the_way_out(parts, runs, tmp_path, change, said):
    run = tmp_path / "run"
    shutil.copytree(runs["route"], run)
    config = lora_config(parts, run, "erase", trainer={"max_steps": 5})
    folder = resealed(run, change)
    with pytest.raises(CheckpointError, match="adapter_model.safetensors is not what this run writes .*--step N") as refusal:
        take_checkpoint(load_parts(config), None, folder)
    assert said in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_torn_adapter_is_passed_over(runs, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(runs["route"], run)
    torn = run / "checkpoints" / "step-4" / "adapter_model.safetensors"
    torn.write_bytes(torn.read_bytes()[:-8])
    newest, (line,) = RunFolder(run).last_checkpoint()
    assert newest.name == "step-2" and "adapter_model.safetensors is not what was written" in line


def test_a_run_is_evaluated_with_its_scales_and_parts(runs, tmp_path):
    pipeline.evaluate(str(runs["route"]), None, str(tmp_path / "found.json"), None, scales=[0.5], keep={"a": 0.5})
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["models"].keys() == {"base", "policy", "deployed", "kept"} and found["scales"].keys() == {"0.5"}


@pytest.mark.parametrize(("changes", "said"), [
    ({"lora": {"r": 64}}, "model.adapter.r=64 is more than the smallest width"),
    ({"lora": {"target_modules": ["c_attn"]}}, "target_modules=c_attn is no linear layer"),
    ({"trainer": {"peft_config": {}}}, "trainer.peft_config is not set here: for a LoRA set model.adapter=lora"),
])
def test_what_cannot_be_trained_is_said_before_anything_is_written(parts, tmp_path, changes, said):
    with pytest.raises(ConfigError, match=said) as refusal:
        pipeline.train(lora_config(parts, tmp_path / "run", **changes), [])
    assert "\n" not in str(refusal.value) and not (tmp_path / "run").exists()


def refuse(loaded: Parts, subspace: Subspace) -> None:
    check_served(loaded)
    adapters_for(loaded, subspace)


@pytest.mark.parametrize(("family", "lora", "said"), [
    ("gpt2", {"target_modules": ["c_attn"]}, "vLLM puts no LoRA on transformer.h.0.attn.c_attn, a Conv1D; set rollout=trans"),
    ("mixtral", {"target_modules": ["q_proj"]}, "the quarantine of a mixture of experts is not pushed to vLLM"),
    ("llama", {"r": 16}, "would have the rank 532, .*; lower model.adapter.r=16 or subspace.rank, or set rollout=transformers"),
])
def test_what_vllm_cannot_serve_of_a_lora_is_said_before_it_is_started(parts, tmp_path, family, lora, said):
    tiny(family).save_pretrained(tmp_path / "model")
    for file in (parts / "model").glob("tokenizer*"):
        shutil.copy(file, tmp_path / "model")
    config = lora_config(parts, tmp_path / "run", lora=lora, rollout={"engine": "vllm_colocate"})
    config.model.path = str(tmp_path / "model")
    wide: Any = SimpleNamespace(writer_bases=lambda *_: [torch.zeros(600, 516)] * 9,
                                provenance=SimpleNamespace(hook="resid_post", layers=9))
    with pytest.raises(RolloutError, match=said) as refusal:
        refuse(load_parts(config), wide)
    assert "\n" not in str(refusal.value)


def audited(run: Path) -> tuple[Parts, Change, dict[str, list[str]]]:
    """A run's parts, its change, and the change's groups by kind."""
    loaded = load_parts(read_config(RunFolder(run)))
    change = read_change(loaded, RunFolder(run).require_checkpoint())
    return loaded, change, by_kind(loaded.model, loaded.writers, change.names)


@pytest.mark.slow
def test_an_audits_groups_are_the_products_of_the_lora_and_put_back_together_they_are_the_base_model(parts, runs, tmp_path):
    (loaded, change, groups), models = audited(runs["route"]), in_memory(runs["route"])
    assert sorted(groups) == ["MLP readers", "MLP writers", "attention readers", "attention writers"]
    assert {len(groups[name]) for name in ("MLP writers", "attention writers")} == {2} and len(groups["attention readers"]) == 6
    with putting_back(loaded.model, frozenset(change.names), change.base, change.deployed):
        assert logits(loaded.model).equal(models["base"])
    with putting_back(loaded.model, frozenset(), change.base, change.deployed):
        assert close(logits(loaded.model), models["deployed"])
    shutil.copytree(runs["route"] / "deployed", tmp_path / "some")
    stored = load_file(tmp_path / "some/adapter_model.safetensors")
    for name in [name for name in stored if name.endswith("o_proj.lora_B.weight")]:
        up, down = stored[name], stored[name.replace("lora_B", "lora_A")]
        own = name.removeprefix("base_model.model.").replace("lora_B", "lora_B.default")
        assert change.energies[own] == pytest.approx((2 * up @ down).square().sum().item(), rel=1e-5)  # alpha 8 at rank 4
        assert change.sizes[own] == up.numel() + down.numel()
        stored[name] = torch.zeros_like(up)
    save_file(stored, tmp_path / "some/adapter_model.safetensors")
    with putting_back(loaded.model, frozenset(groups["attention writers"]), change.base, change.deployed):
        some = logits(loaded.model)
    assert close(some, read_by_peft(parts, tmp_path / "some")) and relative(some, models["deployed"]) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["route", "observe", "none"])
def test_an_audit_of_a_lora_measures_base_deployed_model_and_policy_and_what_each_group_carries(parts, runs, mode):
    run, settings = RunFolder(runs[mode]), AuditConfig(samples=32, prompts=8, blocks=2)
    found, config = audit(str(run.path), settings, None, None), read_config(run)
    config.evaluation.samples = settings.samples

    def evaluated(model: Any) -> dict[str, float]:
        tokenizer = load_tokenizer(config.model.path)
        results = evaluate(model, tokenizer, load_environments(config.env), config.evaluation, seed=config.seed, max_new_tokens=5)
        return {f"{env}.{name}": value for env, values in results.items() for name, value in values.items()
                if name not in ("completions", "failures")}

    models = {name: {key: value for key, value in measures.items() if key != "shift"}
              for name, measures in found["models"].items()}
    assert models["base"] == evaluated(base_of(parts))
    deployed = PeftModel.from_pretrained(base_of(parts), str(run.path / "deployed"))
    assert models["deployed"] == evaluated(deployed.get_base_model()) != models["base"]
    if mode != "none":
        assert found["models"]["policy"]["shift"] != found["models"]["deployed"]["shift"] != found["models"]["base"]["shift"] == 0
    for groups in found["groups"].values():
        assert sum(group["energy"] for group in groups.values()) == pytest.approx(1)
        for name, value in found["models"]["deployed"].items():
            carried = sum(group["measures"][name]["carried"] for group in groups.values())
            assert carried == pytest.approx(value - found["models"]["base"][name], abs=1e-9)
    assert list(found["groups"]["layer"]) == ["layer 0", "layer 1"]



def test_a_run_goes_on_only_from_the_model_with_which_it_began_in_mode_none_too(parts, tmp_path):
    """The weights below a LoRA are in no checkpoint."""
    run, config = RunFolder(tmp_path / "run"), lora_config(parts, tmp_path / "run", "none")
    run.path.mkdir()
    write_config(run, config, [])
    tell(run, {"model_hash": "0" * 64})
    written = {path.name: path.read_bytes() for path in run.path.iterdir()}
    with pytest.raises(CheckpointError, match=r"model is not the base model of .*run: .* began with 000000000000; put that mod"):
        pipeline.resume(str(run.path), [], lambda _: config)
    assert written == {path.name: path.read_bytes() for path in run.path.iterdir()}
