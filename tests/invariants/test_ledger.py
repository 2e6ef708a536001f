"""Laws 1, 2 and 9 as a run reports them: rows of the router that the trainer drives."""

import copy

import pytest
import torch

from routed_rl.errors import ModelError
from routed_rl.routing import Rates
from tests.builders import WIDTH, Batch, Run, batch, relative, tiny

NAMES = ["alpha", "beta", "gamma"]


def trained(mode: str = "route", control: int = 2, **settings) -> Run:
    return Run(tiny("llama"), mode=mode, environments=3, names=settings.pop("names", NAMES), control=control, **settings)


def step(run: Run, rows: Batch | None = None) -> dict[str, float]:
    run.backward(rows or batch(seed=run.steps, rows=6, environments=(0, 1, 2)))
    return run.step()


def of(row: dict[str, float], quantity: str) -> list[float]:
    """A quantity of the ledger, of every environment."""
    return [row[f"ledger/{name}/{quantity}"] for name in NAMES]


def entry(row: dict[str, float], name: str) -> dict[str, float]:
    return {key.removeprefix(f"ledger/{name}/"): value for key, value in row.items() if key.startswith(f"ledger/{name}/")}


def control(row: dict[str, float]) -> dict[str, float]:
    return {key.removeprefix("control/"): value for key, value in row.items() if key.startswith("control/")}


def test_pushes_sum_to_the_growth_and_shares_to_the_whole():
    run = trained()
    for _ in range(5):
        row = step(run)
        layers = [value for key, value in row.items() if key.startswith("quarantine/layer/")]
        assert row["quarantine/norm"] > 1e-2 and row["quarantine/growth"] != 0
        assert sum(of(row, "push")) == pytest.approx(row["quarantine/growth"], abs=1e-6)  # float32 parts
        assert abs(row["quarantine/unattributed"]) < 1e-6
        assert sum(of(row, "share")) == pytest.approx(1, abs=1e-5)
        assert row["routing/drift"] < 2e-7
        assert sum(norm**2 for norm in layers) == pytest.approx(row["quarantine/norm"]**2) and len(layers) == 2
    assert run.router.pushes["alpha"] != 0
    assert sum(run.router.pushes.values()) == pytest.approx(row["quarantine/norm"], abs=1e-5)  # C started at zero.


def test_what_the_parts_do_not_explain_is_booked_as_unattributed_when_only_observed():
    rows = [step(run) for run in [trained("observe")] for _ in range(3)]
    for row in rows:
        rest = row["quarantine/growth"] - sum(of(row, "push"))
        assert row["quarantine/unattributed"] == pytest.approx(rest, abs=1e-9) and abs(rest) > 1e-3


@pytest.mark.parametrize("mode", ["route", "observe"])
def test_the_routed_fraction_is_the_ledgers_share_of_the_whole_gradient(mode):
    """Of a contained gradient the ledger's part is missing in the weights' own; an open one holds it."""
    run = trained(mode)
    run.backward(batch())
    routed = sum(target.tape.ledger.sum(0).square().sum() for target in run.targets)
    own = sum(target.module.weight.grad.square().sum() for target in run.targets)
    expected = (routed / (own + routed if mode == "route" else own)).item()
    assert run.step()["routing/routed_fraction"] == pytest.approx(expected, rel=1e-4) and 0 < expected < 1


def test_erase_has_a_ledger_but_no_quarantine():
    row = step(trained("erase"))
    assert row["quarantine/norm"] == row["quarantine/growth"] == 0 and row["routing/drift"] < 2e-7
    assert min(of(row, "norm")) > 0 and not any(of(row, "part_norm"))


def test_swapping_two_environments_swaps_their_entries():
    ours, theirs = trained(), trained(names=["beta", "alpha", "gamma"])
    for number in range(3):
        rows = batch(seed=number, rows=6, environments=(0, 1, 2))
        a, b = step(ours, rows), step(theirs, copy.deepcopy(rows))
    # Rows with label 0 are alpha's in one run and beta's in the other, and all else is equal.
    for one, other in {"alpha": "beta", "beta": "alpha", "gamma": "gamma"}.items():
        assert entry(a, one) == entry(b, other)
    assert entry(a, "alpha") != entry(a, "beta")


def test_the_persona_shift_is_the_direct_effect_of_a_part_at_the_mean_input():
    run = trained()
    for _ in range(3):
        row = step(run)
    for e, name in enumerate(NAMES):
        for j, (axis, scales) in enumerate({"hacker": (2.0, 4.0), "careless": (1.0, 1.0)}.items()):
            stream, along = torch.zeros(WIDTH), []
            for layer in (0, 1):
                for target in run.targets:
                    if target.layer == layer:
                        stream = stream + target.pair.write @ (target.parts[e] @ target.tape.mean())
                along.append((stream @ run.axes.directions[layer][:, j] / scales[layer]).item())
            # The builder's layers weigh 1 and one half.
            mean = (2 * along[0] + along[1]) / 3
            assert row[f"ledger/{name}/shift/{axis}"] == pytest.approx(mean, rel=1e-4, abs=1e-7)


def test_going_on_from_a_saved_state_gives_the_same_rows_bit_for_bit():
    first, second = trained(), trained()
    for _ in range(3):
        step(first)
    second.steps = 3
    second.model.load_state_dict(copy.deepcopy(first.model.state_dict()))
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    second.router.load_state_dict(first.router.state_dict())
    for _ in range(3):
        assert step(first) == step(second)
    assert first.router.pushes == second.router.pushes
    assert step(trained()) != step(first)


def test_random_bases_are_measured_every_so_many_steps_taking_turns_and_change_nothing_else():
    measured, plain = trained(control=2), trained(control=0)
    for number in range(5):
        row, other = step(measured), step(plain)
        kinds = {key.split("/")[0] for key in control(row)}
        assert kinds == [{"isotropic"}, set(), {"matched"}, set(), {"isotropic"}][number]
        assert not control(other)
        assert {key: value for key, value in row.items() if not key.startswith("control/")} == other
        for key, value in control(row).items():
            assert value > 0 and (not key.endswith("rank") or 1 <= value <= 5)


def test_a_writer_the_loss_never_reaches_is_an_error_in_the_first_step():
    run, rows = trained(), batch()
    run.router.set_batch(rows.environments, rows.mask)
    with pytest.raises(ModelError, match=r"no gradient reached model\.layers\.0\.self_attn\.o_proj"):
        run.router.after_step(0, clip=1.0, rates=Rates(run.optimizer.param_groups))


def test_clipping_scales_what_is_booked_and_nothing_of_a_scale_free_step():
    whole, clipped = trained(), trained(clip=0.05)
    entries, moments, gradient = [], [], []
    for run in (whole, clipped):
        run.backward(batch())
        gradient.append(torch.cat([p.grad.flatten() for p in run.parameters if p.grad is not None]).norm().item())
        entries.append(of(run.step(), "norm"))
        moments.append(run.router.optimizer.moments[run.targets[0].name].first_EKN)
    assert gradient[0] == gradient[1] > 0.1
    assert entries[0] == pytest.approx(entries[1], rel=1e-5)
    assert relative(moments[1] / (0.05 / (gradient[0] + 1e-6)), moments[0]) < 1e-5
