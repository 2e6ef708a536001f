"""Law 9: swap what two environments do, and the attribution is swapped; and the step does not care about units."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import PROPERTY, Run, batch, relative, tiny


def renamed(rows, names):
    rows.environments = torch.tensor(names)[rows.environments]
    return rows


@PROPERTY
@given(st.permutations([0, 1, 2]), st.integers(0, 100))
def test_renaming_environments_permutes_their_parts(names, seed):
    model = tiny("llama", layers=1, seed=seed)
    ours, theirs = Run(copy.deepcopy(model), environments=3), Run(model, environments=3)
    for step in range(2):
        rows = batch(seed=seed + step, rows=6, environments=(0, 1, 2))
        ours.backward(rows)
        theirs.backward(renamed(rows, names))
        ours.step()
        theirs.step()
    for a, b in zip(ours.targets, theirs.targets, strict=True):
        for e, name in enumerate(names):
            assert relative(b.parts[name], a.parts[e]) < 1e-4  # Sums over environments take another order.


def _pulled(along_first: float, along_second: float) -> Run:
    """Environment 0 is paid to raise token 5, environment 1 to raise it, too, or to lower it."""
    run = Run(tiny("llama"), environments=2)
    for step in range(8):
        rows = batch(seed=step)
        rows.ids[:, 1:] = torch.where(rows.mask[:, 1:] == 1, 5, 0)
        rows.advantages = torch.where(rows.environments == 0, along_first, along_second)
        run.backward(rows)
        run.step()
    return run


def test_environments_that_pull_together_have_parts_that_agree_and_opposite_ones_do_not():
    def cosine(run: Run) -> float:
        parts = torch.cat([t.parts.flatten(1) for t in run.targets], 1)
        return torch.cosine_similarity(parts[0], parts[1], dim=0).item()
    assert cosine(_pulled(1.0, 1.0)) > 0.5
    assert cosine(_pulled(1.0, -1.0)) < -0.5


def test_the_environment_that_pays_for_a_direction_is_the_one_whose_part_moves_along_it():
    for paid in (0, 1):
        run = _pulled(*(1.0 if e == paid else 0.0 for e in (0, 1)))
        norms = [sum(t.parts[e].norm().item() for t in run.targets) for e in (0, 1)]
        assert norms[paid] > 1e-2 and norms[1 - paid] == 0.0


@pytest.mark.parametrize("factor", [2.0**10, 2.0**-10])
def test_the_unit_of_the_reward_does_not_change_the_quarantines_step(factor):
    deltas = []
    for scale in (1.0, factor):
        run = Run(tiny("llama"))
        run.backward(batch(), scale=scale)
        run.step()
        deltas.append([target.parts for target in run.targets])  # They started at zero.
    for ours, theirs in zip(*deltas, strict=True):
        assert ours.any()
        assert relative(theirs, ours) < 1e-6  # A power of two changes no mantissa but eps' share.
