"""Evaluation while a run trains, and by scale of the quarantine: it disturbs nothing, and its ends are the two models."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from routed_rl.artifacts import RunFolder
from routed_rl.config import EvaluationConfig, LaunchConfig
from routed_rl.errors import ConfigError
from routed_rl.evaluate import evaluate
from routed_rl.tracking import METRICS, MetricsFile
from tests import pipeline
from tests.builders import Run, batch, merged, tiny
from tests.parts import own_config, write_parts
from tests.tiers import tiered

RANDOM = '''

import numpy as np
import torch


class Rolls(Add):
    """Draws from every global source of random numbers while it scores."""

    def score(self, task, completion):
        return Score(reward=random.random() + np.random.rand() + float(torch.rand(())), solve=0.0)
'''


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = write_parts(tmp_path_factory.mktemp("parts"))
    with open(folder / "environment.py", "a") as file:
        file.write(RANDOM)
    return folder


def config(parts, out, mode="route", steps=4, **evaluation):
    wanted = own_config(parts, out, trainer={"max_steps": steps, "save_steps": 3}, routing={"mode": mode},
                        evaluation={"samples": 8, "during_samples": 6} | evaluation)
    wanted.env["p"]["path"] = f"{parts}/environment.py:Rolls"
    return wanted


def final(run: Path) -> dict[str, torch.Tensor]:
    folder = RunFolder(run).require_checkpoint()
    files = [folder / "model.safetensors", folder / "quarantine.safetensors"]
    return {name: value for file in files if file.exists() for name, value in load_file(file).items()}


def rows(run: Path, *, without: str = "time") -> list[dict]:
    return [{key: value for key, value in row.items() if "time" not in key and "epoch" not in key and not key.startswith(without)}
            for row in MetricsFile(run / "metrics.jsonl").rows()]


@pytest.fixture(scope="module")
def measured(parts, tmp_path_factory):
    """A run that is evaluated every second step, and whose quarantine is scaled at its end."""
    return pipeline.train(config(parts, tmp_path_factory.mktemp("runs") / "measured", every=2, scales=[0, 0.5, 1]), [])


@pytest.mark.parametrize("mode", tiered(["route", "none"], slow=["none"]))
def test_evaluating_changes_nothing_that_is_trained(parts, measured, tmp_path, mode):
    ours = measured if mode == "route" else pipeline.train(config(parts, tmp_path / "ours", mode, every=2), [])
    plain = pipeline.train(config(parts, tmp_path / "plain", mode), [])
    theirs = final(plain)
    assert final(ours).keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in final(ours).items())
    assert rows(ours, without="evaluation/") == rows(plain)
    assert rows(ours) != rows(plain)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "zero3"])
def test_nor_does_it_in_several_processes_that_share_it(parts, tmp_path, strategy):
    if strategy == "zero3":
        pytest.importorskip("deepspeed", reason="pip install 'routed-rl[deepspeed]'")

    def run(name: str, **evaluation: int) -> Path:
        wanted = config(parts, tmp_path / name, **evaluation)
        wanted.launch, wanted.trainer["per_device_train_batch_size"] = LaunchConfig(strategy=strategy, processes=2), 16
        return pipeline.train(wanted, [])

    ours, plain = run("ours", every=2), run("plain")
    theirs = final(plain)
    assert all(torch.equal(value, theirs[name]) for name, value in final(ours).items())
    assert rows(ours, without="evaluation/") == rows(plain)
    assert [row["step"] for row in rows(ours) if "evaluation/deployed/p/solve" in row] == [2, 4]


def test_every_so_many_steps_both_models_are_measured_on_everything(measured):
    found = MetricsFile(measured / "metrics.jsonl").rows()
    assert [row["step"] for row in found] == [1, 2, 3, 4], "in the line of their step"
    for row in found:
        names = {key for key in row if key.startswith("evaluation/")}
        assert bool(names) == (row["step"] % 2 == 0) == ("time/evaluation_s" in row)
        if names:
            assert {tuple(name.split("/")[1:3]) for name in names} == {(model, env) for model in ("policy", "deployed")
                                                                        for env in ("a", "b", "p")}
            assert {"evaluation/policy/a/reward", "evaluation/deployed/p/solve", "evaluation/policy/b/hack"} <= names
    assert "evaluation/<model>/<env>/<metric>" in METRICS


@pytest.mark.slow
def test_a_resumed_run_writes_the_same_evaluations(parts, measured, tmp_path):
    run = pipeline.train(config(parts, tmp_path / "run", every=2, steps=3), [])
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "evaluation/policy/a/reward": 9.0}\n')  # of a life that was killed after step 4
    pipeline.resume(str(run), ["trainer.max_steps=4"], lambda _: config(parts, run, every=2))
    assert rows(run) == rows(measured)


def test_what_is_measured_last_is_what_the_same_models_give_later(parts, measured):
    """The last step's models, evaluated again on as few tasks, by the verb."""
    text = (measured / "config.yaml").read_text()
    try:
        (measured / "config.yaml").write_text(text.replace("samples: 8", "samples: 6", 1))
        pipeline.evaluate(str(measured), None, str(measured / "again.json"), None)
    finally:
        (measured / "config.yaml").write_text(text)
    again, last = json.loads((measured / "again.json").read_text())["models"], rows(measured)[-1]
    for model in ("policy", "deployed"):
        for env, means in again[model].items():
            for metric, value in means.items():
                assert metric == "completions" or last[f"evaluation/{model}/{env}/{metric}"] == value


def test_a_run_ends_with_its_curve_and_the_verb_repeats_it(measured):
    summary = json.loads((measured / "summary.json").read_text())
    assert list(summary["scales"]) == ["0", "0.5", "1"]
    assert summary["scales"]["0"] == summary["models"]["deployed"] and summary["scales"]["1"] == summary["models"]["policy"]
    pipeline.evaluate(str(measured), None, str(measured / "curve.json"), None, scales=[0.5])
    found = json.loads((measured / "curve.json").read_text())
    assert found["scales"] == {"0.5": summary["scales"]["0.5"]} and found["models"] == summary["models"]


def test_what_has_no_quarantine_is_not_scaled(parts, measured):
    with pytest.raises(ConfigError, match="--scales: .* no quarantine"):
        pipeline.evaluate(str(parts / "model"), None, None, config(parts, "unused"), scales=[0.5])
    with pytest.raises(ConfigError, match=r"evaluation\.scales must be numbers >= 0"):
        EvaluationConfig(scales=[0.5, -1])


def asking(rows, usual):
    """What gives a model's logits of `rows`; those of `usual` where no model is named."""
    def logits(model=usual):
        with torch.no_grad():
            return model(input_ids=rows.ids, attention_mask=rows.mask, use_cache=False).logits

    return logits


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mixtral"])
def test_scale_1_is_the_policy_and_0_the_deployed_model_to_the_bit_and_half_is_half(family):
    run = Run(tiny(family)).train(2)
    rows, quarantine = batch(seed=9), run.quarantine

    logits = asking(rows, run.model)
    policy = logits()
    with quarantine.ablated():
        deployed = logits()
    for scale, wanted in ((1.0, policy), (0.0, deployed)):
        with quarantine.scaled(scale):
            assert logits().equal(wanted)
    with quarantine.scaled(0.5):
        half = logits()
        torch.testing.assert_close(half, logits(merged(run.model, run.targets)), rtol=1e-4, atol=1e-5)
    assert (half - policy).norm() > 1e-3 < (half - deployed).norm()
    with pytest.raises(KeyboardInterrupt), quarantine.scaled(0.3):
        raise KeyboardInterrupt
    assert logits().equal(policy) and not run.context.now.ablated


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mixtral"])
def test_every_part_kept_is_the_policy_and_none_the_deployed_model_to_the_bit_and_a_share_of_one_is_that(family):
    run = Run(tiny(family)).train(3)
    rows, quarantine = batch(seed=9), run.quarantine

    logits = asking(rows, run.model)
    policy, wholes = logits(), [target.coefficients.clone() for target in run.targets]
    with quarantine.ablated():
        deployed = logits()
    for shares, wanted in (({"env1": 1.0, "env0": 1.0}, policy), ({"env1": 0.0}, deployed), ({}, deployed)):
        with quarantine.kept(shares):
            assert logits().equal(wanted)
    with quarantine.kept({"env1": 0.5}):
        half = logits()
        assert all(target.coefficients.equal(0.5 * target.parts[1]) for target in run.targets)
        torch.testing.assert_close(half, logits(merged(run.model, run.targets)), rtol=1e-4, atol=1e-5)
    assert min((half - policy).norm(), (half - deployed).norm()) > 1e-3
    with pytest.raises(KeyboardInterrupt), quarantine.kept({"env0": 0.3}):
        raise KeyboardInterrupt
    assert logits().equal(policy) and not run.context.now.ablated
    assert all(target.coefficients.equal(whole) for target, whole in zip(run.targets, wholes, strict=True))


def test_an_evaluation_leaves_every_global_random_state(parts):
    from routed_rl.pipeline.build import load_parts

    loaded = load_parts(config(parts, "unused"))
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    evaluate(loaded.model, loaded.tokenizer, loaded.environments, loaded.config.evaluation, seed=0, max_new_tokens=3)
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
