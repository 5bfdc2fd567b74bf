"""Logistic regression with steps of any size: against brute force, exact limits, and what is proved of it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from data.separable import LogisticModel, LogisticProblem, separable
from scaling.theory.logistic import (
    STABLE,
    adaptive_bound,
    adaptive_gd,
    average_loss_bound,
    critical_lr,
    log_loss,
    logistic_gd,
    logistic_optima,
    logistic_optimum,
    max_margin,
    monotone_from,
    phase_bound,
    sharpness,
)
from scaling.theory.logistic_paths import early_stopping_path, population_error, population_risk, scored

# the two rows of which docs/theory.md gives thresholds and step counts: margin 0.2, opposed across it
TWO = LogisticProblem(np.array([[0.2, 0.96**0.5], [-0.2, 0.96**0.5 / 2]]), np.array([1.0, -1.0]))


def noisy(samples, dimension, seed):
    """Rows and labels that have nothing to do with each other."""
    rng = np.random.default_rng(seed)
    return LogisticProblem(rng.standard_normal((samples, dimension)), rng.choice([-1.0, 1.0], samples))


def slope(function, w, width=1e-6):
    """Its gradient at w (d,), by central differences."""
    steps = width * np.eye(len(w))
    return np.array([(function(w + step) - function(w - step)) / (2 * width) for step in steps])


# losses and steps


def test_the_loss_is_the_mean_of_log_one_plus_exp_and_the_penalty():
    problem, w = noisy(7, 3, 0), np.array([0.3, -2.0, 1.0])
    margins = problem.labels * (problem.rows @ w)
    assert np.exp(log_loss(problem, w)) == pytest.approx(np.log(1 + np.exp(-margins)).mean(), rel=1e-13)
    assert np.exp(log_loss(problem, w, loss="exponential")) == pytest.approx(np.exp(-margins).mean(), rel=1e-13)
    with_penalty = np.log(1 + np.exp(-margins)).mean() + 0.05 * (w @ w)
    assert np.exp(log_loss(problem, w, penalty=0.1)) == pytest.approx(with_penalty, rel=1e-13)
    assert log_loss(problem, np.stack([w, w]), penalty=0.1).shape == (2,)


def test_losses_of_huge_margins_are_exact_where_floats_end():
    problem = LogisticProblem(np.array([[1.0], [3.0]]), np.array([1, 1]))
    right, wrong = log_loss(problem, [[1e5], [-1e5]])
    assert right == pytest.approx(-1e5 - np.log(2), rel=1e-15)
    assert wrong == pytest.approx(np.log(2e5), rel=1e-15)
    near = np.array([[30.1], [36.0], [36.9], [37.1], [38.0]])  # about where the exponential takes over
    np.testing.assert_allclose(log_loss(problem, near), np.log(np.log1p(np.exp(-near[:, 0])) / 2), rtol=0, atol=1.5e-14)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), lr=st.floats(0.01, 50.0), penalty=st.sampled_from([0.0, 0.01, 1.0]))
def test_a_step_is_the_rate_times_the_gradient_of_the_penalised_loss(seed, lr, penalty):
    run = logistic_gd(noisy(6, 3, seed), [0.3, lr], penalty=penalty)
    gradient = slope(lambda w: np.exp(log_loss(noisy(6, 3, seed), w, penalty=penalty)), run.iterates[1])
    np.testing.assert_allclose(run.iterates[1] - run.iterates[2], lr * gradient, atol=1e-8 * (1 + lr))
    assert not run.iterates[0].any()
    np.testing.assert_allclose(
        run.losses, np.exp(log_loss(noisy(6, 3, seed), run.iterates, penalty=penalty)), rtol=1e-14
    )


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), lr=st.floats(0.01, 3.0))
def test_an_adaptive_step_descends_the_transformed_loss(seed, lr):
    problem = noisy(6, 3, seed)
    transforms = {
        "exponential": lambda w: log_loss(problem, w, loss="exponential"),
        "logistic": lambda w: np.log(np.expm1(np.exp(log_loss(problem, w)))),
    }
    for loss, transform in transforms.items():
        run = adaptive_gd(problem, [0.3, lr], loss=loss)
        np.testing.assert_allclose(
            run.iterates[1] - run.iterates[2], lr * slope(transform, run.iterates[1]), atol=1e-7 * (1 + lr)
        )


def test_adaptive_steps_do_not_shrink_with_the_loss():
    """On one row, y x = 2, the transformed loss is linear with slope -2, of either kind, down to exp(-4e8)."""
    problem = LogisticProblem(np.array([[-2.0]]), np.array([-1]))
    for loss in ("exponential", "logistic"):
        run = adaptive_gd(problem, 1e4, 10_000, loss=loss, at=[0, 1, 10_000])
        np.testing.assert_allclose(run.iterates[:, 0], [0, 2e4, 2e8], rtol=1e-12)
        np.testing.assert_allclose(run.log_losses[1:], [-4e4, -4e8], rtol=1e-12)


def test_asked_steps_are_those_of_the_whole_run_and_means_are_of_the_iterates_before():
    problem, rates = separable(9, 4, 0.1, 0), np.linspace(0.5, 30.0, 40)
    whole, some = logistic_gd(problem, rates), logistic_gd(problem, rates, at=[40, 3, 3, 0])
    for every, few in zip(whole, some, strict=True):
        np.testing.assert_array_equal(every[[40, 3, 3, 0]], few)
    before = np.cumsum(whole.iterates, axis=0)[:-1] / np.arange(1, 41)[:, None]
    np.testing.assert_allclose(whole.means[1:], before, rtol=1e-12, atol=1e-15)
    constant = logistic_gd(problem, 2.0, 5)
    np.testing.assert_array_equal(constant.iterates, logistic_gd(problem, np.full(5, 2.0)).iterates)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), lr=st.floats(0.1, 100.0))
def test_losses_do_not_depend_on_the_basis_or_on_the_order_and_sign_of_rows(seed, lr):
    rng, problem = np.random.default_rng(seed), separable(8, 4, 0.3, seed)
    turn, order, sign = np.linalg.qr(rng.standard_normal((4, 4)))[0], rng.permutation(8), rng.choice([-1.0, 1.0], 8)
    same = LogisticProblem((sign[:, None] * problem.rows @ turn)[order], (sign * problem.labels)[order])
    ours, theirs = (logistic_gd(x, lr, 6, penalty=0.01).log_losses for x in (problem, same))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-9)


def test_a_run_that_leaves_the_floats_has_infinite_losses_and_no_monotone_end():
    run = logistic_gd(TWO, 300.0, 2000, penalty=0.01)  # the penalty alone overshoots: lr penalty > 2
    assert np.isinf(run.log_losses[-1]) and np.isnan(run.iterates[-1]).all() and np.isfinite(run.log_losses[100])
    assert not np.isnan(run.log_losses).any()
    assert monotone_from(run.log_losses) == 2000


def test_the_end_of_the_unstable_phase_is_the_step_after_the_last_rise():
    assert monotone_from([3.0, 2.0, 2.5, 1.0, 1.0, 0.5]) == 2
    assert monotone_from([3.0, 2.0, 1.0]) == 0
    assert monotone_from([1.0, 2.0]) == 1
    assert monotone_from([1.0, 1.0 + 1e-14, 0.5]) == 0
    assert monotone_from([-1.0, -1.0 + 1e-9, -2.0]) == 1


# optimum and threshold


@settings(max_examples=30, deadline=None)
@given(
    samples=st.integers(2, 30),
    dimension=st.integers(2, 40),
    log_penalty=st.floats(-8.0, 1.0),
    seed=st.integers(0, 10**6),
    separated=st.booleans(),
)
def test_the_gradient_vanishes_at_the_optimum(samples, dimension, log_penalty, seed, separated):
    problem = separable(samples, dimension, 0.1, seed) if separated else noisy(samples, dimension, seed)
    penalty = 10.0**log_penalty
    w, loss = logistic_optimum(problem, penalty)
    wrong = 1 / (1 + np.exp(problem.signed @ w))
    pull = wrong @ problem.signed / samples
    np.testing.assert_allclose(penalty * w, pull, rtol=1e-11, atol=1e-15 * problem.radius)  # a sum's rounding
    assert loss == pytest.approx(np.log1p(np.exp(-problem.signed @ w)).mean() + penalty / 2 * (w @ w), rel=1e-12)


def test_without_a_penalty_the_optimum_of_inseparable_data_is_that_of_scipy_and_of_least_norm():
    problem = noisy(60, 4, 1)
    w, loss = logistic_optimum(problem, 0.0)
    known = minimize(lambda w: np.exp(log_loss(problem, w)), np.zeros(4), method="BFGS", options={"gtol": 1e-9})
    np.testing.assert_allclose(w, known.x, atol=1e-6)
    assert loss <= known.fun + 1e-15
    twice = LogisticProblem(np.hstack([problem.rows, problem.rows]), problem.labels)  # any split of w is as good
    np.testing.assert_allclose(logistic_optimum(twice, 0.0).w, np.tile(w / 2, 2), atol=1e-12)


def test_optima_along_a_path_are_those_found_alone():
    problem, penalties = separable(20, 30, 0.2, 3), [1.0, 1e-5, 0.1]
    for found, penalty in zip(logistic_optima(problem, penalties), penalties, strict=True):
        alone = logistic_optimum(problem, penalty)
        np.testing.assert_allclose(found.w, alone.w, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("seed", [1039, 1495, 1589])
def test_optima_of_heavy_tailed_rows_are_found_from_far_away(seed):
    """Where Newton's steps, taken whole, do not converge."""
    rng = np.random.default_rng(seed)
    samples, dimension = rng.integers(2, 15), rng.integers(1, 4)
    rows, labels = rng.standard_cauchy((samples, dimension)) * 10, rng.choice([-1.0, 1.0], samples)
    problem = LogisticProblem(rows, labels)
    np.testing.assert_allclose(
        logistic_optima(problem, [1e-6, 0.1])[1].w, logistic_optimum(problem, 0.1).w, rtol=1e-9, atol=1e-12
    )


def test_sharpness_is_the_largest_curvature_of_the_penalised_loss():
    problem, w = noisy(9, 3, 5), np.array([0.5, -1.0, 0.2])
    hessian = slope(lambda v: slope(lambda u: np.exp(log_loss(problem, u, penalty=0.3)), v, 1e-4), w, 1e-4)
    assert sharpness(problem, w, 0.3) == pytest.approx(np.linalg.eigvalsh(hessian)[-1], rel=1e-5)
    rows = problem.rows.T @ problem.rows / 9
    assert sharpness(problem, np.zeros(3)) == pytest.approx(np.linalg.eigvalsh(rows)[-1] / 4, rel=1e-12)
    assert sharpness(problem, w) < sharpness(problem, np.zeros(3))


@pytest.mark.parametrize("penalty, lr", [(1e-2, 18.93), (1e-3, 65.28), (1e-4, 371.0)])
def test_the_critical_rates_of_two_rows_are_the_reference(penalty, lr):
    """docs/theory.md, from an independent implementation."""
    assert critical_lr(TWO, penalty) == pytest.approx(lr, rel=3e-4)


@pytest.mark.parametrize("data", [TWO, separable(5, 3, 0.1, 0), separable(30, 10, 0.05, 1), noisy(40, 5, 2)])
@pytest.mark.parametrize("penalty", [1e-2, 1e-3])
def test_runs_settle_at_the_optimum_below_the_critical_rate_and_nowhere_above_it(data, penalty):
    best, critical = logistic_optimum(data, penalty), critical_lr(data, penalty)
    ends = np.arange(1500, 2001)
    below, above = (logistic_gd(data, f * critical, 2000, penalty=penalty, at=ends) for f in (0.95, 1.05))
    assert np.abs(below.losses - best.loss).max() < 1e-12
    assert (above.losses - best.loss).max() > 1e-4


def test_the_critical_rate_grows_as_one_over_the_penalty_and_its_logarithm():
    """Wu et al., arXiv:2506.02336, up to constants: for 1 / penalty alone the last ratio would be 1."""
    penalties = 10.0 ** -np.arange(2.0, 13.0)
    scaled = np.array([critical_lr(TWO, p) for p in penalties]) * penalties
    constant = scaled * np.log(1 / penalties)
    assert constant.min() > 0.2 and constant.max() < 1.0
    assert 0.95 < constant[-1] / constant[-2] < 1.0
    assert scaled[-1] / scaled[-2] < 0.92


# large rates


@pytest.mark.parametrize(
    "penalty, lr, steps",
    [(1e-2, 1.0, 484), (1e-3, 1.0, 2318), (1e-4, 1.0, 12793), (1e-2, 10.0, 45), (1e-3, 30.0, 69), (1e-4, 300.0, 97)],
)
def test_steps_to_a_gap_of_1e_8_are_the_reference(penalty, lr, steps):
    """docs/theory.md, from an independent implementation: large rates win by 10 to 130 times."""
    run = logistic_gd(TWO, lr, steps, penalty=penalty, at=[steps - 1, steps])
    before, after = run.losses - logistic_optimum(TWO, penalty).loss
    assert after < 1e-8 <= before


@pytest.mark.parametrize("data", [separable(2, 2, 0.05, 1), separable(20, 5, 0.1, 0), separable(100, 20, 0.05, 0)])
def test_a_large_rate_is_not_monotone_early_and_wins_by_far(data):
    slow, fast = logistic_gd(data, 1.0, 2000), logistic_gd(data, 400.0, 2000)
    assert monotone_from(slow.log_losses) == 0
    assert monotone_from(fast.log_losses) > 0 and fast.losses[:50].max() > np.log(2)
    assert fast.losses[-1] < slow.losses[-1] / 100


def test_rates_that_grow_with_the_run_reach_losses_of_one_over_its_square():
    """Wu et al., arXiv:2402.15926: 1 / T for a rate of order 1, 1 / T^2 up to logarithms for margin^2 T."""
    data, runs = separable(20, 5, 0.1, 0), np.array([1000, 2000, 4000, 8000])
    constant = [logistic_gd(data, 1.0, int(t), at=[t]).log_losses[0] for t in runs]
    growing = [logistic_gd(data, 0.02 * t, int(t), at=[t]).log_losses[0] for t in runs]
    assert -1.1 < np.polyfit(np.log(runs), constant, 1)[0] < -0.85
    assert -2.2 < np.polyfit(np.log(runs), growing, 1)[0] < -1.7


def test_the_stable_product_of_rate_and_loss_solves_its_equation():
    assert np.exp(STABLE) == pytest.approx(1 + 2 * STABLE, rel=1e-15)
    assert STABLE > 1


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    samples=st.integers(2, 40),
    dimension=st.integers(2, 20),
    margin=st.floats(0.02, 0.5),
    lr=st.floats(0.1, 3000.0),
)
def test_phases_end_where_the_bounds_say_at_the_latest(seed, samples, dimension, margin, lr):
    data, t = separable(samples, dimension, margin, seed), np.arange(1, 301)
    run = logistic_gd(data, lr, 300)
    end, stable = monotone_from(run.log_losses), np.flatnonzero(lr * run.losses <= STABLE)
    assert not len(stable) or end <= stable[0]
    assert end <= phase_bound(margin, samples, lr)
    averages = np.cumsum(run.losses)[:-1] / t
    assert (averages <= average_loss_bound(margin, lr, t)).all()


def test_the_bound_of_the_average_loss_is_near_a_loss_that_occurs():
    data, t = separable(2, 2, 0.2, 1), np.arange(1, 4001)
    averages = np.cumsum(logistic_gd(data, 0.1, 4000).losses)[:-1] / t
    assert 0.5 < (averages / average_loss_bound(0.2, 0.1, t)).max() <= 1


def test_the_phase_is_bounded_by_the_rate_or_the_rows_over_the_squared_margin():
    for margin in (0.01, 0.3):
        large = phase_bound(margin, 3, 1e7) * margin**2 / 1e7  # 2 log(2) / STABLE, up to logarithms
        assert large == pytest.approx(2 * np.log(2) / STABLE, rel=1e-4)
        ratio = phase_bound(margin, 2 * 10**8, 50.0) / phase_bound(margin, 10**8, 50.0)
        assert 2.0 < ratio < 2.1
    steps = phase_bound(0.1, 20, 5.0)  # where the mean chance of error is sure to have been 1 / (2 n)
    q = np.log(0.01 * 5.0 * steps) + 2.5
    assert (q + np.sqrt(q**2 + 2)) / (0.01 * 5.0 * steps) == pytest.approx(1 / 40, rel=1e-9)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    samples=st.integers(2, 60),
    dimension=st.integers(2, 40),
    margin=st.floats(0.05, 0.8),
    log_lr=st.floats(-2.0, 6.0),
)
def test_the_bound_of_adaptive_steps_on_the_exponential_loss_holds(seed, samples, dimension, margin, log_lr):
    data, t, lr = separable(samples, dimension, margin, seed), np.arange(1, 201), 10.0**log_lr
    run = adaptive_gd(data, lr, 200, loss="exponential")
    bound = adaptive_bound(margin, lr, t) + 1e-9 * lr
    assert (log_loss(data, run.means[1:], loss="exponential") <= bound).all()
    assert (np.minimum.accumulate(run.log_losses)[:-1] <= bound).all()


def test_the_bound_of_adaptive_steps_is_within_a_factor_of_four_once_it_is_below_0():
    """Two opposed rows are no easier than the bound: half of the steps undo each other."""
    t = np.arange(1, 201)
    data, bound = separable(2, 2, 0.2, 1), adaptive_bound(0.2, 100.0, t)
    reached = log_loss(data, adaptive_gd(data, 100.0, 200, loss="exponential").means[1:], loss="exponential")
    assert (reached[t > 50] > 4 * bound[t > 50]).all()
    assert bound[24] == pytest.approx(0.0, abs=1e-12)  # after 1 / margin^2 steps


def test_the_bound_of_the_exponential_loss_is_not_one_of_the_logistic_loss():
    """Negative result: the average iterate still errs after 4 / margin^2 steps, where the bound is exp(-3 lr / 2)."""
    data, t, lr = separable(100, 150, 0.2, 1), 100, 1e5
    logistic, exponential = (adaptive_gd(data, lr, t, loss=loss, at=[t]) for loss in ("logistic", "exponential"))
    assert (data.signed @ logistic.means[0]).min() < 0 < (data.signed @ exponential.means[0]).min()
    assert log_loss(data, logistic.means[0]) > 0 > adaptive_bound(0.2, lr, t) == pytest.approx(-1.5 * lr)


# margins


@settings(max_examples=40, deadline=None)
@given(
    samples=st.integers(2, 60),
    dimension=st.integers(2, 40),
    log_margin=st.floats(-6.0, 0.0),
    seed=st.integers(0, 10**6),
    log_scale=st.floats(-6.0, 6.0),
)
def test_the_largest_margin_is_found(samples, dimension, log_margin, seed, log_scale):
    data, scale = separable(samples, dimension, 10.0**log_margin, seed), 10.0**log_scale
    margin, direction = max_margin(LogisticProblem(scale * data.rows, data.labels))
    assert margin == pytest.approx(scale * 10.0**log_margin, rel=1e-8)
    assert np.linalg.norm(direction) == pytest.approx(1.0)
    assert (scale * data.signed @ direction).min() == pytest.approx(margin, rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_the_largest_margin_in_a_plane_is_that_of_the_best_of_all_angles(seed):
    rng = np.random.default_rng(seed)
    problem = LogisticProblem(rng.normal([1.5, 0.5], 1.0, (4, 2)), np.ones(4))
    angles = np.linspace(0, 2 * np.pi, 200_001)
    best = (problem.signed @ np.stack([np.cos(angles), np.sin(angles)])).min(axis=0).max()
    if best <= 0:
        with pytest.raises(ValueError, match="no margin"):
            max_margin(problem)
    else:
        assert 0 <= max_margin(problem).margin - best <= problem.radius * np.pi / 200_000


def test_iterates_turn_to_the_direction_of_largest_margin():
    data = separable(30, 10, 0.2, 0)
    run = adaptive_gd(data, 1.0, 3000, loss="exponential", at=[3000])
    cosine = run.iterates[0] @ max_margin(data).direction / np.linalg.norm(run.iterates[0])
    assert 0.999 < cosine <= 1 + 1e-12
    assert -run.log_losses[0] / np.linalg.norm(run.iterates[0]) == pytest.approx(0.2, rel=0.03)


# early stopping

DECAYING = LogisticModel(np.arange(1.0, 121.0) ** -2, np.where(np.arange(120) < 10, 1.0, 0.0))


def expected(model, w, function):
    """E function(s, s*) of s = <x, w> and s* = <x, w*>, by a sum over s* and what is left of s."""
    own, theirs = np.sqrt(w**2 @ model.eigenvalues), np.sqrt(model.target**2 @ model.eigenvalues)
    shared = (w * model.eigenvalues) @ model.target / own / theirs
    x = np.linspace(-9.0, 9.0, 361)
    weights = np.exp(-(x**2) / 2) / np.exp(-(x**2) / 2).sum()
    s = own * (shared * x[:, None] + np.sqrt(1 - shared**2) * x)
    return weights @ function(s, theirs * x[:, None]) @ weights


def chance(s):
    return 1 / (1 + np.exp(-s))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.01, 3.0))
def test_population_risk_is_the_expectation_over_rows_and_labels(seed, scale):
    rng = np.random.default_rng(seed)
    model = LogisticModel(rng.uniform(0.1, 1.0, 4), rng.standard_normal(4))
    w = scale * rng.standard_normal(4)

    def risk(s, s_star):
        return chance(s_star) * np.logaddexp(0, -s) + chance(-s_star) * np.logaddexp(0, s)

    assert population_risk(model, w) == pytest.approx(expected(model, w, risk), rel=1e-13)
    assert population_risk(model, np.stack([w, w])).shape == (2,)


def test_population_risk_and_error_are_those_of_a_large_sample():
    model, rng = LogisticModel(np.array([1.0, 0.5, 0.2]), np.array([2.0, -1.0, 3.0])), np.random.default_rng(0)
    for w in (rng.standard_normal(3), 30 * rng.standard_normal(3), model.target):
        margins = model.sample(200_000, seed=int(1e3 * abs(w[0]))).signed @ w
        for found, seen in ((population_risk, np.logaddexp(0, -margins)), (population_error, margins < 0)):
            assert abs(seen.mean() - found(model, w)) < 4 * seen.std() / np.sqrt(200_000)


def test_population_risk_is_least_at_the_target_and_linear_far_away():
    model = DECAYING
    assert population_risk(model, np.zeros(120)) == pytest.approx(np.log(2), rel=1e-14)
    assert np.abs(slope(lambda w: population_risk(model, w), model.target, 1e-4)).max() < 1e-9
    near, far = population_risk(model, np.outer([1e5, 1e9], model.target)) / [1e5, 1e9]
    assert near == pytest.approx(far, rel=1e-4) and far > 0


def test_population_error_depends_on_the_direction_alone_and_is_least_at_the_target():
    rng, model = np.random.default_rng(0), DECAYING
    w = rng.standard_normal((20, 120)) + model.target
    errors = population_error(model, w)
    np.testing.assert_allclose(population_error(model, 1e6 * w), errors, rtol=1e-12)
    np.testing.assert_allclose(population_error(model, -w), 1 - errors, rtol=1e-12)
    assert population_error(model, np.zeros(120)) == 0.5
    assert population_error(model, model.target) < errors.min()
    deviation = np.sqrt(model.target**2 @ model.eigenvalues)
    u = np.linspace(0, 12, 200_001)  # the least error is E 1 / (1 + exp(|s*|))
    least = np.trapezoid(2 * np.exp(-(u**2) / 2) / np.sqrt(2 * np.pi) * chance(-deviation * u), u)
    assert population_error(model, model.target) == pytest.approx(least, rel=1e-9)
    at_target = scored(model, 2 * model.target[None])
    assert at_target.error == pytest.approx([0.0], abs=1e-14) and at_target.risk > 0.01


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), fraction=st.floats(0.05, 1.0), separated=st.booleans())
def test_stopped_descent_and_ridge_differ_by_less_than_the_norm_over_root_two(seed, fraction, separated):
    model = LogisticModel(np.ones(6), np.ones(6))
    data = separable(8, 6, 0.1, seed) if separated else model.sample(40, seed)
    path = early_stopping_path(model, data, fraction / sharpness(data, np.zeros(6)), [1, 3, 30, 300])
    apart = np.linalg.norm(path.stopped.w - path.ridge.w, axis=1)
    assert (apart <= path.stopped.norm / np.sqrt(2)).all()
    assert (path.cosine >= np.sqrt(0.5)).all()
    for w, penalty in zip(path.ridge.w, path.penalties, strict=True):
        np.testing.assert_allclose(w, logistic_optimum(data, penalty).w, rtol=1e-8, atol=1e-12)


def test_stopping_early_helps_and_is_like_ridge():
    """Wu et al., arXiv:2502.13283, whose example this is, smaller: risk and error fall, then rise with the norm."""
    data = DECAYING.sample(80, seed=1)
    lr = 1 / sharpness(data, np.zeros(120))
    path = early_stopping_path(DECAYING, data, lr, np.unique(np.geomspace(1, 10_000, 16).astype(int)))
    for ours, ridge in ((path.stopped.risk, path.ridge.risk), (path.stopped.error, path.ridge.error)):
        best = int(ours.argmin())
        assert 0 < best < len(ours) - 1
        assert (np.diff(ours[: best + 1]) < 0).all()
        assert 0.6 < ours.min() / ridge.min() < 1.6
        assert 0 < 2 * ours.min() < ours[-1]
    assert path.stopped.risk[-1] > 5 * path.stopped.risk.min()
    assert (np.diff(path.stopped.norm) > 0).all()
    assert path.cosine.min() > 0.95
    np.testing.assert_allclose(path.penalties, 1 / (lr * path.steps))
    np.testing.assert_array_equal(path.stopped.w[-1], logistic_gd(data, lr, 10_000, at=[10_000]).iterates[0])


def test_descent_to_the_end_risks_more_the_longer_it_runs():
    """The direction of largest margin errs, so scaling it up has no end of risk."""
    data = DECAYING.sample(80, seed=1)
    direction = max_margin(data).direction
    risk = scored(DECAYING, np.outer([1e2, 1e4, 1e6], direction)).risk
    assert risk[2] / risk[1] == pytest.approx(100, rel=0.02) and risk[1] > risk[0] > 0.1


# what is refused


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: logistic_gd(TWO, 1.0), "steps=None"),
        (lambda: logistic_gd(TWO, [1.0, 2.0], 3), r"shape \(2,\)"),
        (lambda: logistic_gd(TWO, -1.0, 3), "lr=-1.0"),
        (lambda: logistic_gd(TWO, np.inf, 3), "lr=inf"),
        (lambda: logistic_gd(TWO, 1.0, 3, at=[4]), "from 0 to the run's 3"),
        (lambda: logistic_gd(TWO, 1.0, 3, at=[0.5]), "whole numbers"),
        (lambda: logistic_gd(TWO, 1.0, 3, penalty=-1.0), "penalty=-1.0"),
        (lambda: adaptive_gd(TWO, 1.0, 3, loss="hinge"), "loss='hinge'"),
        (lambda: logistic_optimum(TWO, 0.0), "Separable data have none"),
        (lambda: critical_lr(TWO, np.nan), "penalty=nan"),
        (lambda: max_margin(noisy(40, 3, 0)), "no margin"),
        (lambda: max_margin(LogisticProblem(np.zeros((2, 2)), np.ones(2))), "no margin"),
        (lambda: phase_bound(2.0, 2, 1.0), "margin=2.0"),
        (lambda: adaptive_bound(0.5, 0.0, 1), "lr=0.0"),
        (lambda: average_loss_bound(0.0, 1.0, 1), "margin=0.0"),
        (lambda: monotone_from(np.ones((2, 2))), "consecutive"),
        (lambda: early_stopping_path(DECAYING, TWO, 1.0, [1]), "dimension 2, model 120"),
        (lambda: early_stopping_path(LogisticModel(np.ones(2), np.ones(2)), TWO, 1.0, [0, 1]), "at least 1"),
        (lambda: early_stopping_path(LogisticModel(np.ones(2), np.ones(2)), TWO, 0.0, [1]), "lr=0.0"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(call, said):
    with pytest.raises(ValueError, match=said):
        call()
