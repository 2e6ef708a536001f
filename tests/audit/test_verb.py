"""`routed-rl audit` on a short run of the lab."""

import json
import shutil
import sys
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from routed_rl.artifacts import RunFolder
from routed_rl.audit import audit, verb
from routed_rl.audit.probe import coordinates, shift_between
from routed_rl.cli import main
from routed_rl.cli.compose import compose
from routed_rl.config import AuditConfig, Config
from routed_rl.envs import load_environments
from routed_rl.errors import CheckpointError, ConfigError
from routed_rl.evaluate import evaluate
from routed_rl.export.models import merged_policy
from routed_rl.model.load import load_model, load_tokenizer
from routed_rl.model.prompts import encode_prompts
from routed_rl.model.targets import find_writers
from routed_rl.pipeline.record import read_config
from routed_rl.subspace import Subspace
from tests import pipeline

SHORT = ["trainer.max_steps=4", "trainer.per_device_train_batch_size=64", "trainer.learning_rate=1e-3", "evaluation.samples=0",
         "tracking.completions=false"]
SETTINGS = AuditConfig(samples=20, prompts=16, blocks=2)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return pipeline.train(compose([*SHORT, f"out={tmp_path_factory.mktemp('audit') / 'run'}"]), [])


@pytest.fixture(scope="module")
def found(run: Path) -> dict:
    return audit(str(run), SETTINGS, None, None)


def evaluated(run: Path, model: torch.nn.Module) -> dict[str, float]:
    """The same measures by `evaluate`, on a model that the audit never touched."""
    config = read_config(RunFolder.open(run))
    config.evaluation.samples = SETTINGS.samples
    results = evaluate(model, load_tokenizer(config.model.path), load_environments(config.env), config.evaluation,
                       seed=config.seed, max_new_tokens=config.trainer["max_completion_length"])
    return {f"{env}.{name}": value for env, values in results.items() for name, value in values.items()
            if name not in ("completions", "failures")}


def without_shift(measures: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in measures.items() if name != "shift"}


def test_everything_put_back_is_the_base_model_and_nothing_put_back_the_deployed_one(run, found):
    models = found["models"]
    assert without_shift(models["base"]) == evaluated(run, load_model("environments/persona_lab/model"))
    assert without_shift(models["deployed"]) == evaluated(run, AutoModelForCausalLM.from_pretrained(run / "deployed"))
    assert models["base"]["shift"] == 0 != models["deployed"]["shift"] != models["policy"]["shift"]
    assert without_shift(models["base"]) != without_shift(models["deployed"]) != without_shift(models["policy"])


@pytest.mark.parametrize("partition", ["kind", "layer"])
def test_every_column_of_a_table_sums_to_deployed_minus_base(found, partition):
    groups, models = found["groups"][partition], found["models"]
    for name in models["deployed"]:
        carried = sum(group["measures"][name]["carried"] for group in groups.values())
        assert carried == pytest.approx(models["deployed"][name] - models["base"][name], abs=1e-9)
    assert sum(group["energy"] for group in groups.values()) == pytest.approx(1)
    assert {group["measures"]["shift"]["alone"] for group in groups.values()} != {0.0}


def test_both_partitions_hold_the_same_parameters(found):
    counts = [sum(group["parameters"] for group in groups.values()) for groups in found["groups"].values()]
    assert counts[0] == counts[1] > 0 and list(found["groups"]["layer"]) == ["layers 0 to 1", "layers 2 to 3"]


def test_the_policys_shift_is_that_of_the_merged_policy_in_stock_transformers(run, found, tmp_path):
    config, subspace = read_config(RunFolder.open(run)), Subspace.load(run / "subspace")
    prompts = [task.prompt for loaded in load_environments(config.env)
               for task in islice(loaded.environment.tasks("eval", config.seed), SETTINGS.prompts)]
    ids = list(dict.fromkeys(map(tuple, encode_prompts(load_tokenizer(config.model.path), prompts))))
    policy = AutoModelForCausalLM.from_pretrained(merged_policy(RunFolder.open(run), tmp_path / "policy"))
    seen = [coordinates(model, ids, subspace, config.subspace.positions, 32)
            for model in (load_model("environments/persona_lab/model"), policy)]
    expected = shift_between(seen[0], seen[1], subspace.scales).normalised[:, 0]
    shift = found["probes"]["policy"]["persona"]["normalised"]
    torch.testing.assert_close(torch.tensor(shift), expected, rtol=1e-3, atol=1e-5)
    weights = [2 * layer["auroc"] - 1 for layer in subspace.quality["layers"]]
    mean = sum(weight * each for weight, each in zip(weights, shift, strict=True)) / sum(weights)
    assert found["models"]["policy"]["shift"] == pytest.approx(mean, abs=1e-6) and min(weights) < 0.1 < max(weights)
    assert found["probes"]["base"]["persona"]["normalised"] == [0.0] * 4 and expected.abs().min() > 1e-3


def test_the_same_audit_gives_the_same_numbers_and_the_file_holds_them(run, found, tmp_path, capsys, monkeypatch):
    walks = []
    for module in [module for name, module in sys.modules.items() if name.startswith("routed_rl")]:
        if getattr(module, "find_writers", None) is find_writers:
            monkeypatch.setattr(module, "find_writers", lambda model: walks.append(model) or find_writers(model))
    file = tmp_path / "new" / "audit.json"
    assert main(["audit", str(run), "--samples", "20", "--prompts", "16", "--blocks", "2", "--json", str(file)]) == 0
    assert json.loads(file.read_text()) == json.loads(json.dumps(found))
    shown = capsys.readouterr().out
    assert "audit: 16/16 models" in shown and "by kind" in shown and "by layer" in shown and "shift along persona" in shown
    assert len(walks) == 1, "the model's writers are found once"


def test_what_cannot_be_audited_is_refused(run, tmp_path):
    with pytest.raises(ConfigError, match="--env cod is not an environment of this run; it has code, sums, values"):
        audit(str(run), SETTINGS, ["cod"], None)
    with pytest.raises(ConfigError, match="--samples must be a number >= 1, got 0"):
        AuditConfig(samples=0)
    shutil.copytree(run, tmp_path / "run")
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    (tmp_path / "run/manifest.json").write_text(json.dumps(manifest | {"model_hash": "0" * 64}))
    with pytest.raises(CheckpointError, match=r"is not the base model of .*put that model back"):
        audit(str(tmp_path / "run"), SETTINGS, None, None)


def test_what_could_not_be_scored_is_told(monkeypatch, capsys):
    monkeypatch.setattr(verb, "evaluate", lambda *_, **__: {"code": {"solve": 0.5, "failures": 2.0, "completions": 8.0}})
    parts: Any = SimpleNamespace(config=Config(), tokenizer=None, model=None, max_new_tokens=1)
    assert verb._Meter(parts, SETTINGS, [], None)("policy") == {"code.solve": 0.5}
    assert capsys.readouterr().out == "2 of 8 completions in code could not be scored (policy)\n"
