"""Risks on random rows: contours against closed forms, Marchenko and Pastur's law, and drawn designs."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from data.problems import LinearProblem, power_law
from scaling.theory import equivalents
from scaling.theory.descent import gd_risk, ridge_risk
from scaling.theory.equivalents import largest_eigenvalue, ridge_equivalent, smallest_shift, spectral_equivalent


@st.composite
def problems(draw):
    """Flat, geometric, log-normal and spiked spectra, with a number of samples."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dimension, samples = draw(st.integers(1, 50)), draw(st.integers(1, 120))
    eigenvalues = {
        "flat": np.full(dimension, 3.0),
        "geometric": 2.0 ** -np.arange(dimension),
        "log-normal": np.exp(random.normal(0, 3, dimension)),
        "spiked": np.append(1e4, np.ones(dimension - 1)),
    }[draw(st.sampled_from(["flat", "geometric", "log-normal", "spiked"]))]
    noise = draw(st.sampled_from([0.0, 1e-3, 1.0, 10.0]))
    return LinearProblem(eigenvalues, random.normal(size=dimension), noise, 0.5), samples


@given(problems(), st.floats(-7, 2))
def test_the_contour_integrals_of_ridge_are_its_closed_form(given, log_penalty):
    problem, samples = given
    penalty = 10.0**log_penalty * problem.eigenvalues.max()
    found = spectral_equivalent(problem, lambda z: (penalty / (z + penalty))[None], 1 / penalty, samples)
    assert found[0] == pytest.approx(float(ridge_equivalent(problem, penalty, samples)), rel=1e-9)


@settings(max_examples=20)
@given(problems(), st.floats(0.2, 5))
def test_the_contour_may_lie_anywhere_around_the_spectrum(given, factor):
    problem, samples = given
    reach = 30 / problem.eigenvalues.max()
    found = [
        spectral_equivalent(problem, lambda z: np.exp(-reach * z)[None], around, samples)[0]
        for around in (reach, factor * reach)
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-8)


@given(problems(), st.floats(-3, 3))
def test_risks_do_not_depend_on_the_unit_of_the_features(given, log_unit):
    problem, samples = given
    unit = 10.0**log_unit
    other = LinearProblem(problem.eigenvalues * unit, problem.target / np.sqrt(unit), problem.noise_variance, 0.5)
    rate = 0.3 / largest_eigenvalue(problem.eigenvalues, samples)
    descents = gd_risk(problem, rate, 20, samples=samples), gd_risk(other, rate / unit, 20, samples=samples)
    assert descents[0] == pytest.approx(float(descents[1]), rel=1e-7)
    ridges = ridge_risk(problem, 0.1, samples=samples), ridge_risk(other, 0.1 * unit, samples=samples)
    assert ridges[0] == pytest.approx(float(ridges[1]), rel=1e-9)


def flat(dimension, noise=0.7, size=2.0):
    return LinearProblem(np.ones(dimension), np.full(dimension, np.sqrt(size / dimension)), noise)


def marchenko_pastur(value, ratio):
    """Mean of value(s) over the nonzero eigenvalues of S, per feature, for H = I and dimension / samples = ratio."""
    low, high = (1 - np.sqrt(ratio)) ** 2, (1 + np.sqrt(ratio)) ** 2

    def in_angle(angle):  # s = middle - half cos(angle): no square root is left at the edges
        s = (high + low) / 2 - (high - low) / 2 * np.cos(angle)
        return value(s) * ((high - low) / 2 * np.sin(angle)) ** 2 / (2 * np.pi * ratio * s)

    return quad(in_angle, 0, np.pi, epsabs=1e-12, epsrel=1e-11, limit=200)[0]


@pytest.mark.parametrize("samples", [25, 50, 60, 400])
@pytest.mark.parametrize("rates", [[0.1], [0.2] * 40, [0.3] * 10 + [0.05] * 100, [0.01, 0.34, 0.0, 0.2]])
def test_descent_with_equal_eigenvalues_is_an_integral_over_the_law_of_marchenko_and_pastur(samples, rates):
    problem, rates = flat(50), np.array(rates)
    ratio = 50 / samples

    def kept(s):
        return np.prod(1 - rates * s)

    unseen = max(0.0, 1 - samples / 50)
    bias = 2.0 * (marchenko_pastur(lambda s: kept(s) ** 2, ratio) + unseen)
    variance = 0.7 * ratio * marchenko_pastur(lambda s: (1 - kept(s)) ** 2 / s, ratio)
    assert gd_risk(problem, rates, samples=samples) == pytest.approx(bias + variance, rel=1e-8)


@pytest.mark.parametrize("samples", [10, 49, 51, 500])
def test_without_penalty_equal_eigenvalues_have_the_known_risks(samples):
    """Hastie, Montanari, Rosset, Tibshirani (arXiv:1903.08560)."""
    few = samples < 50
    bias, variance = (2 * (1 - samples / 50), samples / (50 - samples)) if few else (0.0, 50 / (samples - 50))
    assert ridge_risk(flat(50), 0.0, samples=samples) == pytest.approx(bias + 0.7 * variance, rel=1e-10)


def test_as_many_rows_as_features_have_an_infinite_risk_without_penalty_unless_nothing_is_noisy():
    assert ridge_risk(flat(50), 0.0, samples=50) == np.inf
    assert ridge_risk(flat(50, noise=0.0), 0.0, samples=50) == 0.0
    assert 10 < ridge_risk(flat(50), 1e-5, samples=50) < np.inf


@settings(max_examples=8)
@given(problems())
def test_endless_descent_is_ridge_without_penalty(given):
    problem, samples = given
    if samples == problem.dimension:
        samples += 1
    least = max(problem.eigenvalues.min(), smallest_shift(problem.eigenvalues, samples))
    assume(problem.eigenvalues.max() < 1e4 * least)
    rate = 1 / largest_eigenvalue(problem.eigenvalues, samples)
    found = gd_risk(problem, rate, 10**9, samples=samples)
    assert found == pytest.approx(float(ridge_risk(problem, 0.0, samples=samples)), rel=1e-5)


def test_a_billion_steps_are_as_exact_as_a_few():
    problem = power_law(60, 1.5, 2.0, noise_variance=1.0)
    rate = 1.5 / largest_eigenvalue(problem.eigenvalues, 40)
    end = float(ridge_risk(problem, 0.0, samples=40))
    np.testing.assert_allclose(gd_risk(problem, rate, 10**9, at=[10**8, 10**9], samples=40), end, rtol=1e-6)
    few = gd_risk(problem, rate, 10**9, at=[1, 10**3, 10**9], samples=40)[:2]
    np.testing.assert_allclose(few, gd_risk(problem, rate, 10**3, at=[1, 10**3], samples=40), rtol=1e-10)


def test_endless_rows_show_the_population_and_their_lack_tells_as_one_over_their_number():
    problem = power_law(30, 1.5, 2.0, noise_variance=1.0)
    for risk in (lambda **how: gd_risk(problem, 0.5, 50, **how), lambda **how: ridge_risk(problem, 0.05, **how)):
        gaps = [(risk(samples=count) - risk()) * count for count in (10**4, 10**6, 10**8)]
        assert gaps[1] == pytest.approx(gaps[2], rel=1e-3)
        assert gaps[0] == pytest.approx(gaps[2], rel=0.1)
        assert gaps[2] > 0


def test_the_order_of_the_rates_does_not_matter():
    problem, rates = power_law(30, 1.5, 2.0, noise_variance=1.0), np.geomspace(0.9, 0.01, 12)
    forth, back = (gd_risk(problem, each, samples=20) for each in (rates, rates[::-1]))
    assert forth == pytest.approx(float(back), rel=1e-10)


@pytest.mark.parametrize("samples", [50, 130])
def test_risks_are_those_of_drawn_designs(samples):
    problem, random = power_law(80, 1.3, 2.0, noise_variance=0.5), np.random.default_rng(samples)
    rate, at, penalty = 0.8, np.array([1, 10, 100, 1000]), np.array([1.0, 0.1, 0.01, 0.001])
    drawn = []
    for _ in range(300):
        design = random.normal(size=(samples, 80)) * np.sqrt(problem.eigenvalues)
        drawn.append([
            gd_risk(problem, rate, 1000, at=at, design=design),
            ridge_risk(problem, penalty, design=design),
        ])  # fmt: skip
    expected = [gd_risk(problem, rate, 1000, at=at, samples=samples), ridge_risk(problem, penalty, samples=samples)]
    error = np.std(drawn, axis=0) / np.sqrt(len(drawn)) / expected
    assert error.max() < 0.012
    gap = np.abs(np.mean(drawn, axis=0) / expected - 1)
    assert (gap < 3.5 * error + 0.7 / samples).all()


def test_the_largest_eigenvalue_is_that_of_drawn_rows():
    assert largest_eigenvalue(np.full(40, 3.0), 160) == pytest.approx(3 * 1.5**2, rel=1e-10)
    assert largest_eigenvalue(np.array([2.0]), 10**8) == pytest.approx(2 * (1 + 1e-4) ** 2, rel=1e-10)
    eigenvalues = np.linspace(1, 3, 400)
    rows = np.random.default_rng(0).normal(size=(800, 400)) * np.sqrt(eigenvalues)
    assert largest_eigenvalue(eigenvalues, 800) == pytest.approx(np.linalg.norm(rows, 2) ** 2 / 800, rel=0.02)


@given(problems())
def test_fewer_rows_than_features_regularise_so_that_as_many_features_are_free_as_rows(given):
    problem, samples = given
    shift, l = smallest_shift(problem.eigenvalues, samples), problem.eigenvalues
    if samples >= problem.dimension:
        assert shift == 0.0
    else:
        assert np.sum(l / (l + shift)) == pytest.approx(samples, rel=1e-9)


@settings(max_examples=15)
@given(problems())
def test_without_noise_no_risk_is_negative_and_more_steps_never_hurt_the_seen(given):
    problem, samples = given
    rate = 1 / largest_eigenvalue(problem.eigenvalues, samples)
    risks = gd_risk(problem.bias(), rate, 10**6, at=10 ** np.arange(7), samples=samples)
    assert (risks >= 0).all()
    assert (risks <= 1.001 * problem.bias().initial_risk * (1 + problem.dimension / samples)).all()


def test_integrals_that_have_not_converged_are_refused(monkeypatch):
    monkeypatch.setattr(equivalents, "_MOST_NODES", 64)
    problem = power_law(30, 1.5, 2.0, noise_variance=1.0)
    assert gd_risk(problem, 0.5, 20, samples=20) > 0
    with pytest.raises(ValueError, match=r"not converged with 64 nodes at lr \* steps = 5e\+05: ask for fewer steps"):
        gd_risk(problem, 0.5, 10**6, samples=20)


@pytest.mark.parametrize("samples", [0, -3, 2.5, np.nan])
def test_samples_that_do_not_count_rows_are_refused(samples):
    with pytest.raises(ValueError, match=rf"samples={samples} must be a whole number of rows"):
        ridge_risk(power_law(3, 1.5, 2.0, 1.0), 0.1, samples=samples)


def test_a_penalty_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match=r"penalty=nan must be 0 or more"):
        ridge_equivalent(power_law(3, 1.5, 2.0, 1.0), [0.1, np.nan], 4)
