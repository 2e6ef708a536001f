"""Law 10 of routing by labels: several processes give what one gives on the same global batch."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from torch import Tensor

from routed_rl.artifacts import RunFolder
from routed_rl.config import Config
from routed_rl.pipeline.build import load_parts, make_router
from routed_rl.routing.labels import LabelRouter
from routed_rl.training.backends import join
from routed_rl.training.build import build_trainer
from routed_rl.training.plan import make_plan
from routed_rl.training.whole import whole_weights
from tests.ranks import on_ranks
from tests.replay import replay_config, replayed
from tests.training.test_distributed import rows

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

KINDS: dict[str, dict[str, Any]] = {
    "weights": {}, "lora": {"model": {"adapter": {"kind": "lora", "r": 4}}, "labels": {"balanced": False}},
    "cut": {"labels": {"method": "activations", "unit": "token", "balanced": False}}}


def labels_config(parts, out, processes: int, strategy: str, kind: str, **trainer: Any) -> Config:
    changes = {"model": {"path": f"{parts}/model"} | KINDS[kind].get("model", {})}
    routing = {"mode": "labels", "practice": {"share": 0}, "labels": {"rank": 3, "pace": 0.01} | KINDS[kind].get("labels", {})}
    settings = {"optim": "sgd", "learning_rate": 0.5, "max_steps": 8, "save_steps": 4} | trainer
    return replay_config(parts, out, processes, strategy, trainer=settings, routing=routing, **changes)


def train(config: Config, resume: str | None = None) -> dict[str, Tensor]:
    """Train on replayed completions; all weights and factors afterwards, whole."""
    loaded = load_parts(config)
    if config.launch.strategy != "none":
        join(config.launch)
    router, run = make_router(loaded, None), RunFolder(config.out or "")
    run.path.mkdir(parents=True, exist_ok=True)
    trainer = build_trainer(make_plan(config, run), loaded.learner, loaded.tokenizer, loaded.trained, router)
    replayed(trainer)
    trainer.train(resume_from_checkpoint=resume)
    assert isinstance(router, LabelRouter)
    return {name: value.clone() for name, value in (whole_weights(loaded.model) | router.quarantine.state_dict()).items()}


@pytest.fixture(scope="module")
def alone(parts, tmp_path_factory):
    made = {}

    def make(kind):
        if kind not in made:
            out = tmp_path_factory.mktemp(f"alone-{kind}")
            made[kind] = on_ranks(train, labels_config(parts, out, 1, "none", kind), world=1)[0], out
        return made[kind]

    return make


def furthest(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert found.keys() == expected.keys()
    return max((found[name] - value).abs().max().item() for name, value in expected.items())


@pytest.mark.parametrize(("strategy", "kind", "accumulation"), [*product(["ddp", "fsdp2"], KINDS, [1]), ("ddp", "weights", 2)])
def test_two_processes_give_what_one_gives(parts, alone, tmp_path, strategy, kind, accumulation):
    expected, out = alone(kind)
    settings = {"per_device_train_batch_size": 16 // accumulation, "gradient_accumulation_steps": accumulation}
    ranks = on_ranks(train, labels_config(parts, tmp_path / "run", 2, strategy, kind, **settings))
    assert furthest(ranks[0], expected) < 2e-6
    base = load_parts(labels_config(parts, out, 1, "none", kind)).model.state_dict()
    assert max((expected[name] - value).abs().max().item() for name, value in base.items()) > 1e-3
    assert all(value.equal(ranks[1][name]) for name, value in ranks[0].items()), "the processes have other numbers"
    assert any(row["labels/flagged"] > 0 for row in rows(out))
    for mine, whole in zip(rows(tmp_path / "run"), rows(out), strict=True):
        assert mine["labels/flagged"] == whole["labels/flagged"]
        assert mine["quarantine/norm"] == pytest.approx(whole["quarantine/norm"], rel=1e-4)


def silent(config: Config) -> dict[str, Tensor]:
    LabelRouter._average = lambda self: None
    return train(config)


def test_without_the_average_of_its_gradients_every_process_has_a_quarantine_of_its_own(parts, alone, tmp_path):
    ranks = on_ranks(silent, labels_config(parts, tmp_path / "run", 2, "ddp", "weights"))
    factors = [name for name in ranks[0] if name.endswith((".up", ".down"))]
    assert not any(ranks[0][name].equal(ranks[1][name]) for name in factors)
    assert furthest(ranks[0], alone("weights")[0]) > 1e-3


def test_a_checkpoint_of_two_processes_is_gone_on_with_by_one_and_by_two(parts, alone, tmp_path):
    expected, out = alone("weights")
    whole = on_ranks(train, labels_config(parts, tmp_path / "whole", 2, "ddp", "weights"))[0]
    for place, (processes, strategy, step) in enumerate([(1, "none", tmp_path / "whole"), (2, "ddp", out)]):
        config = labels_config(parts, tmp_path / str(place), processes, strategy, "weights")
        found = on_ranks(train, config, str(step / "checkpoints" / "step-4"), world=processes)[0]
        assert furthest(found, expected) < 2e-6
    again = labels_config(parts, tmp_path / "again", 2, "ddp", "weights")
    found = on_ranks(train, again, str(tmp_path / "whole" / "checkpoints" / "step-4"))[0]
    assert furthest(found, whole) == 0.0, "with as many processes it goes on bit for bit"
