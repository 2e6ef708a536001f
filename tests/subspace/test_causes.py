import pytest
from hypothesis import given
from hypothesis import strategies as st

from routed_rl.subspace.causes import Effects, holm, judge, place

P = st.lists(st.floats(0, 1), min_size=1, max_size=8)


def test_holm_is_the_textbook_example():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


@given(P)
def test_a_corrected_p_is_never_smaller_keeps_the_order_and_stays_below_bonferroni(p_values):
    corrected = holm(p_values)
    for p, q in zip(p_values, corrected, strict=True):
        assert p <= q <= min(1.0, p * len(p_values)) + 1e-12
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    assert all(corrected[a] <= corrected[b] for a, b in zip(order, order[1:], strict=False))


def test_one_axis_is_not_corrected():
    assert holm([0.2]) == [0.2]


def test_the_place_counts_both_signs_and_ties():
    assert place(2.0, [0.0, 1.0, -1.9]) == 1 / 4
    assert place(-2.0, [2.0, 0.0, -3.0]) == 3 / 4
    assert place(0.0, [1.0] * 9) == 1


def test_what_harms_either_way_is_no_steering():
    drawn = [Effects(0.01 * k, -0.01 * k, 0.01 * k) for k in range(64)]
    found = judge(["signed", "harmful", "reversed"], [Effects(2, -1, 3), Effects(-5, -5, 0), Effects(-2, 2, 0)], drawn)
    signed, harmful, reversed_ = found["axes"]
    assert signed["p"] == pytest.approx(1 / 65) and signed["p_corrected"] == pytest.approx(3 / 65)
    assert harmful["steering"] == 0 and harmful["p"] == 1
    assert reversed_["p"] == pytest.approx(1 / 65) and signed["as_signed"] and not reversed_["as_signed"]
    assert signed["ablation_p_corrected"] == pytest.approx(3 / 65) and len(found["random"]["steering"]) == 64
