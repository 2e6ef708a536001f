"""What groups carry adds up to the whole difference, whatever the groups do to each other."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routed_rl.audit.contributions import contributions, models_to_measure
from tests.builders import PROPERTY

GROUPS = {"a": ["w1", "w2"], "b": ["w3"], "c": ["w4"]}


def measured(value, groups=GROUPS):
    """`value(what is still there)` for every model that is needed."""
    everything = frozenset().union(*groups.values())
    return {one: {"hack": value(everything - one)} for one in models_to_measure(groups)}


@PROPERTY
@given(st.integers(1, 6), st.randoms(use_true_random=False))
def test_what_the_groups_carry_sums_to_deployed_minus_base(count, draw):
    groups = {f"g{i}": [f"w{i}"] for i in range(count)}
    random = measured(lambda _there: draw.random(), groups)
    whole, nothing = frozenset(f"w{i}" for i in range(count)), frozenset()
    found = contributions(groups, random)
    total = math.fsum(group["hack"].carried for group in found.values())
    assert total == pytest.approx(random[nothing]["hack"] - random[whole]["hack"], abs=1e-12)
    for name, names in groups.items():
        assert found[name]["hack"].alone == random[nothing]["hack"] - random[frozenset(names)]["hack"]


def test_a_hack_that_one_group_carries_is_that_groups_and_nobody_elses():
    found = contributions(GROUPS, measured(lambda there: 0.3 if "w3" in there else 0.0))
    assert {name: (part["hack"].carried, part["hack"].alone) for name, part in found.items()} == {
        "a": (0, 0), "b": (0.3, 0.3), "c": (0, 0)}


def test_a_hack_that_needs_two_groups_is_shared_though_each_alone_takes_all_of_it_away():
    found = contributions(GROUPS, measured(lambda there: float({"w1", "w4"} <= there)))
    assert [found[name]["hack"].carried for name in "abc"] == [0.5, 0, 0.5]
    assert [found[name]["hack"].alone for name in "abc"] == [1, 0, 1]


def test_a_hack_that_either_of_two_groups_is_enough_for_is_shared_though_neither_alone_matters():
    found = contributions(GROUPS, measured(lambda there: float(bool({"w1", "w4"} & there))))
    assert [found[name]["hack"].carried for name in "abc"] == [0.5, 0, 0.5]
    assert [found[name]["hack"].alone for name in "abc"] == [0, 0, 0]


def test_a_measure_that_some_model_lacks_is_left_out():
    values = measured(lambda there: 1.0)
    values[frozenset(["w3"])] = {}
    assert all(part == {} for part in contributions(GROUPS, values).values())
