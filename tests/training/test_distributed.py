"""Law 10: several processes give what one gives on the same global batch; completions are replayed, so all see the same rows."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest

from routed_rl.pipeline.build import load_parts, make_subspace
from routed_rl.ranks import Ranks
from routed_rl.training.value import ValueHead
from tests.parts import own_config
from tests.ranks import on_ranks
from tests.replay import relative_change, replay_config, train
from tests.tiers import tiered

SGD, ADAMW = {"optim": "sgd", "learning_rate": 0.1}, {"optim": "adamw_torch", "weight_decay": 0.1}
JOBS = {"sgd": SGD, "adamw": ADAMW, "ppo": ADAMW | {"algorithm": "ppo"},
        # Where a value's error reaches the stream its scale shows, and under SGD the head's own rate.
        "ppo-stream": SGD | {"algorithm": "ppo", "value_detach": False, "value_learning_rate": 0.1,
                             "lr_scheduler_type": "linear"}}
BARS = {"sgd": 1e-4, "adamw": 1e-3, "ppo": 1e-3, "ppo-stream": 1e-4}


@pytest.fixture(scope="module")
def subspace(parts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("subspace") / "subspace"
    make_subspace(load_parts(own_config(parts, "unused"))).save(folder)
    return folder


@pytest.fixture(scope="module")
def alone(parts, subspace, tmp_path_factory):
    """One process, by job: what came out, and its folder."""
    made = {}

    def make(job):
        if job not in made:
            out = tmp_path_factory.mktemp(f"alone-{job}")
            config = replay_config(parts, out, 1, "none", trainer=dict(JOBS[job]))
            made[job] = on_ranks(train, config, subspace, world=1)[0], out
        return made[job]

    return make


def differences(found, expected) -> dict[str, float]:
    """‖ΔW - ΔW'‖ / ‖ΔW‖ of the weights, of every environment's part, and of PPO's value head, which begins at 0."""
    parts = {f"{name}/{e}": relative_change({"": found["parts"][name][e]}, {"": part[e]})
             for name, part in expected["parts"].items() for e in range(len(part))}
    head = {"head": relative_change({"": found["head"]}, {"": expected["head"]})} if "head" in expected else {}
    return {"weights": relative_change(found["change"], expected["change"])} | parts | head


def rows(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("job", "accumulation"), tiered(
    [("sgd", 2), ("adamw", 1), ("ppo", 1), ("ppo-stream", 2)], quick=[("adamw", 1)]))
def test_two_processes_give_what_one_gives(parts, subspace, alone, tmp_path, job, accumulation):
    expected, out = alone(job)
    settings = JOBS[job] | {"per_device_train_batch_size": 16 // accumulation, "gradient_accumulation_steps": accumulation}
    config = replay_config(parts, tmp_path / "run", 2, "ddp", trainer=settings)
    ranks = on_ranks(train, config, subspace)
    assert max(differences(ranks[0], expected).values()) < BARS[job]
    assert ranks[0]["drift"] < 1e-6  # float32 rounding
    assert "head" not in expected or ranks[0]["head"].equal(ranks[1]["head"])
    for name, part in ranks[0]["parts"].items():
        assert part.equal(ranks[1]["parts"][name]), f"{name} is not the same in both processes"
    ours = ("ledger/", "quarantine/", "control/", "environment/", "routing/", "train/value/")
    for mine, whole in zip(rows(tmp_path / "run"), rows(out), strict=True):
        assert mine["routing/bytes"] > 0
        keys = {key for key in whole if key.startswith(ours) and key != "routing/drift"}
        assert keys == {key for key in mine if key.startswith(ours)} - {"routing/drift", "routing/bytes"}
        for key in keys:
            if whole[key] is None:  # the explained variance of a step that pays everyone the same
                assert mine[key] is None, key
            else:
                assert mine[key] == pytest.approx(whole[key], rel=1e-2, abs=1e-4), key


def silent(config, subspace):
    """Training whose processes do not sum up what their backward has left."""
    Ranks.sum_ = lambda self, tensors: None
    return train(config, subspace)


@pytest.mark.slow
def test_without_the_reduction_they_do_not(parts, subspace, alone, tmp_path):
    config = replay_config(parts, tmp_path / "run", 2, "ddp", trainer=dict(SGD))
    ranks = on_ranks(silent, config, subspace)
    found = differences(ranks[0], alone("sgd")[0])
    assert min(value for name, value in found.items() if name != "weights") > 1e-2
    assert any(not part.equal(ranks[1]["parts"][name]) for name, part in ranks[0]["parts"].items())


def headless(config, subspace):
    """Training whose processes keep their own gradient of the value head."""
    ValueHead.average = lambda self: None
    return train(config, subspace)


@pytest.mark.slow
def test_without_the_reduction_of_its_gradient_every_process_has_a_value_head_of_its_own(parts, subspace, alone, tmp_path):
    config = replay_config(parts, tmp_path / "run", 2, "ddp", trainer=dict(JOBS["ppo-stream"]))
    ranks = on_ranks(headless, config, subspace)
    assert differences(ranks[0], alone("ppo-stream")[0])["head"] > 1e-2
    assert not ranks[0]["head"].equal(ranks[1]["head"])


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_checkpoint_of_two_processes_is_gone_on_with_by(parts, subspace, alone, tmp_path, processes):
    settings = ADAMW | {"save_steps": 4}
    first = replay_config(parts, tmp_path / "run", 2, "ddp", trainer=settings | {"max_steps": 4})
    on_ranks(train, first, subspace)
    then = replay_config(parts, tmp_path / "run", processes, "ddp" if processes > 1 else "none", trainer=dict(settings))
    found = on_ranks(train, then, subspace, str(tmp_path / "run" / "checkpoints" / "step-4"), world=processes)[0]
    assert max(differences(found, alone("adamw")[0]).values()) < BARS["adamw"]


def needs(strategy: str) -> None:
    if strategy.startswith("zero"):
        pytest.importorskip("deepspeed", reason="pip install 'routed-rl[deepspeed]'")


@pytest.mark.slow
@pytest.mark.timeout(1800)  # DeepSpeed compiles a helper when it is first used
@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3", "fsdp2"])
@pytest.mark.parametrize("job", JOBS)
def test_every_way_to_share_the_model_gives_what_one_process_gives(parts, subspace, alone, tmp_path, strategy, job):
    needs(strategy)
    config = replay_config(parts, tmp_path / "run", 2, strategy, trainer=dict(JOBS[job]))
    ranks = on_ranks(train, config, subspace, timeout=900)
    assert max(differences(ranks[0], alone(job)[0]).values()) < BARS[job]
    assert ranks[0]["drift"] < 1e-6
    # Ledgers, the weights' part in the subspace before the step and after it, and means: nothing as wide as a weight.
    environments, entries = 2, sum(part[0].numel() for part in ranks[0]["parts"].values())
    for row in rows(tmp_path / "run")[1:]:  # the first step measures the random control too
        assert row["routing/bytes"] <= (2 * environments + 1) * entries * 4


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("strategy", "job"), [("ddp", "ppo"), *product(["zero1", "zero2", "zero3", "fsdp2"], ["adamw", "ppo"])])
def test_checkpoints_are_gone_on_with_whatever_wrote_them(parts, subspace, alone, tmp_path, strategy, job):
    needs(strategy)
    settings = JOBS[job] | {"save_steps": 4}
    one, shared = (lambda out: replay_config(parts, out, 1, "none", trainer=dict(settings)),
                   lambda out: replay_config(parts, out, 2, strategy, trainer=dict(settings)))
    expected = alone(job)[0]
    on_ranks(train, one(tmp_path / "one"), subspace, world=1)
    on_ranks(train, shared(tmp_path / "shared"), subspace, timeout=900)
    back = on_ranks(train, shared(tmp_path / "back"), subspace, str(tmp_path / "one" / "checkpoints" / "step-4"), timeout=900)
    forth = on_ranks(train, one(tmp_path / "forth"), subspace, str(tmp_path / "shared" / "checkpoints" / "step-4"), world=1)
    for found in (back[0], forth[0]):
        assert max(differences(found, expected).values()) < BARS[job]
