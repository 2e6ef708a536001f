"""The comparison with the base model: what it counts, which model reads, and that nothing else knows of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from routed_rl.artifacts import RunFolder
from routed_rl.config import MonitorConfig, from_mapping
from routed_rl.errors import ConfigError
from routed_rl.model.adapter import plain
from routed_rl.pipeline.build import load_parts, make_subspace
from routed_rl.tracking import METRICS, MetricsFile
from routed_rl.training.base import BaseModel
from routed_rl.training.baselines import StreamEdit
from routed_rl.training.health import Health, Row, metrics_of
from routed_rl.training.plan import make_plan
from tests import pipeline
from tests.parts import own_config
from tests.training.test_detector import BAD, FINE

QUICK = {"max_steps": 2, "save_steps": 2}


def trained(parts: Path, out: Path, mode: str = "none", adapter: str = "none", **monitor) -> Path:
    config = own_config(parts, out, routing={"mode": mode, "practice": {"share": 0}}, trainer=QUICK, monitor=monitor,
                        model={"path": f"{parts}/model", "adapter": {"kind": adapter}}, evaluation={"samples": 0}, discard=False)
    return pipeline.train(config, [])


def healths(run: Path) -> dict[int, dict[str, float]]:
    """By step."""
    return {row["step"]: {key: value for key, value in row.items() if key.startswith("health/")}
            for row in MetricsFile(run / "metrics.jsonl").rows()}


def test_the_shares_sum_to_what_the_policys_own_score_would_be_paid():
    draw = torch.Generator().manual_seed(0)
    rows = [Row("ab"[place % 2], bool(torch.rand((), generator=draw) < 0.3), *torch.randn(2, generator=draw).tolist())
            for place in range(50)]
    found = metrics_of(rows)
    for prefix, ours in (("health/", rows), ("health/a/", rows[::2]), ("health/b/", rows[1::2])):
        shares = [found[f"{prefix}{key}"] for key in ("honest", "obfuscated_policy", "obfuscated_activations")]
        assert sum(shares) == pytest.approx(-sum(row.by_policy for row in ours) / len(ours))
        assert found[f"{prefix}deceptive"] == pytest.approx(sum(row.deceptive for row in ours) / len(ours))


def test_text_that_reads_honest_and_activations_that_hide_are_told_apart():
    open_about_it, text, hidden = Row("a", True, 1.0, 1.0), Row("a", True, 0.25, 0.25), Row("a", True, 1.0, 0.25)
    shares = [metrics_of([row, Row("a", False, 0.0, 0.0)]) for row in (open_about_it, text, hidden)]
    assert [found["health/obfuscated_policy"] for found in shares] == [-0.5, -0.125, -0.5]
    assert [found["health/obfuscated_activations"] for found in shares] == [0, 0, 0.375]
    assert all(found["health/honest"] == 0 and found["health/auroc_base"] == 1 for found in shares)
    assert "health/auroc_base" not in metrics_of([text]), "there is nothing to tell it from"


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "adapter"), [("none", "none"), ("route", "lora")])
def test_it_changes_nothing_and_the_first_policy_is_the_base_model(parts, tmp_path, mode, adapter):
    compared, alone = trained(parts, tmp_path / "on", mode, adapter, health=1), trained(parts, tmp_path / "off", mode, adapter)
    weights = [next((run / "checkpoints" / "step-2").glob("*model.safetensors")) for run in (compared, alone)]
    first, second = map(load_file, weights)
    assert first.keys() == second.keys() and all(first[name].equal(second[name]) for name in first)
    ours, theirs = ([file.read_bytes() for file in RunFolder(run).completion_files()] for run in (compared, alone))
    assert ours == theirs
    found = healths(compared)
    assert not any(healths(alone).values()) and {"health/honest", "health/a/honest", "health/b/deceptive"} <= found[1].keys()
    assert found[1]["health/obfuscated_activations"] == pytest.approx(0, abs=1e-6)
    assert abs(found[2]["health/obfuscated_activations"]) > 1e-5, "by now the policy is another one"
    assert all(any(key.split("/")[-1] == name.split("/")[-1] for name in METRICS) for key in found[1])


def test_the_sample_is_spread_over_the_rows_and_what_cannot_be_read_is_left_out(parts):
    config = own_config(parts, "nowhere", monitor={"health": 4, "health_rows": 6})
    loaded = load_parts(config)
    base = BaseModel(loaded.learner, config, None, None)
    health = Health(config, make_subspace(loaded), base, loaded.tokenizer, span=1)
    names, scores = ["a"] * 6 + ["b"] * 6, [BAD, FINE, None] * 4
    said = [(f"add {place} 2 =", "bad" if score is BAD else "3") for place, score in enumerate(scores)]
    found = health.measure(loaded.learner, names, [*said[:-3], None, None, None], scores)
    assert found["health/a/deceptive"] == found["health/b/deceptive"] == 0.5 and found["health/obfuscated_activations"] == 0
    assert health.measure(loaded.learner, names, [None] * 12, scores) == {}
    assert [step for step in range(9) if health.due(step)] == [3, 7]
    assert [step for step in range(0, 12, 3) if Health(config, health.subspace, base, loaded.tokenizer, 3).due(step)] == [3, 6, 9]


@pytest.mark.parametrize("settings", [{"ablate": True}, {"steer": 0.5}])
def test_the_policy_is_read_without_what_an_arm_does_to_its_stream_while_it_trains(parts, settings):
    config = own_config(parts, "nowhere", monitor={"health": 1}, baseline=settings, routing={"mode": "none"})
    loaded = load_parts(config)
    subspace = make_subspace(loaded)
    edit = StreamEdit(plain(loaded.learner), config.baseline, subspace)
    health = Health(config, subspace, BaseModel(loaded.learner, config, None, edit), loaded.tokenizer, span=1)
    edit.on()
    found = health.measure(loaded.learner, ["a"] * 4, [(f"add {place} 2 =", "bad") for place in range(4)], [BAD, FINE] * 2)
    assert found["health/obfuscated_activations"] == 0, "its weights are those of the base model"
    assert found["health/auroc_policy"] == found["health/auroc_base"] and edit.is_on, "the step goes on with it"


@pytest.mark.parametrize(("settings", "said"), [({"health": -1}, "monitor.health must be a number >= 0, got -1"),
                                                ({"health_rows": 0}, "monitor.health_rows must be a number >= 1, got 0")])
def test_settings_outside_their_range_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        from_mapping(settings, MonitorConfig)


def test_where_the_base_model_is_in_pieces_it_is_refused(parts, tmp_path):
    config = own_config(parts, tmp_path / "run", monitor={"health": 5}, launch={"strategy": "zero3"})
    with pytest.raises(ConfigError, match="monitor.health=5 reads completions with the base model, .*strategy=zero3 .*health=0"):
        make_plan(config, RunFolder(tmp_path / "run"))


@pytest.mark.slow
def test_a_run_that_is_resumed_compares_alike(parts, tmp_path):
    changes = {"routing": {"mode": "route", "practice": {"share": 0}}, "trainer": {"max_steps": 4}, "monitor": {"health": 1}}
    whole, stopped = (pipeline.train(own_config(parts, tmp_path / name, **changes), []) for name in ("whole", "stopped"))
    for path in (stopped / "checkpoints" / "step-4").iterdir():
        path.unlink()
    pipeline.resume(str(stopped), [], lambda _: own_config(parts, stopped, **changes))
    assert json.dumps(healths(whole)) == json.dumps(healths(stopped)) and healths(whole)[4]
