import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from scaling.pruning import limit, max_margin, simulate

# Errors of students of an unpruned teacher at many examples per parameter, times alpha, as recalled from the
# literature on perceptrons: Gibbs .625, Bayes .442, and .50 for maximal margin.
GIBBS, BAYES, MAX_MARGIN = 0.625, 0.442, 0.50


def test_the_student_has_the_largest_margin():
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((40, 5))
    signed = np.sign(inputs[:, [0]]) * inputs
    student = max_margin(inputs, np.sign(inputs[:, 0]))
    shortest = minimize(
        lambda w: 0.5 * w @ w, np.array([9.0, 0, 0, 0, 0]), jac=lambda w: w, method="SLSQP",
        constraints={"type": "ineq", "fun": lambda w: signed @ w - 1, "jac": lambda w: signed},
        options={"ftol": 1e-14, "maxiter": 500},
    ).x  # fmt: skip
    assert student == pytest.approx(shortest / np.linalg.norm(shortest), abs=1e-6)
    assert np.linalg.norm(student) == pytest.approx(1.0, rel=1e-12)


def test_without_pruning_the_error_is_half_over_alpha():
    assert limit(200.0) * 200 == pytest.approx(MAX_MARGIN, rel=2e-3)


def test_a_simulation_without_pruning_lies_between_bayes_and_gibbs():
    found = simulate(12.0, dimension=60, trials=40, seed=1)
    assert BAYES + 0.02 < 12 * found.error < GIBBS - 0.05
    assert found.error == pytest.approx(MAX_MARGIN / 12, abs=4 * found.standard_error)


@pytest.mark.parametrize(
    ("alpha_tot", "keep", "theta", "which"),
    [
        (2.0, 1.0, 0.0, "hard"), (8.0, 1.0, 0.0, "hard"), (8.0, 0.3, 0.0, "hard"), (8.0, 0.3, 0.0, "easy"),
        (1.0, 0.6, 0.0, "hard"), (1.0, 0.6, 0.0, "easy"), (8.0, 0.3, 0.4, "hard"), (1.0, 0.6, 0.8, "easy"),
        (5.0, 0.5, np.pi / 2, "hard"),
    ],
)  # fmt: skip
def test_simulations_agree_with_the_limit_of_large_dimension(alpha_tot, keep, theta, which):
    found = simulate(alpha_tot, keep, theta, which, dimension=100, trials=30, seed=2)
    assert found.alpha == pytest.approx(alpha_tot * keep, rel=0.02)
    # four standard errors, and 1 / n for the finite dimension
    tolerance = 4 * found.standard_error + found.error / 100
    assert found.error == pytest.approx(limit(alpha_tot, keep, theta, which), abs=tolerance)


@pytest.mark.parametrize("error", [limit, lambda *at: simulate(*at, dimension=50, trials=30).error])
def test_abundant_data_favour_hard_examples_and_scarce_data_easy_ones(error):
    assert error(10.0, 0.3, 0.0, "hard") < error(10.0, 0.3, 0.0, "easy")
    assert error(1.0, 0.6, 0.0, "hard") > error(1.0, 0.6, 0.0, "easy")


def test_as_many_random_examples_are_worth_less_than_abundant_hard_ones_and_more_than_scarce_hard_ones():
    assert limit(10.0, 0.3, 0.0, "hard") < limit(3.0)
    assert limit(1.0, 0.6, 0.0, "hard") > limit(0.6)


def test_a_perfect_probe_beats_the_power_law():
    # Exponential in the paper: with more data to choose from, a fixed number of kept examples teaches ever more.
    errors = [limit(total, 5.0 / total) for total in (5.0, 10.0, 20.0)]
    assert errors[0] > 1.9 * errors[1] > 1.9 * 1.9 * errors[2]


@given(st.floats(2, 20), st.floats(0.5, 1.0))
@settings(max_examples=5, deadline=None)
def test_more_examples_lower_the_error(alpha_tot, keep):
    assert limit(1.5 * alpha_tot, keep) < limit(alpha_tot, keep)


def test_a_worse_probe_makes_pruning_to_the_hardest_harmful():
    errors = [limit(10.0, 0.3, theta) for theta in (0.0, 0.3, 0.8)]
    assert errors == sorted(errors)
    assert errors[0] < 1.1 * limit(10.0) < errors[1]


def test_a_probe_that_knows_nothing_gives_random_examples_with_less_of_one_direction():
    found = limit(10.0, 0.3, np.pi / 2)
    assert limit(10.0) < found < 1.6 * limit(3.0)


def test_all_examples_kept_the_probe_does_not_matter():
    at = [limit(4.0, 1.0, theta, which) for theta in (0.0, 0.7) for which in ("hard", "easy")]
    assert at == pytest.approx([at[0]] * 4, rel=1e-5)


def test_equal_seeds_give_equal_results():
    assert simulate(2.0, 0.5, seed=3) == simulate(2.0, 0.5, seed=3) != simulate(2.0, 0.5, seed=4)


@pytest.mark.parametrize(
    ("given_", "named"),
    [({"keep": 0.0}, "keep=0.0"), ({"theta": 2.0}, "theta=2.0"), ({"alpha_tot": -1.0}, "alpha_tot=-1.0"),
     ({"alpha_tot": 0.001}, "leave|one kept example")],
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused(given_, named):
    with pytest.raises(ValueError, match=named):
        simulate(**({"alpha_tot": 2.0} | given_))
