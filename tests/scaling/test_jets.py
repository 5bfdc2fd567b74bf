import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling import jets

number = st.floats(0.3, 2.5)
ROWS = np.array([0.5, 1.0, 3.0])

FORMULAS = {
    "power law": lambda e, a, b: e + a * ROWS**-b,
    "quotients": lambda e, a, b: 1.0 / (e + a) - (2.0 - b) / ROWS + a / b,
    "products": lambda e, a, b: (e + a * ROWS) * (a + b) * (b * e) + a * a,
    "powers": lambda e, a, b: (a + ROWS) ** b * e**2.5 - (-e) * a**-1.0,
    "functions": lambda e, a, b: jets.log(e + jets.exp(a * ROWS)) + jets.expm1(-b * ROWS) * jets.log1p(a * e),
}


@pytest.mark.parametrize("name", FORMULAS)
@given(point=st.tuples(number, number, number))
@settings(max_examples=15, deadline=None)
def test_first_derivatives_agree_with_complex_steps_and_second_with_differences_of_first(name, point):
    formula = FORMULAS[name]
    x = np.array(point)
    jet = formula(*jets.variables(x[None]))
    assert jet.value[0] == pytest.approx(formula(*x), rel=1e-13)
    for i in range(3):
        step = np.zeros(3, complex)
        step[i] = 1e-30j
        exact = formula(*(x + step)).imag / 1e-30
        assert np.broadcast_to(jet.grad.get(i, 0.0), (1, 3))[0] == pytest.approx(exact, rel=1e-12, abs=1e-12)
        h = 1e-5
        for j in range(3):
            step = np.zeros((1, 3))
            step[0, j] = h
            ahead, behind = (formula(*jets.variables(x[None] + s)).grad.get(i, 0.0) for s in (step, -step))
            slope = np.broadcast_to((np.asarray(ahead) - np.asarray(behind)) / (2 * h), (1, 3))[0]
            second = np.broadcast_to(jet.hess.get((min(i, j), max(i, j)), 0.0), (1, 3))[0]
            assert second == pytest.approx(slope, rel=1e-5, abs=1e-6 * (1 + np.abs(jet.value).max()))


def test_second_derivatives_of_the_chinchilla_formula_agree_with_its_closed_form():
    e, a, b, x = 1.7, 2.0, 0.4, np.array([2.0, 5.0])
    jet = jets.variables(np.array([[e, a, b]]))
    found = jet[0] + jet[1] * x ** -jet[2]
    assert found.hess[1, 2] == pytest.approx((-np.log(x) * x**-b)[None], rel=1e-14)
    assert found.hess[2, 2] == pytest.approx((a * np.log(x) ** 2 * x**-b)[None], rel=1e-14)
