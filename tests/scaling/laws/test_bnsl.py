import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.laws.bnsl import BNSL

FOUR_DIGITS = dict(BNSL().references[0].params)
WIDE = np.geomspace(1e2, 1e9, 40)
TWO = {"a": 0.05, "b": 3.0, "c0": 0.1, "c1": -0.3, "d1": 1e4, "f1": 0.4, "c2": 0.8, "r2": 300.0, "f2": 0.6}
CASES = {
    "no break": (BNSL(0), {"a": 1.5, "b": 30.0, "c0": 0.3}, WIDE),
    "four digits": (BNSL(1), FOUR_DIGITS, np.geomspace(10, 4096, 40)),
    "steeper": (BNSL(1), {"a": 0.2, "b": 3.0, "c0": 0.1, "c1": 0.5, "d1": 1e5, "f1": 0.4}, WIDE),
    "turning up": (BNSL(1), {"a": 0.2, "b": 3.0, "c0": 0.3, "c1": -0.4, "d1": 1e5, "f1": 0.4}, WIDE),
    "two breaks": (BNSL(2), TWO, np.geomspace(10, 1e9, 60)),
}
xs = st.floats(1, 10).map(lambda log: 10.0**log)


@pytest.mark.parametrize("case", CASES)
def test_exact_points_give_the_parameters_back(case, recovers):
    law, truth, x = CASES[case]
    recovers(law, truth, {"x": x})


@pytest.mark.parametrize("case", CASES)
def test_units_change_parameters_as_the_law_says(case, respects_units):
    law, truth, x = CASES[case]
    respects_units(law, truth, {"x": x})


@pytest.mark.parametrize(
    ("x", "y"), [(144, 2.145845411964482), (612.5836172918001, 1.6815325505756510), (983, 0.52090095)]
)
def test_the_authors_simulation_of_four_digit_addition_gives_these_values(x, y):
    # Arithmetic on the constants in ethancaballero/broken_neural_scaling_laws, noiseless simulation of Figure 4.
    assert BNSL().predict(FOUR_DIGITS, {"x": float(x)}) == pytest.approx(y, rel=1e-8)


@given(xs)
@settings(max_examples=20, deadline=None)
def test_no_break_is_a_power_law_with_a_floor(x):
    power = {k: FOUR_DIGITS[k] for k in ("a", "b", "c0")}
    expected = power["a"] + power["b"] * x ** -power["c0"]
    assert BNSL(0).predict(power, {"x": x}) == pytest.approx(expected, rel=1e-12)
    assert BNSL(1).predict(FOUR_DIGITS | {"c1": 0.0}, {"x": x}) == pytest.approx(expected, rel=1e-12)


@given(xs, xs, st.floats(0.05, 2.0), st.floats(-1, 2))
@settings(max_examples=30, deadline=None)
def test_the_formula_is_the_papers_where_that_does_not_overflow(x, d, f, c):
    p = {"a": 0.3, "b": 2.0, "c0": 0.2, "c1": c, "d1": d, "f1": f}
    expected = 0.3 + 2.0 * x**-0.2 * (1 + (x / d) ** (1 / f)) ** (-c * f)
    assert BNSL().predict(p, {"x": x}) == pytest.approx(expected, rel=1e-9)


def test_a_sharp_break_does_not_overflow():
    sharp = FOUR_DIGITS | {"f1": 1e-3}
    near, far = BNSL().predict(sharp, {"x": np.array([1.0, 1e30])})
    assert near == pytest.approx(sharp["a"] + sharp["b"], rel=1e-9)
    assert far == pytest.approx(sharp["a"], rel=1e-9)


@pytest.mark.parametrize(("x", "slope"), [(1e-3, 0.1), (1e5, 0.1 - 0.3), (1e12, 0.1 - 0.3 + 0.8)])
def test_exponents_add_up_from_segment_to_segment(x, slope):
    p = TWO | {"r2": 1e3, "f1": 0.05, "f2": 0.05}
    low, high = (BNSL(2).predict(p, {"x": x * step}) - p["a"] for step in (0.99, 1.01))
    assert -np.log(high / low) / np.log(1.01 / 0.99) == pytest.approx(slope, rel=1e-6)


def test_breaks_are_ascending_and_in_units_of_x():
    assert BNSL(2).break_points(TWO) == [1e4, 3e6]
    assert BNSL(2).names == ("a", "b", "c0", "c1", "d1", "f1", "c2", "r2", "f2")


def test_a_negative_number_of_breaks_is_refused():
    with pytest.raises(ValueError, match="breaks=-1"):
        BNSL(-1)


def test_the_law_says_how_to_make_it_again():
    assert BNSL(3).spec() == {"_target_": "scaling.laws.BNSL", "breaks": 3}
