"""Runs simulated from a known data-constrained law: R_D* and the worth of repetition come back, or doubt is said."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.fit import Huber, fit
from scaling.laws import DataConstrained
from scaling.repetition import best_epochs, equivalent, repeated, turning, worth
from scaling.reports.data_repetition import data_repetition
from scaling.reports.page import Section
from scaling.reports.records import Records, Settings

LAW = DataConstrained()
TRUTH = {"E": 1.5, "A": 60.0, "alpha": 0.33, "B": 400.0, "beta": 0.38, "R_D": 9.0, "R_N": 5.0}
SIZES, UNIQUE, TOKENS = (5e4, 1.5e5, 4e5), (1e4, 4e4, 16e4, 64e4), (4e4, 16e4, 64e4)
SETTINGS = Settings(starts=32, bootstrap=30)


def simulated(noise: float = 0.001, harm: float = 0.0, unique=UNIQUE, tokens=TOKENS, **truth: float) -> pd.DataFrame:
    """Records of every size, U and D. `harm`: what an epoch beyond the 16th adds to the held-out loss."""
    grid = np.array(np.meshgrid(SIZES, unique, tokens)).reshape(3, -1)
    runs = pd.DataFrame({"N": grid[0], "unique_tokens": grid[1], "D": grid[2]})
    losses = LAW.predict(TRUTH | truth, LAW.features(runs.assign(U=runs["unique_tokens"])))
    runs["eval_loss"] = losses * np.exp(noise * np.random.default_rng(0).standard_normal(len(runs)))
    epochs = runs["D"] / runs["unique_tokens"]
    runs["eval_loss"] += harm * (epochs - 16).clip(lower=0)
    runs["loss"] = runs["eval_loss"] - 0.02 * epochs
    runs["flops_per_token"] = 6 * runs["N"]
    runs["C"] = runs["D"] * runs["flops_per_token"]
    runs["run_id"] = [f"r{k:011x}" for k in range(len(runs))]
    return runs.assign(status="completed", stop_reason="budget", N_total=runs["N"], seed=0)


NO_CURVES = pd.DataFrame({"run_id": []})


def made(runs: pd.DataFrame, curves: pd.DataFrame = NO_CURVES) -> Section:
    return data_repetition(Records(runs, curves, SETTINGS))


def curves_of(runs: pd.DataFrame, clean: pd.DataFrame) -> pd.DataFrame:
    """Curves that pass through the losses of `clean` before they end at those of `runs`."""
    before = pd.DataFrame({"run_id": clean["run_id"], "eval_loss": clean["eval_loss"], "tokens": clean["D"] / 2})
    return pd.concat([before, runs[["run_id", "eval_loss"]].assign(tokens=runs["D"])], ignore_index=True)


@pytest.fixture(scope="module")
def section() -> Section:
    return made(simulated())


def said(section: Section) -> str:
    return " ".join([*section.answers, *section.blocks])


@given(st.floats(0.05, 1e5), st.floats(1.0, 1e3))
def test_a_repeated_token_is_worth_less_than_a_fresh_one_and_the_next_one_less_still(lasting, epochs):
    mean, nxt = worth(lasting, epochs)
    assert 0 <= nxt <= mean * (1 + 1e-9) and mean <= 1
    more, _ = worth(2 * lasting, epochs)
    assert more >= mean - 1e-12


def test_worth_is_what_the_law_counts_as_fresh_tokens():
    mean, _ = worth(TRUTH["R_D"], 16.0)
    fresh = 1e5 * (1 + 15 * mean)
    same = [
        float(LAW.predict(TRUTH, LAW.features({"N": 1e3, "D": d, "U": u}))) for d, u in ((1.6e6, 1e5), (fresh, fresh))
    ]
    assert same[0] == pytest.approx(same[1], rel=1e-12)
    # 0.91 and 0.64 follow from R_D* = 15.387756 of Muennighoff et al. 2023 (huggingface/datablations)
    assert worth(15.387756, [4, 16])[0] == pytest.approx([0.908, 0.638], abs=1e-3)


def test_the_law_behind_the_runs_comes_back_with_intervals_that_hold_it(section):
    law = section.numbers["law"]
    low, high = law["profile_R_D"]
    assert low < TRUTH["R_D"] < high < 30
    assert law["params"]["R_D"] == pytest.approx(TRUTH["R_D"], rel=0.3)
    assert any("beside 15.4 published" in answer for answer in section.answers)
    assert any("No run overfitted" in answer for answer in section.answers)
    assert {figure.name for figure in section.figures} == {
        "repetition_loss", "repetition_worth", "repetition_profile"
    }  # fmt: skip


def test_fresh_tokens_of_the_same_loss_are_found_without_the_law():
    rows = equivalent(repeated(simulated(noise=0.0, R_N=1e6), NO_CURVES))
    again = rows[rows["epochs"] > 1]
    assert again["worth"].notna().sum() > 10
    expected = worth(TRUTH["R_D"], again["epochs"])[0]
    known = again["worth"].notna()
    # interpolation in few D bends: what it reads off is near the law's, and never far above a fresh token
    assert np.abs(again["worth"] - expected)[known].max() < 0.15
    assert rows.loc[rows["epochs"] <= 1, "worth"].isna().all()
    assert (again["excess"] > 0).all()


def test_runs_whose_held_out_loss_rose_are_overfitted_and_enter_no_law():
    clean, harmed = simulated(), simulated(harm=0.01)
    rows = repeated(harmed, curves_of(harmed, clean))
    assert set(rows.loc[rows["overfits"], "epochs"]) == {64.0} and rows["overfits"].sum() == 3
    assert rows.loc[rows["overfits"], "rise"].to_numpy() == pytest.approx(0.48)
    assert not repeated(harmed, NO_CURVES)["overfits"].any()  # without curves nothing is known
    section = made(harmed, curves_of(harmed, clean))
    assert section.numbers["law"]["params"]["R_D"] == pytest.approx(TRUTH["R_D"], rel=0.3)
    assert section.numbers["law"]["R_D_with_overfitted_runs"] is not None
    assert any("3 of 18 runs that repeat overfit" in answer for answer in section.answers)


def test_the_best_epochs_that_were_run_are_told_from_the_most():
    calm, harmed = (turning(repeated(simulated(noise=0.0, harm=harm), NO_CURVES)) for harm in (0.0, 0.02))
    assert calm["more"].all()
    few = harmed[harmed["U"] == 1e4]
    assert not few["more"].any() and (few["epochs"] == 16).all() and (few["most"] == 64).all()
    assert harmed[harmed["U"] == 16e4]["more"].all()


def test_best_epochs_are_the_least_loss_of_the_law_for_the_budget():
    runs = simulated(noise=0.0005)
    fitted = fit(LAW, runs.assign(U=runs["unique_tokens"]), Huber(1e-3), starts=32).bootstrap(30)
    found = best_epochs(fitted, 64e4, 2e13, None)
    one = found.table
    assert one["epochs"] == pytest.approx(2e13 / (6 * one["N"]) / 64e4)
    assert one["epochs_low"] <= one["epochs"] <= one["epochs_high"] and not found.edge

    def loss(size: float) -> float:
        return float(fitted.predict({"N": size, "D": 2e13 / (6 * size), "U": 64e4})["loss"].iloc[0])

    assert loss(one["N"]) <= min(loss(0.9 * one["N"]), loss(1.1 * one["N"]))
    assert best_epochs(fitted, 64e4, 2e14, None).table["epochs"] > one["epochs"]


def test_few_epochs_leave_r_d_open_and_the_page_says_so():
    runs = simulated(noise=0.004, unique=(16e4, 64e4, 128e4), tokens=(16e4, 64e4))
    text = said(made(runs))
    assert "not pinned down" in text and ("without bound" in text or "only within a factor" in text)


def test_without_repetition_or_without_fresh_runs_there_is_nothing_to_compare():
    runs = simulated()
    once = made(runs[runs["D"] <= runs["unique_tokens"]])
    assert once.numbers is None and "No run repeats its tokens" in said(once)
    again = made(runs[runs["D"] > runs["unique_tokens"]])
    assert again.numbers is None and "Every run repeats its tokens" in said(again)


def test_too_few_runs_for_the_law_still_show_what_was_measured():
    runs = simulated()
    section = made(runs[runs["N"] == SIZES[0]].iloc[:7])
    assert section.numbers["law"] is None and "No data-constrained law was fitted" in said(section)
    assert [figure.name for figure in section.figures] == ["repetition_loss"]


def test_diverged_and_early_runs_are_left_out():
    runs = simulated()
    runs.loc[2, ["status", "eval_loss"]] = ["diverged", np.nan]
    runs.loc[5, ["stop_reason", "eval_loss"]] = ["target", 0.1]
    assert set(repeated(runs, NO_CURVES)["run_id"]) == set(runs["run_id"]) - set(runs["run_id"].iloc[[2, 5]])
