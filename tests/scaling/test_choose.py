import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from scaling import choose
from scaling.fit import Huber, LeastSquares, StudentT, fit
from scaling.laws import Chinchilla, Overtraining, PowerLaw

LAW, SMALLER = Chinchilla(), Overtraining()
TRUTH = {"E": 1.7, "A": 400.0, "alpha": 0.34, "B": 900.0, "beta": 0.3}


def points(noise=0.0, seed=0, sizes=5, budgets=5, **truth) -> pd.DataFrame:
    n, d = (x.ravel() for x in np.meshgrid(np.geomspace(1e6, 1e9, sizes), np.geomspace(1e8, 1e11, budgets)))
    loss = LAW.predict(TRUTH | truth, {"N": n, "D": d})
    return pd.DataFrame(
        {"N": n, "D": d, "loss": loss * np.exp(noise * np.random.default_rng(seed).normal(size=n.size))}
    )


@pytest.fixture(scope="module")
def fitted():
    return fit(LAW, points(noise=0.01), starts=8)


# --- held-out error ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("alias", "column"), [("flops", "C"), ("parameters", "N"), ("tokens", "D")])
def test_an_axis_has_its_symbol_and_its_name(fitted, alias, column):
    named, symbol = fitted.holdout(by=alias), fitted.holdout(by=column)
    assert named.by == symbol.by == column
    pd.testing.assert_frame_equal(named.table, symbol.table)


@given(st.sampled_from(["C", "N", "D"]), st.floats(0.05, 0.4))
@settings(max_examples=12)
def test_the_largest_rows_are_held_out_and_rows_equal_in_size_stay_together(fitted, by, fraction):
    held = fitted.holdout(by=by, fraction=fraction)
    rows = fitted.rows.table
    kept = rows.drop(held.table.index)
    assert len(held.table) >= max(1, round(fraction * len(rows)))
    assert kept[by].max() < rows.loc[held.table.index, by].min()
    smallest = rows.loc[held.table.index, by].min()  # without it too few rows would be held out
    assert (rows[by] > smallest * (1 + 1e-9)).sum() < max(1, round(fraction * len(rows)))
    assert held.fit.rows.fingerprint == fit(LAW, points(noise=0.01).loc[kept.index], starts=1).rows.fingerprint


def test_the_error_of_a_held_out_row_is_that_of_a_law_that_never_saw_it():
    table = points(noise=0.005)
    largest = (table["N"] * table["D"]).idxmax()
    before = fit(LAW, table, starts=8).holdout(by="C", fraction=0.04).table.loc[largest]
    table.loc[largest, "loss"] *= 1.25
    after = fit(LAW, table, starts=8).holdout(by="C", fraction=0.04).table.loc[largest]
    assert after["predicted"] == pytest.approx(before["predicted"], rel=1e-6)
    assert (1 + after["error"]) * 1.25 == pytest.approx(1 + before["error"], rel=1e-6)


def test_a_held_out_fit_keeps_loss_fixed_parameters_priors_and_weights():
    table = points(noise=0.01).assign(w=np.linspace(0.5, 2.0, 25))
    whole = fit(LAW, table, Huber(5e-3), starts=8, fixed={"alpha": 0.3}, weights="w")
    held = whole.holdout(by="C", fraction=0.2)
    kept = table.drop(held.table.index)
    again = fit(LAW, kept, Huber(5e-3), starts=8, fixed={"alpha": 0.3}, weights="w")
    assert held.fit.params == pytest.approx(again.params, rel=1e-6)
    assert held.fit.params["alpha"] == 0.3


def test_the_true_law_predicts_larger_runs_better_than_one_without_its_floor():
    table = points(noise=0.003)
    line = fit(PowerLaw(x=("N", "D"), y="loss"), table, starts=8)
    for by in ("N", "D"):
        assert fit(LAW, table, starts=8).holdout(by=by).typical < 0.5 * line.holdout(by=by).typical


def test_expanding_windows_fit_ever_more_and_test_only_what_is_larger(fitted):
    table = fitted.expanding(by="D", windows=3)
    assert (table["tested_up_to"] > table["fitted_up_to"]).all()
    assert (table["fitted_up_to"].diff().dropna() > 0).all() and (table["rows"].diff().dropna() > 0).all()
    assert table["tested_up_to"].iloc[-1] == pytest.approx(fitted.rows.table["D"].max())
    assert table["rows"].iloc[-1] + table["tested"].iloc[-1] == len(fitted.rows.table)
    assert table["fitted_up_to"].iloc[1:].tolist() == pytest.approx(table["tested_up_to"].iloc[:-1].tolist())


def test_every_window_of_noise_free_points_is_predicted_exactly():
    table = fit(LAW, points(), starts=16).expanding(by="C")
    assert len(table) >= 3 and table["worst_error"].max() < 1e-6


def test_a_window_says_how_wrong_its_predictions_are():
    table = points()
    last = (table["N"] * table["D"]).idxmax()
    table.loc[last, "loss"] *= 1.2
    windows = fit(LAW, table, starts=16).expanding(by="C")
    assert windows["worst_error"].iloc[-1] == pytest.approx(1 - 1 / 1.2, rel=1e-5)
    assert windows["rms_error"].iloc[-1] == pytest.approx((1 - 1 / 1.2) / windows["tested"].iloc[-1] ** 0.5, rel=1e-5)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda f: f.holdout(fraction=0.0), "holdout=0.0 must lie between 0 and 1"),
        (lambda f: f.holdout(fraction=1.0), "holdout=1.0 must lie between 0 and 1"),
        (lambda f: f.holdout(by="width"), "holdout by 'width': the fit has N, D, loss, C"),
        (lambda f: f.holdout(by="group"), "holdout by 'group'"),
        (lambda f: f.holdout(by="C", fraction=0.95), "at least 5 settings and one row more are needed"),
        (lambda f: f.expanding(windows=0), "windows=0 must be at least 1"),
        (lambda f: f.expanding(by="width"), "holdout by 'width'"),
    ],
)
def test_what_cannot_be_held_out_is_refused_with_the_reason(fitted, call, words):
    with pytest.raises(ValueError, match=words):
        call(fitted)


def test_no_window_with_enough_rows_is_an_error_that_says_why():
    few = fit(LAW, points(noise=0.01, sizes=2, budgets=3), starts=8)
    with pytest.raises(
        ValueError, match=r"No window by N leaves enough rows.*at least 5 settings and one row more are needed"
    ):
        few.expanding(by="N")


# --- criteria and ratio tests ------------------------------------------------------------------------------------


def alone(monkeypatch) -> None:
    """Comparisons without their held-out windows, which cost four more fits."""
    monkeypatch.setattr(choose, "_window_error", lambda fit, by: {})


def test_the_ratio_test_of_a_law_that_is_true_rejects_as_often_as_it_says(monkeypatch):
    alone(monkeypatch)
    p = []
    for seed in range(200):
        table = points(noise=0.01, seed=seed, sizes=8, budgets=8, alpha=0.32, beta=0.32)
        laws = [fit(law, table, starts=1) for law in (SMALLER, LAW)]
        p.append(laws[0].compare(laws[1])["ratio_test_p"].iloc[0])
    p = np.array(p)
    assert 4 <= (p < 0.05).sum() <= 20  # 10 expected
    assert 86 <= (p < 0.5).sum() <= 125  # 100 expected, with a standard deviation of 7
    assert stats.kstest(p, "uniform").pvalue > 1e-3


def test_the_ratio_test_finds_two_exponents_where_there_are_two():
    table = points(noise=0.01, sizes=6, budgets=6, alpha=0.45, A=400 * 3e7**0.11, beta=0.25, B=900 * 3e9**-0.05)
    found = fit(SMALLER, table, starts=8).compare(fit(LAW, table, starts=8))
    assert found["ratio_test_p"].max() < 1e-10
    for criterion in ("AICc", "BIC", "held_out_rms"):
        assert found.loc[LAW.name, criterion] < found.loc[SMALLER.name, criterion]


def test_the_order_of_the_two_fits_changes_nothing():
    table = points(noise=0.01)
    one, other = fit(SMALLER, table, starts=8), fit(LAW, table, starts=8)
    pd.testing.assert_frame_equal(one.compare(other), other.compare(one).loc[[SMALLER.name, LAW.name]])


def test_bic_prefers_the_law_with_fewer_parameters_when_both_are_true(monkeypatch):
    alone(monkeypatch)
    wins = 0
    for seed in range(20):
        table = points(noise=0.01, seed=seed, sizes=8, budgets=8, alpha=0.32, beta=0.32)
        found = fit(SMALLER, table, LeastSquares(), starts=2).compare(fit(LAW, table, LeastSquares(), starts=2))
        wins += found.loc[SMALLER.name, "BIC"] < found.loc[LAW.name, "BIC"]
    assert wins >= 16  # P(chi2_1 > log 64) = 4 %


def test_criteria_are_those_of_gaussian_noise_under_least_squares():
    table = points(noise=0.01)
    found = fit(LAW, table, LeastSquares(), starts=8)
    row = found.compare(fit(SMALLER, table, LeastSquares(), starts=8)).loc[LAW.name]
    n, k, r = 25, 5, found.residuals.to_numpy()
    variance = (r - r.mean()) @ (r - r.mean()) / n + r.mean() ** 2
    variance *= n / (n - k)
    assert row["log_likelihood"] == pytest.approx(-0.5 * (r @ r) / variance, rel=0.02)
    assert row["AICc"] + 2 * row["log_likelihood"] == pytest.approx(2 * k + 2 * k * (k + 1) / (n - k - 1))
    assert row["BIC"] + 2 * row["log_likelihood"] == pytest.approx(k * np.log(n))
    assert row["parameters"] == 5 and row["objective"] == found.objective


def test_the_scale_of_a_likelihood_counts_in_its_criteria_and_not_among_the_laws_parameters():
    table = points(noise=0.01)
    row = fit(LAW, table, StudentT(), starts=8).compare(fit(SMALLER, table, StudentT(), starts=8)).loc[LAW.name]
    assert row["parameters"] == 5
    assert row["log_likelihood"] == pytest.approx(-row["objective"])
    assert row["BIC"] + 2 * row["log_likelihood"] == pytest.approx(6 * np.log(25))


def test_a_fixed_parameter_nests_in_the_free_one_and_is_rejected_only_when_it_is_wrong():
    table = points(noise=0.01)
    free = fit(LAW, table, starts=8)
    right, wrong = (fit(LAW, table, starts=8, fixed={"alpha": alpha}) for alpha in (0.34, 0.6))
    assert choose.nests(right, free) and not choose.nests(free, right)
    assert right.compare(free)["ratio_test_p"].iloc[0] > 0.01
    assert wrong.compare(free)["ratio_test_p"].iloc[0] < 1e-6


def test_laws_that_do_not_nest_have_criteria_and_no_ratio_test():
    table = points(noise=0.01)
    line, law = fit(PowerLaw(x=("N", "D"), y="loss"), table, starts=8), fit(LAW, table, starts=8)
    assert not choose.nests(line, law)
    found = line.compare(law)
    assert found["ratio_test_p"].isna().all() and np.isfinite(found["AICc"]).all()
    assert found.loc[LAW.name, "held_out_rms"] < 0.5 * found.loc[line.law.name, "held_out_rms"]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (lambda: fit(LAW, points(noise=0.01, seed=1), starts=2), "different rows"),
        (lambda: fit(LAW, points(noise=0.01).head(20), starts=2), "different rows"),
        (lambda: fit(LAW, points(noise=0.01), Huber(1e-2), starts=2), "different losses"),
        (lambda: fit(LAW, points(noise=0.01), LeastSquares(), starts=2), "different losses"),
        (lambda: fit(LAW, points(noise=0.01), starts=2, residuals="linear"), "different losses"),
    ],
)
def test_fits_of_other_rows_or_losses_are_not_compared(fitted, other, words):
    with pytest.raises(ValueError, match=words):
        fitted.compare(other())
