"""The quadratic in logarithms must find planted optima, cover them as often as it says, and claim no others."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.surface import (
    AT_HIGHEST,
    AT_LOWEST,
    BRACKETED,
    FEW,
    FLAT,
    OPEN_BELOW,
    optimum,
)

RATES = 0.01 * 2.0 ** np.arange(-2, 3)
BATCHES = 2.0 ** np.arange(1, 5)


def line(best=0.01, curve=0.02, noise=0.0, seeds=1, rates=RATES, rng=None, offset=0.05):
    """Losses along one setting: a parabola of log2 x, seeds that differ by an offset, noise of single runs."""
    rng = rng or np.random.default_rng(0)
    rows = [(x, s) for x in rates for s in range(seeds)]
    table = pd.DataFrame(rows, columns=["peak_lr", "seed"])
    z = np.log2(table["peak_lr"] / best)
    return table.assign(eval_loss=3.5 + curve * z**2 + offset * table["seed"] + noise * rng.standard_normal(len(rows)))


def sheet(best=(0.01, 6.0), slope=0.5, curves=(0.02, 0.01), noise=0.0, rng=None):
    """Losses over rate and batch: the best rate grows as batch^slope."""
    rng = rng or np.random.default_rng(0)
    table = pd.DataFrame([(r, b) for r in RATES for b in BATCHES], columns=["peak_lr", "batch"])
    v = np.log2(table["batch"] / best[1])
    u = np.log2(table["peak_lr"] / best[0]) - slope * v
    loss = 3.5 + curves[0] * u**2 + curves[1] * v**2
    return table.assign(eval_loss=loss + noise * rng.standard_normal(len(loss)))


@settings(max_examples=30, deadline=None)
@given(best=st.floats(0.004, 0.02), curve=st.floats(0.001, 0.1), seeds=st.integers(1, 3))
def test_a_parabola_gives_its_own_minimum(best, curve, seeds):
    found = optimum(line(best, curve, seeds=seeds), ["peak_lr"], draws=50)
    assert found.best["peak_lr"] == pytest.approx(best, rel=1e-6) and found.verdict["peak_lr"] == BRACKETED
    assert found.loss == pytest.approx(3.5 + 0.05 * (seeds - 1) / 2, abs=1e-9)
    assert found.rise["peak_lr"] == pytest.approx(curve, rel=1e-6)


@settings(max_examples=20, deadline=None)
@given(rate=st.floats(0.006, 0.016), batch=st.floats(3.0, 11.0), slope=st.floats(0.0, 0.8))
def test_a_sheared_bowl_gives_its_own_minimum(rate, batch, slope):
    found = optimum(sheet((rate, batch), slope), ["peak_lr", "batch"], draws=50)
    assert found.best == {"peak_lr": pytest.approx(rate, rel=1e-6), "batch": pytest.approx(batch, rel=1e-6)}
    assert set(found.verdict.values()) == {BRACKETED}


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_interval_covers_the_truth_as_often_as_it_says_or_somewhat_more(seeds):
    """More, because it allows for a cubic that is not there."""
    rng, truth = np.random.default_rng(1), 0.012
    made = (line(truth, 0.02, 0.008, seeds, rng=rng) for _ in range(300))
    ends = [optimum(table, ["peak_lr"], draws=400) for table in made]
    inside = np.mean([one.low["peak_lr"] <= truth <= one.high["peak_lr"] for one in ends])
    assert 0.84 <= inside <= 0.99


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("cubic", [0.003, 0.006, 0.01])
def test_a_curve_that_rises_faster_to_one_side_is_covered_whatever_the_seeds(seeds, cubic):
    """No quadratic holds it, and its misfit is the same for every seed: seeds must not shrink it away."""
    rng, truth = np.random.default_rng(3), 0.012
    inside = []
    for _ in range(150):
        table = line(truth, 0.05, 0.01, seeds, rng=rng)
        table["eval_loss"] += cubic * np.log2(table["peak_lr"] / truth) ** 3
        found = optimum(table, ["peak_lr"], draws=400)
        inside.append(found.low["peak_lr"] <= truth <= found.high["peak_lr"])
    assert np.mean(inside) >= 0.76


def test_seeds_add_no_freedom_to_what_a_quadratic_misses():
    plain, bent = (line(noise=0.001, seeds=3) for _ in range(2))
    bent["eval_loss"] += 0.01 * np.log2(bent["peak_lr"] / 0.01) ** 3
    one, other = (optimum(table, ["peak_lr"]) for table in (plain, bent))
    assert other.freedom == 2 and other.noise > 10 * one.noise  # five places, three terms
    assert other.best == {"peak_lr": pytest.approx(one.best["peak_lr"], rel=0.5)}


def test_the_interval_of_two_settings_covers_the_truth_about_as_often_as_it_says():
    rng, truth = np.random.default_rng(2), {"peak_lr": 0.011, "batch": 6.5}
    found = [optimum(sheet(tuple(truth.values()), noise=0.004, rng=rng), list(truth), draws=400) for _ in range(200)]
    for name, value in truth.items():
        assert 0.82 <= np.mean([one.low[name] <= value <= one.high[name] for one in found]) <= 0.98


def test_units_of_the_settings_and_of_the_loss_move_nothing_else():
    table = sheet(noise=0.004)
    plain = optimum(table, ["peak_lr", "batch"])
    other = optimum(
        table.assign(batch=128 * table["batch"], eval_loss=table["eval_loss"] / np.log(2)), ["peak_lr", "batch"]
    )
    assert other.best["batch"] == pytest.approx(128 * plain.best["batch"], rel=1e-6)
    assert other.high["peak_lr"] == pytest.approx(plain.high["peak_lr"], rel=1e-6)
    assert other.loss == pytest.approx(plain.loss / np.log(2), rel=1e-9)


def test_the_order_of_the_rows_does_not_matter():
    table = line(noise=0.01, seeds=3)
    one, other = (optimum(rows, ["peak_lr"]) for rows in (table, table.sample(frac=1, random_state=4)))
    assert one.best["peak_lr"] == pytest.approx(other.best["peak_lr"], rel=1e-9)
    assert one.low["peak_lr"] == pytest.approx(other.low["peak_lr"], rel=1e-9)


def test_rates_far_above_the_optimum_do_not_bend_the_parabola():
    table = line(0.01, 0.02, rates=0.01 * 2.0 ** np.arange(-2, 6))
    table.loc[table["peak_lr"] > 0.05, "eval_loss"] = [5.0, 7.5, 9.0]  # a cliff where the parabola has none
    assert optimum(table, ["peak_lr"], draws=50).best["peak_lr"] == pytest.approx(0.01, rel=0.02)


def test_one_wild_run_among_many_is_an_outlier():
    table = line(0.01, 0.02, 0.002, seeds=4)
    wild = table.copy()
    wild.loc[(wild["peak_lr"] == 0.02) & (wild["seed"] == 1), "eval_loss"] += 0.08
    plain, robust = (optimum(rows, ["peak_lr"]).best["peak_lr"] for rows in (table, wild))
    assert robust == pytest.approx(plain, rel=0.05)


@pytest.mark.parametrize(("best", "verdict", "at"), [(0.0005, AT_LOWEST, RATES[0]), (0.3, AT_HIGHEST, RATES[-1])])
def test_an_optimum_beyond_the_runs_is_said_to_be_at_their_edge(best, verdict, at):
    found = optimum(line(best, 0.02, 0.001), ["peak_lr"])
    assert found.verdict["peak_lr"] == verdict and found.best["peak_lr"] == pytest.approx(at)


def test_an_edge_in_one_of_two_settings_leaves_the_other_bracketed():
    found = optimum(sheet((0.01, 0.4), 0.0, noise=0.0005), ["peak_lr", "batch"])
    assert found.verdict == {"peak_lr": BRACKETED, "batch": AT_LOWEST} and found.best["batch"] == pytest.approx(2)


def test_a_flat_loss_gives_no_optimum():
    rng = np.random.default_rng(6)
    found = [optimum(line(curve=0.0, noise=0.01, seeds=3, rng=rng), ["peak_lr"]) for _ in range(40)]
    assert np.mean([one.verdict["peak_lr"] == FLAT for one in found]) > 0.6
    assert np.mean([one.verdict["peak_lr"] == BRACKETED for one in found]) < 0.2


def test_an_interval_that_reaches_the_lowest_value_is_open_there():
    found = optimum(line(RATES[0] * 1.5, 0.01, 0.01, seeds=3), ["peak_lr"])
    assert found.verdict["peak_lr"] in (OPEN_BELOW, AT_LOWEST) and found.low["peak_lr"] == pytest.approx(RATES[0])


@pytest.mark.parametrize("values", [1, 2])
def test_under_three_values_the_best_of_them_is_named_and_no_more(values):
    found = optimum(line(0.02, rates=RATES[2 : 2 + values], seeds=3), ["peak_lr"])
    assert found.verdict["peak_lr"] == FEW and found.best["peak_lr"] == pytest.approx(RATES[1 + values])
    assert np.isnan(found.low["peak_lr"]) and np.isnan(found.log_error("peak_lr"))


def test_three_runs_have_an_optimum_without_an_interval_until_the_noise_is_known():
    table = line(0.011, 0.05, rates=RATES[1:4])
    bare, known = optimum(table, ["peak_lr"]), optimum(table, ["peak_lr"], noise=(0.003, 12))
    assert bare.best == known.best and np.isnan(bare.low["peak_lr"])
    assert known.low["peak_lr"] < 0.011 < known.high["peak_lr"] and known.noise == pytest.approx(0.003)


def test_diverged_runs_are_counted_and_not_fitted():
    table = line(0.01, 0.02, 0.001)
    table.loc[table["peak_lr"] > 0.03, "eval_loss"] = np.nan
    found = optimum(table, ["peak_lr"])
    assert (found.runs, found.diverged) == (4, 1) and found.high["peak_lr"] <= RATES[3] * 1.0001


def test_the_error_of_the_logarithm_is_that_of_the_draws():
    found = optimum(line(0.01, 0.05, 0.003, seeds=3), ["peak_lr"])
    assert found.log_error("peak_lr") == pytest.approx(np.log(found.draws[:, 0]).std(), rel=0.2)


def test_what_cannot_be_fitted_is_refused():
    with pytest.raises(ValueError, match="peak_lr must be positive"):
        optimum(line().assign(peak_lr=0.0), ["peak_lr"])
    with pytest.raises(ValueError, match="no run has a finite eval_loss"):
        optimum(line().assign(eval_loss=np.nan), ["peak_lr"])
    with pytest.raises(ValueError, match="one or two columns"):
        optimum(line(), [])
