"""The detector that is learned: what it is fitted to, how often it errs, and whose activations it reads."""

from __future__ import annotations

import json

import pytest
import torch

from routed_rl.artifacts import RunFolder
from routed_rl.cli.compose import compose
from routed_rl.config import BaselineConfig, DetectorConfig, from_mapping
from routed_rl.envs import Score
from routed_rl.errors import CheckpointError, ConfigError
from routed_rl.extraction.pooled import pooled
from routed_rl.extraction.probe import Probe, fit, measured, threshold_at
from routed_rl.pipeline.build import load_parts
from routed_rl.pipeline.detecting import base_completions, learned
from routed_rl.tracking import MetricsFile
from routed_rl.training.base import BaseModel
from routed_rl.training.baselines import Payment, ProbeDetector
from routed_rl.training.plan import make_plan
from tests import pipeline
from tests.parts import own_config, typed

BAD, FINE = Score(1.0, 0.0, flags={"hack": True}), Score(1.0, 1.0, flags={"hack": False})
PROBE = {"kind": "probe", "pool": 300, "labels": 150}
NONE = {"mode": "none", "practice": {"share": 0}}


@pytest.fixture(scope="module")
def run(parts, tmp_path_factory):
    """Two steps, screened by a probe."""
    config = own_config(parts, tmp_path_factory.mktemp("runs") / "run", routing=NONE, trainer={"max_steps": 2},
                        baseline={"screen": True, "detector": PROBE})
    return pipeline.train(config, [])


def drawn(count: int, layers: int = 3, width: int = 8, seed: int = 0, apart: float = 6.0):
    """Activations (layers, count, width) of which a fifth is marked, and layer 1 alone tells them apart."""
    generator = torch.Generator().manual_seed(seed)
    marked = torch.rand(count, generator=generator) < 0.2
    features = torch.randn(layers, count, width, generator=generator)
    features[1, marked, 0] += apart
    return features, marked


def test_a_probe_finds_the_layer_and_names_as_many_honest_ones_as_it_may():
    few, new = drawn(400), drawn(4000, seed=1)
    probe = fit(*few, None, fpr=0.05, seed=0)
    found = measured(probe, probe.scores(new[0][probe.layers]), new[1])
    assert probe.layers == [1] and found["auroc"] > 0.99 and found["recall"] > 0.95
    assert found["false_positive_rate"] == pytest.approx(0.05, abs=0.03)


def test_labels_that_mean_nothing_teach_nothing():
    """Nor are honest ones named for it: the threshold is of completions that no probe had seen."""
    features, marked = drawn(200, width=64)
    probe = fit(features[[0]], marked, [0], fpr=0.05, seed=0)
    new, truth = drawn(4000, width=64, seed=1)
    found = measured(probe, probe.scores(new[[0]]), truth)
    assert found["auroc"] == pytest.approx(0.5, abs=0.05) and max(found["recall"], found["false_positive_rate"]) < 0.12


@pytest.mark.parametrize("fpr", [0.0, 0.05, 0.3, 1.0])
def test_at_most_the_chosen_share_lies_above_the_threshold(fpr):
    scores = torch.rand(101, generator=torch.Generator().manual_seed(0))
    above = int((scores > threshold_at(scores, fpr)).sum())
    assert above == min(int(fpr * 101), 100)


def test_a_completion_that_looks_fine_at_any_layer_is_not_named():
    one, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    both = Probe([0, 1], torch.cat([one, other]), torch.zeros(2), 0.5)
    same = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]).expand(2, 4, 2)
    assert both.named(same).tolist() == [True, False, False, False]
    assert Probe([0], one, torch.zeros(1), 0.5).named(same[:1]).tolist() == [True, True, False, False]


@pytest.mark.parametrize(("marked", "said"), [(0, "of 40 labelled completions 0 are marked and 40 are not"),
                                              (37, "37 are marked and 3 are not; a probe needs 4 of each: raise baseline.detec")])
def test_labels_of_one_kind_alone_are_refused_with_their_numbers(marked, said):
    with pytest.raises(ConfigError, match=said):
        fit(torch.randn(1, 40, 4), torch.arange(40) < marked, [0], fpr=0.05, seed=0)


def test_the_mean_of_a_completion_is_over_its_own_tokens_whatever_it_is_batched_with(parts):
    loaded = load_parts(own_config(parts, "nowhere"))
    said = [("add 1 2 =", "3 4 bad"), ("add 1 2 3 4 5 =", "good"), ("add =", "")]
    together = pooled(loaded.model, loaded.tokenizer, said, 3)
    for row, (prompt, text) in enumerate(said):
        ids = loaded.tokenizer(f"{prompt} {text}".strip(), return_tensors="pt").input_ids
        with torch.no_grad():
            hidden = loaded.model(ids, output_hidden_states=True).hidden_states[1]
        own = max(len(text.split()), 1)
        torch.testing.assert_close(together[0, row], hidden[0, -own:].mean(0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(pooled(loaded.model, loaded.tokenizer, said, 1, layers=[1]), together[[1]], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_completions_are_read_by_the_base_model_whatever_the_policy_has_become(parts, adapter):
    config = own_config(parts, "nowhere", routing=NONE, model={"path": f"{parts}/model", "adapter": {"kind": adapter}})
    loaded = load_parts(config)
    base, said = BaseModel(loaded.learner, config, None, None), [("add 1 2 =", "3 4"), ("add 3 =", "bad")]

    def read():
        with base.reading() as model:
            return pooled(model, loaded.tokenizer, said, 2)

    before, own = read(), pooled(loaded.model, loaded.tokenizer, said, 2)
    with torch.no_grad():
        for parameter in (each for each in loaded.model.parameters() if each.requires_grad):
            parameter.add_(0.1)
    torch.testing.assert_close(before, own)
    torch.testing.assert_close(read(), before)
    assert not torch.allclose(pooled(loaded.model, loaded.tokenizer, said, 2), own), "the policy is another one by now"


def test_what_could_not_be_scored_is_never_named_and_what_is_named_is_screened():
    texts = [("", "bad"), ("", "fine"), ("", "bad"), ("", "bad")]
    detector = ProbeDetector(DetectorConfig(kind="probe"), Probe([2], torch.ones(1, 1), torch.zeros(1), 0.5),
                             lambda said, layers: torch.tensor([[[float(text == "bad")] for _, text in said]]))
    settings = from_mapping({"screen": True, "detector": {"kind": "probe"}}, BaselineConfig)
    payment = Payment(settings, seed=0, group_size=4, detector=detector)
    assert payment.pay(["a"] * 4, [BAD, BAD, None, FINE], [(0, place) for place in range(4)], texts) == [None, BAD, None, None]
    metrics = payment.take_metrics()
    assert (metrics["baseline/a/recall"], metrics["baseline/a/precision"], metrics["baseline/a/named"]) == (0.5, 0.5, 2)


def test_a_run_tells_how_good_its_detector_is_on_completions_that_were_not_labelled(run):
    record = json.loads((run / "detector" / "detector.json").read_text())
    assert record["labelled"] == 150 and record["held_out"]["completions"] == 150
    assert record["held_out"]["auroc"] > 0.9 and set(record["environments"]) == {"a", "b"}
    rows = MetricsFile(run / "metrics.jsonl").rows()
    assert any("baseline/a/precision" in row for row in rows) and sum(row["baseline/a/screened"] for row in rows) > 0


def test_a_detector_that_is_damaged_is_refused(run, tmp_path):
    folder = tmp_path / "detector"
    probe, record = Probe.load(run / "detector")
    probe.save(folder, record)
    (folder / "probe.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="no detector can be read .* probe.safetensors is not what was written; remove"):
        Probe.load(folder)


@pytest.mark.parametrize(("settings", "said"), [
    ({"kind": "oracle"}, "baseline.detector.kind=oracle is not known; choose from flags, probe"),
    ({"fpr": 1.2}, r"baseline.detector.fpr must lie in \[0, 1\], got 1.2"),
    ({"labels": 0}, "baseline.detector.labels must be a share below 1 of the pool, or a number up to .*pool=4000"),
    ({"labels": 500, "pool": 400}, "or a number up to baseline.detector.pool=400, got 500"),
    ({"pool": 0}, "baseline.detector.pool must be a number >= 1"),
    ({"layers": []}, "baseline.detector.layers must be layers that differ"),
    ({"layers": [1, 1]}, "baseline.detector.layers must be layers that differ"),
    ({"kind": "probe", "recall": 0.5}, "baseline.detector.recall=0.5 and precision=1.0 are of kind=flags"),
])
def test_a_knob_outside_its_range_is_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        from_mapping({"detector": settings}, BaselineConfig)


def test_what_a_probe_cannot_read_is_refused_before_the_run(parts, tmp_path):
    baseline = {"screen": True, "detector": {"kind": "probe", "layers": [2]}}
    with pytest.raises(ConfigError, match="baseline.detector.layers has 2, but .* has 2 layers, counted from 0; choose from"):
        pipeline.train(own_config(parts, tmp_path / "run", routing=NONE, baseline=baseline), [])
    few = {"screen": True, "detector": {"kind": "probe", "labels": 1}}
    with pytest.raises(ConfigError, match="labels=1 of pool=4000 labels 1 completions, and a probe needs 4 with a flag and 4 wi"):
        pipeline.train(own_config(parts, tmp_path / "run", routing=NONE, baseline=few), [])
    with pytest.raises(ConfigError, match="launch.strategy=fsdp2 cuts that model into shards; set launch=ddp"):
        make_plan(own_config(parts, tmp_path / "run", baseline=baseline, launch={"strategy": "fsdp2"}), RunFolder("run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_a_run_that_is_resumed_finds_alike(parts, tmp_path, adapter):
    changes = {"routing": NONE, "trainer": {"max_steps": 4}, "model": {"path": f"{parts}/model", "adapter": {"kind": adapter}},
               "baseline": {"penalty": 1.0, "detector": PROBE}}
    whole, stopped = (pipeline.train(own_config(parts, tmp_path / name, **changes), []) for name in ("whole", "stopped"))
    learned = (stopped / "detector" / "probe.safetensors").stat().st_mtime_ns
    for path in (stopped / "checkpoints" / "step-4").iterdir():
        path.unlink()
    pipeline.resume(str(stopped), [], lambda _: own_config(parts, stopped, **changes))
    assert (stopped / "detector" / "probe.safetensors").stat().st_mtime_ns == learned, "it is not learned again"
    first, second = ([{key: value for key, value in row.items() if key.startswith(("step", "baseline/", "environment/"))}
                      for row in MetricsFile(run / "metrics.jsonl").rows()] for run in (whole, stopped))
    assert first == second and [row["step"] for row in second] == [1, 2, 3, 4]


@pytest.mark.slow
def test_a_run_that_goes_back_has_the_same_probe(parts, tmp_path):
    given = [*typed(parts, tmp_path / "run", "routing=none", "baseline=screen", "baseline.detector.kind=probe",
                    "baseline.detector.pool=300", "baseline.detector.labels=150", "evaluation.samples=0", "discard=false")]
    run = pipeline.train(compose(given), given)
    back = pipeline.rollback(str(run), 2, [], False, [f"out={tmp_path}/back"], compose)
    for name in ("probe.safetensors", "detector.json"):
        assert (back / "detector" / name).read_bytes() == (run / "detector" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_the_labs_hacks_are_found_from_few_labels(seed):
    """Row 14's bar: AUROC of at least .95 on completions that were not labelled, from 5 % of the pool."""
    loaded = load_parts(compose(["baseline=screen", "baseline.detector.kind=probe", f"seed={seed}"]))
    settings = loaded.config.baseline.detector
    _, found = learned(loaded, base_completions(loaded, settings.pool, lambda *_: None), settings)
    assert found["labelled"] == 200 and found["held_out"]["completions"] == 3800
    assert found["held_out"]["auroc"] >= 0.95 and found["held_out"]["recall"] >= 0.9
    assert found["held_out"]["false_positive_rate"] == pytest.approx(0.05, abs=0.04)
