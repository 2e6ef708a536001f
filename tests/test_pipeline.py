"""The verbs as a whole: refused commands change nothing, and models are compared on the same samples."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import OPTConfig, OPTForCausalLM

from routed_rl.errors import ConfigError, ModelError, RoutedRLError, SubspaceError, TaskError
from tests import pipeline
from tests.parts import own_config, write_parts

QUICK = {"max_steps": 2, "per_device_train_batch_size": 16}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return write_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def run(parts, tmp_path_factory):
    return pipeline.train(own_config(parts, tmp_path_factory.mktemp("runs") / "run", trainer=QUICK), [])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("trainer", [{"max_stepz": 4}, {"learning_rate": "abc"}, {"fp16": True}])
def test_a_refused_resume_leaves_the_finished_run_as_it_was(parts, run, trainer):
    before, wanted = contents(run), own_config(parts, run, trainer=QUICK | trainer)
    with pytest.raises(ConfigError):
        pipeline.resume(str(run), ["something"], lambda _: wanted)
    assert contents(run) == before


def opt(folder: Path) -> str:
    """A model of a family that is not known, with the parts' tokenizer beside it."""
    path = folder / "opt"
    OPTForCausalLM(OPTConfig(vocab_size=27, hidden_size=16, ffn_dim=16, num_hidden_layers=1, num_attention_heads=2,
                             word_embed_proj_dim=16, max_position_embeddings=64)).save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (path / name).write_bytes((folder / "model" / name).read_bytes())
    return str(path)


CASES = {
    "unknown model": (lambda parts: {"model": {"path": opt(parts)}}, ModelError,
                      "no writers are recognised.*opt.*drops out.*model.writers="),
    "no prompts": (lambda parts: {"subspace": {}}, SubspaceError, "no contrast prompts.*subspace.prompts"),
    "rank": (lambda parts: {"subspace": {"prompts": f"{parts}/prompts.jsonl", "rank": 33}}, SubspaceError, "33.*width 32"),
    "missing class": (lambda parts: {"env": {"a": {"path": f"{parts}/environment.py:Nope"}}}, ConfigError, "has no class Nope"),
    "only a probe": (lambda parts: {"env": {"a": {"path": f"{parts}/environment.py:Add", "probe": True}}}, ConfigError,
                     "no environment to train on"),
    "two kinds of prompts": (lambda parts: {"env": {"a": {"path": f"{parts}/environment.py:Add"},
                                                    "b": {"path": f"{parts}/environment.py:Add", "chat": True}}}, TaskError,
                             "a gives text, b gives chat messages"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line_and_leaves_no_folder(parts, tmp_path, case):
    changes, error, message = CASES[case]
    with pytest.raises(error, match=message) as caught:
        pipeline.train(own_config(parts, tmp_path / "run", trainer=QUICK, **changes(parts)), [])
    assert isinstance(caught.value, RoutedRLError) and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_resume_with_more_samples_evaluates_every_model_on_them(parts, tmp_path):
    run = pipeline.train(own_config(parts, tmp_path / "run", trainer=QUICK), [])
    wanted = own_config(parts, run, trainer=QUICK, evaluation={"samples": 24})
    pipeline.resume(str(run), ["evaluation.samples=24"], lambda _: wanted)
    models = json.loads((run / "summary.json").read_text())["models"]
    assert {results["a"]["completions"] for results in models.values()} == {24}


def test_evaluate_of_a_run_repeats_the_run_own_numbers(run, tmp_path):
    pipeline.evaluate(str(run), None, str(tmp_path / "new" / "again.json"), None)
    again = json.loads((tmp_path / "new" / "again.json").read_text())
    assert again["models"] == json.loads((run / "summary.json").read_text())["models"]


def test_the_manifest_accounts_for_every_parameter(run):
    manifest = json.loads((run / "manifest.json").read_text())
    targets = {f"{name}.weight" for name in manifest["targets"]}
    assert len(targets) == 4
    assert not (targets | set(manifest["frozen"])) & set(manifest["unrouted"])
    assert all(manifest["unrouted"].values())
