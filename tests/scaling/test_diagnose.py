from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling import diagnose, identify
from scaling.fit import Huber, LeastSquares, StudentT, fit
from scaling.laws import Chinchilla, DataConstrained, OffsetPowerLaw, PowerLaw

LAW = Chinchilla()
TRUTH = {"E": 1.7, "A": 400.0, "alpha": 0.34, "B": 900.0, "beta": 0.3}


def points(noise=0.005, seed=0, sizes=6, budgets=6, **truth) -> pd.DataFrame:
    n, d = (x.ravel() for x in np.meshgrid(np.geomspace(1e6, 1e9, sizes), np.geomspace(1e8, 1e11, budgets)))
    loss = LAW.predict(TRUTH | truth, {"N": n, "D": d})
    return pd.DataFrame(
        {"N": n, "D": d, "loss": loss * np.exp(noise * np.random.default_rng(seed).normal(size=n.size))}
    )


def sentences(fitted, words: str) -> list[str]:
    return [text for text in fitted.warnings if words in text]


def test_clean_points_raise_no_doubt():
    clean = points(noise=0.003, sizes=12, budgets=12)
    assert fit(LAW, clean, starts=16).bootstrap(100).warnings == []


# --- outliers and leverage ---------------------------------------------------------------------------------------


@given(st.integers(0, 35), st.sampled_from([0.85, 1.2]))
@settings(max_examples=10)
def test_an_injected_outlier_is_named_by_its_row_with_its_residual_and_leverage(row, factor):
    table = points().set_axis([f"run-{k}" for k in range(36)])
    table.loc[f"run-{row}", "loss"] *= factor
    found = fit(LAW, table, starts=8)
    worst = diagnose.outliers(found).iloc[0]
    assert worst.name == f"run-{row}"
    assert worst["residual"] == pytest.approx(-np.log(factor), abs=0.06)
    assert diagnose.rows(found)["influence"].idxmax() == f"run-{row}"
    (said,) = sentences(found, "robust standard deviations off")
    assert f"the worst is row run-{row} ({np.expm1(worst['residual']):+.2%}, leverage {worst['leverage']:.2f})" in said


def test_several_outliers_are_listed_worst_first():
    table = points()
    table.loc[[4, 11, 30], "loss"] *= [1.1, 0.8, 1.3]
    assert diagnose.outliers(fit(LAW, table, starts=8)).index[:3].tolist() == [30, 11, 4]


def test_ordinary_noise_has_few_outliers():
    far = [len(diagnose.outliers(fit(LAW, points(seed=seed), starts=2))) for seed in range(20)]
    assert np.mean(far) < 1.0  # of 36 rows; a normal deviate exceeds four in 6 of 1e5


@given(st.integers(0, 1000), st.sampled_from([{}, {"alpha": 0.34}, {"E": 1.7, "beta": 0.3}]))
@settings(max_examples=8)
def test_leverages_lie_between_0_and_1_and_sum_to_the_number_of_free_parameters(seed, fixed):
    found = fit(LAW, points(noise=0.01, seed=seed), starts=4, fixed=fixed)
    leverage = diagnose.rows(found)["leverage"]
    assert leverage.sum() == pytest.approx(5 - len(fixed), rel=1e-6)
    assert leverage.between(0, 1 + 1e-9).all()


def test_leverage_is_how_far_a_prediction_follows_its_own_row():
    table = points(noise=0.003)
    found = fit(LAW, table, LeastSquares(), starts=8)
    leverage = diagnose.rows(found)["leverage"]
    for row in (0, 14, 35):
        moved = table.copy()
        moved.loc[row, "loss"] *= np.exp(1e-4)
        after = fit(LAW, moved, LeastSquares(), starts=8).predict(moved)["loss"][row]
        followed = np.log(after / found.predict(table)["loss"][row]) / 1e-4
        assert followed == pytest.approx(leverage[row], rel=0.05)


def test_a_lone_far_run_has_high_leverage_and_its_error_is_worth_a_look_first():
    table = points(noise=0.002)
    far = pd.DataFrame({"N": [1e12], "D": [1e8]})
    table = pd.concat([table, far.assign(loss=LAW.predict(TRUTH, far))], ignore_index=True)
    low = table["D"] == table["D"].min()
    table = table[~low | (table.index == 36)]
    table.loc[36, "loss"] *= 1.5
    found = fit(LAW, table, Huber(1e-4), starts=32)
    assert diagnose.rows(found)["leverage"].idxmax() == 36
    (said,) = sentences(found, "robust standard deviations off")
    assert "row 36" in said and "1 of them have high leverage: look at those runs first" in said


# --- patterns ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", ["N", "D"])
def test_a_missing_term_shows_as_a_bend_along_its_axis_only(axis):
    table = points(noise=0.003, sizes=8, budgets=8)
    position = np.log(table[axis] / np.sqrt(table[axis].min() * table[axis].max()))
    table["loss"] *= np.exp(0.2 * (position / position.abs().max()) ** 2)
    found = fit(LAW, table, LeastSquares(), starts=16)
    other = {"N": "D", "D": "N"}[axis]
    p = diagnose.patterns(found)
    assert min(p[axis].values()) < 0.01 < min(p[other].values())
    assert sentences(found, f"along {axis} (p = ") and not sentences(found, f"along {other} (p = ")


def test_a_law_with_the_wrong_slope_drifts_along_that_axis():
    found = fit(LAW, points(sizes=8, budgets=8), starts=16, fixed={"alpha": 0.6, "A": 400.0 * 3e7**0.26, "E": 1.7})
    assert diagnose.patterns(found)["N"]["slope_p"] < 1e-6
    assert sentences(found, "Residuals drift along N")


def test_the_residuals_of_the_true_law_show_a_pattern_less_often_than_the_threshold_says():
    p = [
        value
        for seed in range(30)
        for axis in diagnose.patterns(fit(LAW, points(seed=seed), starts=2)).values()
        for value in axis.values()
    ]
    assert np.mean(np.array(p) < 0.01) <= 0.03  # 120 p-values; fitted residuals are smoother than noise


def test_labels_and_axes_of_few_values_have_no_pattern():
    assert set(diagnose.patterns(fit(LAW, points(sizes=3), starts=8))) == {"D"}


# --- sensitivity -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "loss"),
    [("Huber width 0.01", Huber(1e-2)), ("Huber width 0.0001", Huber(1e-4)), ("least squares", LeastSquares())],
)
def test_sensitivity_to_the_loss_is_a_refit_with_that_loss(choice, loss):
    table = points(noise=0.02)
    assert diagnose.sensitivity(fit(LAW, table, starts=8))[choice] == pytest.approx(
        fit(LAW, table, loss, starts=16).params, rel=1e-3
    )


def test_sensitivity_to_the_smallest_runs_is_a_refit_without_them():
    table = points(noise=0.02)
    found = diagnose.sensitivity(fit(LAW, table, starts=8))["without the smallest fifth by C"]
    size = table["N"] * table["D"]
    assert found == pytest.approx(fit(LAW, table[size > size.quantile(0.2)], starts=16).params, rel=1e-3)


def test_an_outlier_makes_the_law_depend_on_the_width_of_the_loss_and_that_is_said():
    table = points(noise=0.002)
    table.loc[[7, 8], "loss"] *= 1.3
    found = fit(LAW, table, starts=16)
    (said,) = sentences(found, "With other choices (least squares)")
    moved = diagnose.sensitivity(found)["least squares"]["alpha"]
    assert f"alpha from {found.params['alpha']:.4g} to {moved:.4g}" in said


def test_small_runs_off_the_law_are_said_to_move_it():
    table = points(noise=0.001)
    size = table["N"] * table["D"]
    table.loc[size <= size.quantile(0.2), "loss"] *= 1.1
    assert sentences(fit(LAW, table, starts=16), "With other choices (without the smallest fifth by C)")


def test_a_likelihood_with_its_own_scale_has_only_the_smallest_runs_to_depend_on():
    assert set(diagnose.sensitivity(fit(LAW, points(), StudentT(), starts=8))) == {"without the smallest fifth by C"}


def test_everything_found_is_kept_as_plain_numbers():
    table = points()
    table.loc[7, "loss"] *= 1.2
    kept = diagnose.numbers(fit(LAW, table, starts=8))
    assert kept["outliers"][0]["row"] == "7" and set(kept) == {"outliers", "patterns", "sensitivity"}
    assert {type(value) for each in kept["outliers"] for name, value in each.items() if name != "row"} == {float}


# --- what the data cannot tell -----------------------------------------------------------------------------------


def test_a_parameter_at_its_bound_is_reported_once_and_first():
    rising = points(noise=0.001)
    rising["loss"] = 2.0 + 0.3 * (rising["D"] / 1e8) ** 0.05 + 400.0 * rising["N"] ** -0.34  # worse with more data
    found = fit(LAW, rising, starts=32)
    assert "beta" in found.at_bound and found.params["beta"] == 0.0
    assert set(found.at_bound) <= {"beta", "B", "E"}  # B and E are then one number: either may go anywhere
    for name in found.at_bound:
        assert found.unidentified[name] == f"{name} ended at a bound of its range: the data do not determine it."
    assert sum("ended at a bound" in text for text in found.warnings) == len(found.at_bound)


def test_parameters_inside_their_bounds_are_not_reported_there():
    assert fit(LAW, points(), starts=8).at_bound == []


def test_starts_that_agree_at_different_places_are_reported_by_parameter():
    found = fit(LAW, points(), starts=8)
    wide = replace(found, spread=np.array([0.0, 0.2, 0.0, 0.0, 0.3]))
    assert set(wide.unidentified) == {"A", "beta"} and found.unidentified == {}
    assert wide.unidentified["A"].endswith("starts that ended at the same objective differ in A and beta.")


def test_two_parameters_that_move_together_are_named_together():
    n = np.geomspace(1e6, 1e9, 12)  # N and D in proportion: with one exponent A and B are one number
    table = pd.DataFrame({"N": n, "D": 20 * n})
    table["loss"] = LAW.predict(TRUTH | {"beta": 0.34}, table)
    found = fit(LAW, table, starts=32, fixed={"alpha": 0.34, "beta": 0.34})
    assert identify.flat_direction(found) == ["A", "B"]
    assert set(found.unidentified) == {"A", "B"}
    assert all("A and B can move together" in words for words in found.unidentified.values())


def test_a_flat_profile_is_told_with_the_side_that_is_open():
    law = DataConstrained(tied=True)
    table = points(noise=0.0).drop(columns="loss")
    table["U"] = table["D"] / np.tile([1.0, 1.2, 1.5], 12)  # too few repetitions to see when they stop helping
    truth = {"E": 1.7, "A": 400.0, "alpha": 0.34, "B": 900.0 * 3e9**0.04, "R_D": 15.0, "R_N": 5.0}
    noise = np.exp(0.003 * np.random.default_rng(0).normal(size=36))
    found = fit(law, table.assign(loss=law.predict(truth, law.features(table)) * noise), starts=16)
    profile = found.profile("R_D")
    assert profile.flat and profile.high == np.inf and 0 < profile.low < 15
    assert set(found.unidentified) == {"R_D"}
    assert "R_D is not bounded above" in found.unidentified["R_D"] and "flat profile" in found.unidentified["R_D"]


def test_wide_bootstrap_intervals_are_told_with_their_ends():
    found = fit(LAW, points(noise=0.03, sizes=4, budgets=4), starts=16).bootstrap(200)
    low, high = found.intervals()["A"]
    assert high > 3 * low, "this test needs a wide interval"
    assert any(text in found.unidentified["A"] for text in (f"within a factor of {high / low:.2g}", "flat profile"))


def test_the_condition_number_is_that_of_the_columns_at_unit_length():
    found = fit(PowerLaw(x=("N",), y="loss"), points(noise=0.1), starts=8)
    log_n = np.log(found.rows.table["N"]) - np.log(found.rows.table["N"]).mean()
    design = np.stack([np.ones(36), log_n / np.linalg.norm(log_n) * 6], axis=1)
    assert identify.condition_number(found) == pytest.approx(np.linalg.cond(design), rel=1e-6)


def test_the_condition_number_grows_as_the_axes_of_a_design_close():
    numbers = []
    for span in (1e3, 1e2, 1e1):
        n, d = (x.ravel() for x in np.meshgrid(np.geomspace(1e7, 1e7 * span, 6), np.geomspace(1e9, 1e9 * span, 6)))
        table = pd.DataFrame({"N": n, "D": d}).assign(loss=lambda t: LAW.predict(TRUTH, t))
        numbers.append(identify.condition_number(fit(LAW, table, starts=16)))
    assert 1 < numbers[0] < 0.7 * numbers[1] < 0.5 * numbers[2]


# --- doubts about the optimum ------------------------------------------------------------------------------------


def test_a_second_minimum_close_to_the_best_is_told_and_a_far_one_is_not():
    found = fit(LAW, points(), starts=8)
    for factor, count in ((1.05, 1), (1.5, 0)):
        other = {"objective": factor * found.objective, "share": 0.1, "params": found.params}
        told = sentences(replace(found, minima=[*found.minima, other]), "other minima come within 10 %")
        assert len(told) == count


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"agreement": 0.2}, "Only 20% of 8 starts reached the best objective"),
        ({"converged": False, "gradient_norm": 0.03}, "did not converge (relative gradient 3.0e-02)"),
    ],
)
def test_a_minimisation_that_went_badly_is_told(change, words):
    found = fit(LAW, points(), starts=8)
    assert sentences(replace(found, **change), words) and not sentences(found, words)


def test_few_rows_for_the_parameters_are_told():
    few, enough = (fit(LAW, points(sizes=3, budgets=b), starts=8) for b in (3, 4))
    assert sentences(few, "9 rows for 5 parameters") and not sentences(enough, "rows for 5 parameters")


def test_an_exact_law_has_no_outliers_to_report():
    assert not sentences(fit(OffsetPowerLaw("N", "gain"), exact_gain(), starts=16), "robust standard deviations off")


def exact_gain() -> pd.DataFrame:
    n = np.geomspace(1e6, 1e9, 12)
    return pd.DataFrame({"N": n, "gain": -5.0 + 0.5 * n**0.2})
