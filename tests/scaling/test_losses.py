from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from scaling.fit import Absolute, Huber, LeastSquares, StudentT, fit
from scaling.laws import Chinchilla
from scaling.laws.power import PowerLaw
from scaling.losses import has_scale

LOSSES = (LeastSquares(), Huber(0.3), Huber(0.3, above=0.2), Absolute(0.3), StudentT(3.0))
LEVEL = PowerLaw("C")  # with a_C fixed at 0: one number, the middle of the logarithms


def plane(rows=30, seed=0, df=2.0) -> pd.DataFrame:
    """A power law in two columns with heavy-tailed noise: linear in its parameters after logarithms."""
    rng = np.random.default_rng(seed)
    n, d = np.exp(rng.uniform(14, 21, rows)), np.exp(rng.uniform(18, 26, rows))
    noise = 0.02 * rng.standard_t(df, rows)
    return pd.DataFrame({"N": n, "D": d, "loss": 40 * n**-0.1 * d**-0.05 * np.exp(noise)})


def level(values: np.ndarray, loss, **settings_):
    """The fit of one constant to `values` > 0."""
    table = pd.DataFrame({"C": np.arange(1.0, len(values) + 1), "loss": values})
    return fit(LEVEL, table, loss, starts=4, fixed={"a_C": 0.0}, **settings_)


def least_absolute(table: pd.DataFrame, weights: np.ndarray) -> float:
    """The least sum of weighted |residuals| of logarithms, by linear programming: X b + u - v = y, u, v >= 0."""
    design = np.stack([np.ones(len(table)), np.log(table["N"]), np.log(table["D"])], axis=1)
    rows = len(table)
    found = optimize.linprog(
        np.concatenate([np.zeros(3), weights, weights]),
        A_eq=np.hstack([design, np.eye(rows), -np.eye(rows)]),
        b_eq=np.log(table["loss"]),
        bounds=[(None, None)] * 3 + [(0, None)] * (2 * rows),
        method="highs",
    )
    assert found.status == 0
    return float(found.fun)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
@given(st.floats(-3, 3))
def test_slope_and_curvature_are_derivatives_where_the_loss_is_smooth(loss, r):
    assume(min(abs(abs(r) - 0.3), abs(r)) > 1e-3)
    step = 1e-6
    (low, low_slope, _), (_, slope, curvature), (high, high_slope, _) = (
        loss(np.array([x])) for x in (r - step, r, r + step)
    )
    assert (high - low) / (2 * step) == pytest.approx(slope, rel=1e-6, abs=1e-8)
    assert (high_slope - low_slope) / (2 * step) == pytest.approx(curvature, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
@given(st.floats(0.01, 3), st.floats(1.01, 10))
def test_a_residual_costs_nothing_at_zero_and_more_the_larger_it_is(loss, r, factor):
    for side in (-1.0, 1.0):
        none, near, far = loss(side * np.array([0.0, r, r * factor]))[0]
        assert none == 0 < near < far


@given(st.floats(-5, 5))
def test_a_wide_huber_is_least_squares(r):
    for wide, plain in zip(Huber(10.0)(np.array([r])), LeastSquares()(np.array([r])), strict=True):
        assert wide == plain


@given(st.floats(-5, 5), st.floats(1e-9, 1e-3))
def test_a_narrow_huber_over_its_width_is_the_absolute_value(r, width):
    narrow = Huber(width)(np.array([r]))[0] / width
    assert abs(narrow - abs(r)) <= width / 2 * (1 + 1e-6) + 1e-12
    assert Absolute(width)(np.array([r]))[0] == narrow


@given(st.floats(-5, 5), st.floats(0.05, 1.0))
def test_above_discounts_rows_measured_above_the_law_and_no_others(r, above):
    for both, symmetric in zip(Huber(0.1, above)(np.array([r])), Huber(0.1)(np.array([r])), strict=True):
        assert both == symmetric * (above if r < 0 else 1.0)  # r = log(predicted) - log(measured)


@given(st.floats(-20, 20), st.floats(0.5, 50))
def test_student_t_is_minus_the_log_density_up_to_a_constant(r, df):
    value = StudentT(df)(np.array([r]))[0][0]
    assert value == pytest.approx(stats.t.logpdf(0, df) - stats.t.logpdf(r, df), rel=1e-9, abs=1e-12)


@given(st.floats(-5, 5))
def test_student_t_of_many_degrees_of_freedom_is_gaussian(r):
    for t, gauss in zip(StudentT(1e9)(np.array([r])), LeastSquares()(np.array([r])), strict=True):
        assert t == pytest.approx(gauss, rel=1e-6)


@pytest.mark.parametrize("loss", [*LOSSES, Absolute(), Absolute(1e-4)], ids=repr)
def test_the_path_of_a_loss_ends_with_it(loss):
    assert loss.path[-1] == loss
    widths = [stage.width for stage in loss.path] if isinstance(loss, Absolute) else []
    assert all(2 * after < before for before, after in pairwise(widths))


def test_only_the_likelihood_fits_a_scale():
    assert [has_scale(loss) for loss in LOSSES] == [False, False, False, False, True]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Huber(0.0), r"width=0.0 \(huber=, loss.width=\) must be positive"),
        (lambda: Huber(float("nan")), r"width=nan \(huber=, loss.width=\) must be positive"),
        (lambda: Huber(1e-3, above=0.0), r"above=0.0 must lie in \(0, 1\]"),
        (lambda: Huber(1e-3, above=1.5), r"above=1.5 must lie in \(0, 1\]"),
        (lambda: StudentT(0.0), "df=0.0 must be positive"),
    ],
)
def test_settings_without_meaning_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@given(st.integers(0, 10_000), st.integers(8, 60))
@settings(max_examples=10)
def test_absolute_reaches_the_optimum_of_linear_programming(seed, rows):
    table = plane(rows, seed)
    found = fit(PowerLaw(("N", "D")), table, Absolute(), starts=4)
    best = least_absolute(table, np.ones(rows))
    assert found.residuals.abs().sum() == pytest.approx(best, rel=1e-6)
    assert found.objective == pytest.approx(best, rel=1e-6) and found.converged


@given(st.integers(0, 10_000))
@settings(max_examples=5)
def test_weighted_absolute_reaches_the_optimum_of_linear_programming(seed):
    table, weights = plane(40, seed), np.random.default_rng(seed).exponential(size=40)
    found = fit(PowerLaw(("N", "D")), table, Absolute(), starts=4, weights=weights)
    assert found.objective == pytest.approx(least_absolute(table, weights / weights.mean()), rel=1e-6)


def test_absolute_is_no_worse_than_any_huber_at_its_own_objective_on_the_chinchilla_law():
    rng = np.random.default_rng(4)
    n, d = (x.ravel() for x in np.meshgrid(np.geomspace(1e6, 1e9, 6), np.geomspace(1e8, 1e11, 6)))
    table = pd.DataFrame({"N": n, "D": d})
    table["loss"] = (1.7 + 400 * n**-0.34 + 900 * d**-0.3) * np.exp(0.01 * rng.standard_t(2, 36))
    best = fit(Chinchilla(), table, Absolute(), starts=16).residuals.abs().sum()
    for width in (1e-2, 1e-3, 1e-4, 1e-5, 1e-6):
        assert best <= fit(Chinchilla(), table, Huber(width), starts=16).residuals.abs().sum() * (1 + 1e-7)


@given(st.lists(st.floats(0.1, 10), min_size=3, max_size=31, unique=True).filter(lambda x: len(x) % 2))
@settings(max_examples=15)
def test_the_absolute_fit_of_one_number_is_the_median(values):
    assert level(np.array(values), Absolute()).params["k"] == pytest.approx(np.median(values), rel=1e-6)


@pytest.mark.parametrize("above", [1.0, 1 / 3, 1 / 9, 1 / 19])
def test_a_narrow_asymmetric_huber_of_one_number_is_a_quantile(above):
    # Slopes balance where `above` times the rows above equals the rows below: the quantile above / (1 + above).
    values = np.exp(np.random.default_rng(2).standard_normal(1999))
    wanted = np.quantile(values, above / (1 + above), method="inverted_cdf")
    assert level(values, Huber(1e-5, above)).params["k"] == pytest.approx(wanted, rel=1e-3)


def test_the_lower_envelope_follows_the_well_tuned_runs():
    truth = {"E": 1.7, "A": 400.0, "alpha": 0.34, "B": 900.0, "beta": 0.3}
    n, d = (x.ravel() for x in np.meshgrid(np.geomspace(1e6, 1e9, 8), np.geomspace(1e8, 1e11, 8)))
    ends = {"envelope": [], "middle": []}
    for seed in range(10):
        rng = np.random.default_rng(seed)
        badly_tuned = (rng.random(64) < 0.6) * rng.exponential(0.05, 64)
        loss = Chinchilla().predict(truth, {"N": n, "D": d}) * np.exp(0.002 * rng.standard_normal(64) + badly_tuned)
        table = pd.DataFrame({"N": n, "D": d, "loss": loss})
        for name, above in (("envelope", 0.05), ("middle", 1.0)):
            predicted = fit(Chinchilla(), table, Huber(1e-3, above), starts=8).predict(table)["loss"]
            ends[name].append(np.abs(np.log(predicted / Chinchilla().predict(truth, table))).mean())
    assert np.mean(ends["envelope"]) < 0.004 < 0.01 < np.mean(ends["middle"])


@given(st.integers(0, 10_000), st.sampled_from([1.0, 2.0, 4.0, 30.0]))
@settings(max_examples=10)
def test_the_scale_of_student_t_is_that_of_maximum_likelihood(seed, df):
    logs = 0.3 + 0.02 * stats.t.rvs(df, size=60, random_state=seed)
    found = level(np.exp(logs), StudentT(df))

    def minus_log_likelihood(x):
        return -stats.t.logpdf(logs, df, loc=x[0], scale=np.exp(x[1])).sum()

    start = (np.median(logs), np.log(stats.median_abs_deviation(logs)))
    best = optimize.minimize(minus_log_likelihood, start, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-10})
    assert np.log(found.params["k"]) == pytest.approx(best.x[0], abs=1e-6)
    assert found.free[-1] == pytest.approx(best.x[1], abs=1e-5)
    assert found.objective == pytest.approx(best.fun + 60 * stats.t.logpdf(0, df), abs=1e-7)


def test_student_t_of_many_degrees_of_freedom_fits_as_least_squares_do():
    table = plane(40, df=30.0)
    t, squares = (fit(PowerLaw(("N", "D")), table, loss, starts=4) for loss in (StudentT(1e8), LeastSquares()))
    assert t.params == pytest.approx(squares.params, rel=1e-6)
    assert np.exp(t.free[-1]) == pytest.approx(squares.residual_rms, rel=1e-6)
