"""Law 10 of a LoRA: several processes give what one gives, however they share the model, the factors and the optimizer."""

from __future__ import annotations

from itertools import product

import pytest
from safetensors.torch import load_file

from routed_rl.pipeline.build import load_parts, make_subspace
from tests.parts import own_config
from tests.ranks import on_ranks
from tests.replay import ALL_TOKENS, relative_change, replay_config, train
from tests.training.test_distributed import needs, rows

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ADAMW = {"optim": "adamw_torch", "weight_decay": 0.1, "learning_rate": 5e-3}
JOBS = {"sgd": ("route", {"optim": "sgd", "learning_rate": 1.0}, "float32"), "adamw": ("route", ADAMW, "float32"),
        "observe": ("observe", ADAMW, "float32"), "bf16": ("route", ADAMW, "bfloat16")}
"""Mode, trainer, and the dtype of the weights below the LoRA."""
BARS = {"sgd": 1e-4, "adamw": 1e-3, "observe": 1e-3, "bf16": 5e-3}
STRATEGIES = ["ddp", "zero1", "zero2", "zero3", "fsdp2"]


@pytest.fixture(scope="module")
def subspaces(parts, tmp_path_factory):
    """By dtype of the weights, which the subspace is extracted from."""
    folder = tmp_path_factory.mktemp("subspaces")
    for dtype in ("float32", "bfloat16"):
        model = {"path": f"{parts}/model", "dtype": dtype, "adapter": {"kind": "lora"}}
        make_subspace(load_parts(own_config(parts, "unused", model=model))).save(folder / dtype)
    return folder


def lora_config(parts, out, processes, strategy, job, **trainer):
    mode, settings, dtype = JOBS[job]
    routing = {"mode": mode, "quarantine": {"sample_tokens": ALL_TOKENS}, "practice": {"share": 0.5 if mode == "route" else 0.0}}
    return replay_config(parts, out, processes, strategy, trainer=settings | trainer, routing=routing,
                         model={"path": f"{parts}/model", "dtype": dtype, "adapter": {"kind": "lora", "r": 4}})


def trained(parts, subspaces, out, processes, strategy, job, resume=None, **trainer):
    """What came out of each process."""
    needs(strategy)
    config = lora_config(parts, out, processes, strategy, job, **trainer)
    return on_ranks(train, config, subspaces / JOBS[job][2], str(resume) if resume else None, world=processes, timeout=900)


@pytest.fixture(scope="module")
def alone(parts, subspaces, tmp_path_factory):
    """One process, by job, with a checkpoint in the middle: what came out, and its folder."""
    made = {}

    def make(job):
        if job not in made:
            out = tmp_path_factory.mktemp(f"alone-{job}")
            made[job] = trained(parts, subspaces, out, 1, "none", job, save_steps=4)[0], out
        return made[job]

    return make


def differences(found, expected) -> dict[str, float]:
    """‖Δ - Δ'‖ / ‖Δ‖ of both factors' change, and of every environment's part."""
    def factor(result, name):
        return {key: value for key, value in result["change"].items() if f".lora_{name}." in key}

    parts = {f"{name}/{e}": relative_change({"": found["parts"][name][e]}, {"": part[e]})
             for name, part in expected["parts"].items() for e in range(len(part))}
    return {name: relative_change(factor(found, name), factor(expected, name)) for name in "AB"} | parts


@pytest.mark.parametrize(("strategy", "job"), [*product(STRATEGIES, ["sgd", "adamw", "observe"]),
                                               *product(["ddp", "zero2", "fsdp2"], ["bf16"])])
def test_every_way_to_share_a_lora_gives_what_one_process_gives(parts, subspaces, alone, tmp_path, strategy, job):
    expected, out = alone(job)
    ranks = trained(parts, subspaces, tmp_path / "run", 2, strategy, job)
    assert max(differences(ranks[0], expected).values()) < BARS[job]
    assert job == "observe" or ranks[0]["drift"] < 1e-6
    for name, part in ranks[0]["parts"].items():
        assert part.equal(ranks[1]["parts"][name]), f"{name} is not the same in both processes"
    # Both factors and their gradients at most; of the frozen weights, and of what has their width, nothing.
    environments, entries = 2, sum(part[0].numel() for part in ranks[0]["parts"].values())
    factors = sum(value.numel() for name, value in ranks[0]["change"].items() if ".lora_" in name)
    ours = ("ledger/", "quarantine/", "control/", "environment/", "routing/")
    for mine, whole in zip(rows(tmp_path / "run")[1:], rows(out)[1:], strict=True):  # the first measures the control too
        assert mine["routing/bytes"] <= ((environments + 1) * entries + 2 * factors) * 4
        keys = {key for key in whole if key.startswith(ours)} - {"routing/drift", "routing/routed_fraction"}
        assert keys == {key for key in mine if key.startswith(ours)} - {"routing/drift", "routing/bytes",
                                                                       "routing/routed_fraction"}
        assert strategy.startswith("zero") or mine["routing/routed_fraction"] == pytest.approx(
            whole["routing/routed_fraction"], rel=1e-2)
        for key in keys:
            assert mine[key] == pytest.approx(whole[key], rel=2e-2, abs=1e-4), key


@pytest.mark.parametrize("job", ["adamw", "observe"])
@pytest.mark.parametrize("strategy", ["ddp", "zero2", "zero3", "fsdp2"])
def test_a_loras_checkpoints_are_gone_on_with_whatever_wrote_them(parts, subspaces, alone, tmp_path, strategy, job):
    expected, out = alone(job)
    whole = trained(parts, subspaces, tmp_path / "shared", 2, strategy, job, save_steps=4)[0]
    steps = [folder / "checkpoints" / "step-4" for folder in (out, tmp_path / "shared")]
    ours, theirs = (load_file(step / "adapter_model.safetensors") for step in steps)
    assert {name: value.shape for name, value in ours.items()} == {name: value.shape for name, value in theirs.items()}
    back = trained(parts, subspaces, tmp_path / "back", 2, strategy, job, steps[0])[0]
    forth = trained(parts, subspaces, tmp_path / "forth", 1, "none", job, steps[1])[0]
    for found in (back, forth):
        assert max(differences(found, expected).values()) < BARS[job]
    again = trained(parts, subspaces, tmp_path / "again", 2, strategy, job, steps[1])[0]
    assert max(differences(again, whole).values()) == 0.0, "with as many processes it goes on bit for bit"
