"""Gradient descent and ridge regression on a given design and on the population, against the algorithms themselves."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.problems import LinearProblem, power_law
from scaling.theory.descent import descent_filter, gd_risk, ridge_filter, ridge_risk
from scaling.theory.sgd import sgd_risk


@st.composite
def designs(draw):
    """A problem and rows for it; sometimes fewer than features, sometimes not of full rank."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dimension, rows = draw(st.integers(1, 7)), draw(st.integers(1, 12))
    problem = LinearProblem(
        np.exp(random.normal(size=dimension)),
        random.normal(size=dimension),
        draw(st.sampled_from([0.0, 0.3, 2.0])),
        0.7,
    )
    design = random.normal(size=(rows, dimension))
    if draw(st.booleans()) and rows > 1:
        design[-1] = design[0]
    return problem, design


def risk_of(problem, design, bias, from_answers, in_sample):
    """Of w - w* = bias + from_answers @ noise, straight from the definition."""
    metric = design.T @ design / len(design) if in_sample else np.diag(problem.eigenvalues)
    variance = problem.noise_variance * np.trace(from_answers.T @ metric @ from_answers)
    return bias @ metric @ bias + variance + (0.0 if in_sample else problem.approximation_error)


def stable(design):
    return 1.9 * len(design) / np.linalg.norm(design, 2) ** 2


@given(designs(), st.lists(st.floats(0, 1), min_size=1, max_size=9), st.booleans())
def test_gradient_descent_has_the_risk_of_its_own_steps(given, shares, in_sample):
    problem, design = given
    rates = stable(design) * np.array(shares)
    bias, from_answers = -problem.target, np.zeros((problem.dimension, len(design)))
    expected = [risk_of(problem, design, bias, from_answers, in_sample)]
    for rate in rates:
        bias = bias - rate * design.T @ (design @ bias) / len(design)
        from_answers = from_answers - rate * design.T @ (design @ from_answers - np.eye(len(design))) / len(design)
        expected.append(risk_of(problem, design, bias, from_answers, in_sample))
    found = gd_risk(problem, rates, at=np.arange(len(rates) + 1), design=design, in_sample=in_sample)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-13)


@given(designs(), st.floats(-4, 3), st.booleans())
def test_ridge_has_the_risk_of_its_normal_equations(given, log_penalty, in_sample):
    problem, design = given
    penalty, rows = 10.0**log_penalty, len(design)
    inverse = np.linalg.inv(design.T @ design / rows + penalty * np.eye(problem.dimension))
    bias, from_answers = -penalty * inverse @ problem.target, inverse @ design.T / rows
    expected = risk_of(problem, design, bias, from_answers, in_sample)
    assert ridge_risk(problem, penalty, design=design, in_sample=in_sample) == pytest.approx(expected, rel=1e-8)


@given(designs())
def test_ridge_without_penalty_is_the_solution_of_smallest_norm(given):
    problem, design = given
    inverse = np.linalg.pinv(design)
    expected = risk_of(problem, design, (inverse @ design - np.eye(problem.dimension)) @ problem.target, inverse, False)
    assert ridge_risk(problem, 0.0, design=design) == pytest.approx(expected, rel=1e-7)
    assert ridge_risk(problem, 1e-14, design=design) == pytest.approx(expected, rel=1e-4)


@given(designs())
def test_an_infinite_penalty_leaves_the_risk_of_the_start(given):
    problem, design = given
    for how in ({"design": design}, {}, {"samples": 5}):
        assert ridge_risk(problem, np.inf, **how) == pytest.approx(problem.initial_risk, rel=1e-12)
        assert gd_risk(problem, 0.0, 10, **how) == pytest.approx(problem.initial_risk, rel=1e-9)
    start = np.mean((design @ problem.target) ** 2)
    assert ridge_risk(problem, np.inf, design=design, in_sample=True) == pytest.approx(start, rel=1e-9)


@given(designs())
def test_gradient_descent_ends_at_the_solution_of_smallest_norm(given):
    problem, design = given
    rate, rank = stable(design) / 2, np.linalg.matrix_rank(design)
    endless = gd_risk(problem, rate, 10**15, design=design)
    assert endless == pytest.approx(float(ridge_risk(problem, 0.0, design=design)), rel=1e-6)
    in_sample = gd_risk(problem, rate, 10**15, design=design, in_sample=True)
    assert in_sample == pytest.approx(problem.noise_variance * rank / len(design), rel=1e-9, abs=1e-12)


def test_gradient_descent_on_drawn_answers_has_the_expected_risk():
    random = np.random.default_rng(0)
    problem, runs = power_law(10, 1.5, 2.0, noise_variance=1.0), 4000
    design = random.normal(size=(25, 10)) * np.sqrt(problem.eigenvalues)
    rates = np.array([0.3, 0.2, 0.5, 0.1, 0.4, 0.3])
    answers = (design @ problem.target)[:, None] + random.normal(size=(25, runs))
    w = np.zeros((10, runs))
    for rate in rates:
        w -= rate * design.T @ (design @ w - answers) / 25
    risks = problem.eigenvalues @ (w - problem.target[:, None]) ** 2
    error = risks.std() / np.sqrt(runs)
    assert error < 0.02 * risks.mean()
    assert abs(risks.mean() - gd_risk(problem, rates, design=design)) < 3 * error


@given(st.lists(st.floats(0, 1.9), min_size=1, max_size=12))
def test_population_descent_contracts_every_coordinate_alone(rates):
    problem = LinearProblem(np.array([1.0, 0.5, 0.01]), np.array([1.0, -2.0, 3.0]), 5.0, 0.25)
    error = -problem.target
    expected = [problem.initial_risk]
    for rate in rates:
        error = error - rate * problem.eigenvalues * error
        expected.append(problem.eigenvalues @ error**2 + 0.25)
    np.testing.assert_allclose(gd_risk(problem, rates, at=np.arange(len(expected))), expected, rtol=1e-10)


def test_sgd_approaches_population_descent_as_one_over_its_batch():
    problem, rates = power_law(40, 1.5, 2.0, noise_variance=0.5), np.geomspace(0.9, 0.1, 30)
    descent = gd_risk(problem, rates, at=[5, 30])
    gaps = [(sgd_risk(problem, rates, batch, at=[5, 30]) - descent) * batch for batch in (1e3, 1e5, 1e7)]
    assert (gaps[2] > 0).all()
    np.testing.assert_allclose(gaps[1], gaps[2], rtol=1e-3)
    np.testing.assert_allclose(gaps[0], gaps[2], rtol=0.1)


def test_population_ridge_is_a_design_whose_rows_have_the_covariance_of_the_problem():
    problem = LinearProblem(np.array([2.0, 0.3, 0.05]), np.array([1.0, 2.0, -1.0]), noise_variance=0.0)
    rows = np.sqrt(3 * problem.eigenvalues) * np.eye(3)
    penalty = np.geomspace(1e-3, 10, 6).reshape(2, 3)
    found = ridge_risk(problem, penalty)
    assert found.shape == (2, 3)
    np.testing.assert_allclose(found, ridge_risk(problem, penalty, design=rows), rtol=1e-10)


@given(designs(), st.integers(0, 2**32 - 1))
def test_mixing_the_rows_of_a_design_by_a_rotation_changes_no_risk(given, seed):
    problem, design = given
    rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(design),) * 2))[0]
    rate = stable(design) / 2
    for in_sample in (False, True):
        mixed = gd_risk(problem, rate, 7, design=rotation @ design, in_sample=in_sample)
        assert mixed == pytest.approx(gd_risk(problem, rate, 7, design=design, in_sample=in_sample), rel=1e-8)


@given(designs())
def test_bias_and_variance_add_up(given):
    problem, design = given
    rate = 0.4 / problem.eigenvalues.sum()  # the largest of S is at most 4 tr H
    risks = {
        "ridge": lambda part: ridge_risk(part, 0.1, design=design),
        "descent": lambda part: gd_risk(part, rate, 5, samples=len(design)),
    }
    for risk in risks.values():
        parts = risk(problem.bias()) + risk(problem.variance()) + problem.approximation_error
        assert parts == pytest.approx(risk(problem), rel=1e-8)


@given(designs(), st.floats(-2, 3))
def test_slow_descent_is_in_sample_never_much_worse_than_ridge_at_the_matched_penalty(given, log_reach):
    """(1 - exp(-x)) (1 + x) / x is at most 1.2985: the constant 1.69 of Ali, Kolter, Tibshirani (arXiv:1810.10082)."""
    problem, design = given
    reach = 10.0**log_reach
    steps = int(1e5 * max(1.0, reach / stable(design)))
    descent = gd_risk(problem, reach / steps, steps, design=design, in_sample=True)
    assert descent <= 1.6863 * ridge_risk(problem, 1 / reach, design=design, in_sample=True) + 1e-15


def test_a_direction_with_next_to_no_rows_gains_the_sum_of_the_rates():
    found = descent_filter(np.array([0.0, 1e-30, 1e-12]), np.array([0.5, 0.25, 0.25, 1.0]), np.array([3, 4]))
    np.testing.assert_allclose(found.gain, [[1.0] * 3, [2.0] * 3], rtol=1e-11)
    np.testing.assert_allclose(1 - found.kept[:, 2], [1e-12, 2e-12], rtol=1e-3)


def test_a_direction_without_rows_gains_nothing_from_ridge_without_penalty():
    found = ridge_filter(np.array([0.0, 0.5]), np.array([0.0, 0.5, np.inf]))
    np.testing.assert_array_equal(found.kept, [[1, 0], [1, 0.5], [1, 1]])
    np.testing.assert_array_equal(found.gain, [[0, 2], [2, 1], [0, 0]])


def test_a_rate_that_kills_a_direction_at_once_or_overshoots_is_exact():
    found = descent_filter(np.array([1.0, 1.5]), np.asarray(1.0), np.array([0, 1, 2, 3]))
    np.testing.assert_allclose(found.kept, [[1, 1], [0, -0.5], [0, 0.25], [0, -0.125]], atol=1e-15)
    np.testing.assert_allclose(found.gain, [[0, 0], [1, 1], [1, 0.5], [1, 0.75]], atol=1e-15)


def test_risks_have_the_shape_of_what_was_asked_and_repeat_with_it():
    problem, design = power_law(4, 1.5, 2.0, 1.0), np.eye(4)
    asked = np.array([[9, 0], [3, 9]])
    for how in ({}, {"design": design}, {"samples": 8}):
        found = gd_risk(problem, 0.2, 9, at=asked, **how)
        assert found.shape == (2, 2)
        np.testing.assert_allclose([found[0, 0], found[1, 1]], gd_risk(problem, 0.2, 9, **how), rtol=1e-12)
        assert gd_risk(problem, np.full(9, 0.2), at=3, **how) == pytest.approx(found[1, 0], rel=1e-12)
        assert ridge_risk(problem, np.ones((3, 1)), **how).shape == (3, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": 2.0, "steps": 3}, r"lr=2 is unstable: the largest eigenvalue is 1, .* from\s+lr=2 on"),
        ({"lr": [0.1, 1.6], "design": 2 * np.eye(3)}, r"lr=1.6 is unstable.*1.33333.* from\s+lr=1.5"),
        ({"lr": 1.5, "steps": 3, "samples": 4}, r"lr=1.5 is unstable"),
        ({"lr": -0.1, "steps": 3}, r"lr=-0.1: a learning rate must be 0 or more"),
        ({"lr": [0.1, np.nan]}, r"lr=nan"),
        ({"lr": 0.1}, r"say how many steps"),
        ({"lr": [0.1, 0.1], "steps": 3}, r"lr has the shape \(2,\)"),
        ({"lr": 0.1, "steps": -1}, r"steps=-1"),
        ({"lr": 0.1, "steps": 3, "at": 4}, r"at=4"),
        ({"lr": 0.1, "steps": 3, "samples": 0}, r"samples=0 must be a whole number"),
        ({"lr": 0.1, "steps": 3, "samples": 4, "design": np.eye(3)}, r"a design or a number of samples, not both"),
        ({"lr": 0.1, "steps": 3, "samples": 4, "in_sample": True}, r"in_sample=True .*give the design"),
        ({"lr": 0.1, "steps": 3, "design": np.eye(4)}, r"design must be .* shape \(rows, 3\), not \(4, 4\)"),
    ],
)  # fmt: skip
def test_what_cannot_be_computed_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        gd_risk(LinearProblem(np.array([1.0, 0.5, 0.2]), np.ones(3), 1.0), **arguments)


def test_a_negative_penalty_is_refused():
    with pytest.raises(ValueError, match=r"penalty=-1.0 must be 0 or more"):
        ridge_risk(power_law(3, 1.5, 2.0, 1.0), [0.1, -1.0])
