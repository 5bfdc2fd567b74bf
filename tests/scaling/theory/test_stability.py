"""Stable steps, stationary risk and noise scales, against the recursion and against simulated gradients."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.problems import LinearProblem, power_law
from scaling.theory import max_stable_lr, noise_scales, sgd_risk, stationary_risk
from scaling.theory.modes import exact_modes
from scaling.theory.stability import check_stable, noise_gain, squared_gradient

spectra = st.lists(st.floats(0.001, 3.0), min_size=1, max_size=8)


def linear(eigenvalues, noise=0.5):
    return LinearProblem(np.array(eigenvalues), np.ones(len(eigenvalues)), noise)


def step_matrix(problem, lr, batch, kurtosis=3.0, weight_decay=0.0):
    """The step on c = E[delta^2], not symmetrised."""
    l = problem.eigenvalues
    kept = (1 - lr * weight_decay - lr * l) ** 2 + (kurtosis - 2) / batch * (lr * l) ** 2
    return np.diag(kept) + lr**2 / batch * np.outer(l, l)


@given(spectra, st.sampled_from([1.0, 2.0, 7.5, 1e4]), st.sampled_from([1.0, 3.0, 9.0]), st.sampled_from([0.0, 0.4]))
@settings(max_examples=80, deadline=None)
def test_the_largest_stable_rate_is_where_the_spectral_radius_is_one(eigenvalues, batch, kurtosis, weight_decay):
    problem = linear(eigenvalues)
    limit = max_stable_lr(problem, batch, kurtosis, weight_decay)

    def radius(lr):
        return np.abs(np.linalg.eigvals(step_matrix(problem, lr, batch, kurtosis, weight_decay))).max()

    assert radius(limit) == pytest.approx(1.0, abs=1e-7)
    assert radius(limit * 0.999) < 1.0 < radius(limit * 1.001)


@given(spectra, st.floats(0.01, 3.0).filter(lambda share: abs(share - 1.0) > 1e-9), st.sampled_from([1.0, 4.0]))
@settings(max_examples=60, deadline=None)
def test_divergence_is_flagged_exactly_where_the_gain_reaches_one_or_a_coordinate_grows(eigenvalues, share, batch):
    problem = linear(eigenvalues)
    lr = share * max_stable_lr(problem, batch)
    alone = lr * max(eigenvalues) >= 2 * batch / (batch + 1)
    diverges = alone or noise_gain(problem, lr, batch) >= 1
    if diverges:
        with pytest.raises(ValueError, match="unstable"):
            check_stable(problem, np.array([lr]), np.array([batch]))
    else:
        check_stable(problem, np.array([lr]), np.array([batch]))
    assert diverges == (share >= 1.0)


def test_rates_of_a_power_law_by_batch():
    problem = power_law(300, 1.5, 2.0, 0.1)
    found = [max_stable_lr(problem, batch) for batch in (1, 2, 8, 64)]
    assert found == pytest.approx([0.532, 0.875, 1.568, 1.939], abs=5e-4)  # spectral radius of the dense matrix
    trace, largest = problem.eigenvalues.sum(), problem.eigenvalues.max()
    for batch, lr in zip((1, 2, 8, 64), found, strict=True):
        assert lr >= 2 * batch / (trace + (batch + 1) * largest)
    assert max_stable_lr(problem, 1e12) == pytest.approx(2 / largest, rel=1e-9)


@given(spectra, st.floats(0.01, 0.9), st.sampled_from([1.0, 3.0, 50.0]))
@settings(max_examples=40, deadline=None)
def test_the_stationary_risk_does_not_move(eigenvalues, share, batch):
    problem = linear(eigenvalues)
    lr = share * max_stable_lr(problem, batch)
    c = np.linalg.solve(
        np.eye(len(eigenvalues)) - step_matrix(problem, lr, batch), lr**2 / batch * 0.5 * problem.eigenvalues
    )
    assert stationary_risk(problem, lr, batch) == pytest.approx(problem.eigenvalues @ c, rel=1e-8)


def test_small_steps_end_at_half_the_rate_over_the_batch_times_the_trace():
    problem = power_law(50, 1.5, 2.0, 0.7)
    errors = [stationary_risk(problem, lr, 4) / (lr * 0.7 * problem.eigenvalues.sum() / 8) - 1 for lr in (2e-3, 1e-3)]
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.02) and abs(errors[1]) < 2e-3


def test_the_gain_is_the_sum_of_the_kernel():
    problem, lr, batch = power_law(10, 1.5, 2.0, 0.1), 0.3, 2
    l = problem.eigenvalues
    d = (1 - lr * l) ** 2 + (lr * l) ** 2 / batch
    kernel = lr**2 / batch * (l**2 * d ** np.arange(20_000)[:, None]).sum(-1)
    assert noise_gain(problem, lr, batch) == pytest.approx(kernel.sum(), rel=1e-12)


def test_noise_scales_and_squared_gradients_are_those_of_simulated_gradients():
    problem, batch, count = power_law(4, 1.5, 2.0, 0.6), 3, 400_000
    w = np.array([0.5, -0.2, 0.1, 0.4])
    generator = np.random.default_rng(3)
    x = generator.standard_normal((count, 4)) * np.sqrt(problem.eigenvalues)
    error = x @ (w - problem.target) - np.sqrt(0.6) * generator.standard_normal(count)
    rows = error[:, None] * x
    mean, covariance = problem.eigenvalues * (w - problem.target), np.cov(rows.T)
    found = noise_scales(problem, (w - problem.target) ** 2, batch)
    assert found.simple == pytest.approx(np.trace(covariance) / (mean @ mean), rel=0.02)
    curved = problem.eigenvalues @ np.diag(covariance) / (mean @ (problem.eigenvalues * mean))
    assert found.preconditioned == pytest.approx(curved, rel=0.02)
    square = ((rows[: count // batch * batch].reshape(-1, batch, 4).mean(1)) ** 2).sum(-1).mean()
    assert squared_gradient(problem, (w - problem.target) ** 2, batch) == pytest.approx(square, rel=0.02)
    assert found.variance_share == pytest.approx(0.6 * problem.eigenvalues.sum() / batch / square, rel=0.02)


def test_at_the_answer_gradients_are_noise_alone():
    found = noise_scales(power_law(5, 1.5, 2.0, 0.6), np.zeros(5))
    assert found.simple == found.preconditioned == np.inf and found.variance_share == pytest.approx(1.0)


def test_many_batches_are_named_by_their_first_step():
    problem = power_law(20, 1.5, 2.0, 0.1)
    limit = max_stable_lr(problem, 2)
    with pytest.raises(ValueError, match=f"step 2 .*batch_size=2, .*from lr={limit:.6g} on"):
        sgd_risk(problem, [0.1, 1.2, 1.2, 1.9], [2, 16, 2, 2])
    assert exact_modes(problem).noise == 0.1
