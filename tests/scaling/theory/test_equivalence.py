"""Ramps and decays on the line of equivalence, and recorded ramps over the exact constant batch."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.points import expand
from data.problems import power_law
from scaling.theory.check import exact_risk
from scaling.theory.equivalence import RATES, along_line, by_first_batch, over_constant
from scaling.theory.seesaw import Phases, handed_over, seesaw

PROBLEM = power_law(20, 1.5, 2.0, 0.3)
DECAY = Phases(0.1, 4, (4096.0,) * 3, 2.0, 1.0)
LINEAR = ["model=linear", "data=power_law", "optimizer=sgd", "sequence_length=1", "clip_norm=0", "warmup_tokens=0",
          "peak_lr=0.1", "total_tokens=4000"]  # fmt: skip


@given(st.floats(0.0, 1.0), st.floats(1.0, 4.0), st.floats(1.0, 3.0))
@settings(max_examples=50, deadline=None)
def test_what_the_rate_gives_up_the_batch_takes(share, cut, growth):
    decay = Phases(0.1, 4, (1e6,) * 2, cut, growth)
    plain, normalized = handed_over(decay, share), handed_over(decay, share, normalized=True)
    assert plain.lr_cut * plain.batch_growth == pytest.approx(cut * growth)
    assert plain.lr_cut == pytest.approx((cut * growth) ** (1 - share))
    assert normalized.alpha == pytest.approx(decay.alpha)


def test_the_ends_of_the_line_are_the_decay_and_a_constant_rate_and_its_middle_is_seesaw():
    for normalized in (False, True):
        assert handed_over(DECAY, 0.0, normalized) == DECAY
        assert handed_over(DECAY, 1.0, normalized).lr_cut == 1.0
    assert handed_over(DECAY, 1.0).batch_growth == 2.0 and handed_over(DECAY, 1.0, True).batch_growth == 4.0
    assert handed_over(DECAY, 0.5, True) == seesaw(DECAY)
    with pytest.raises(ValueError, match="must lie between 0, all by the rate"):
        handed_over(DECAY, 1.5)


def test_ramps_on_the_line_are_the_decay_at_small_rates_and_save_what_they_say():
    line = along_line(PROBLEM, 2, 20_000)
    assert (line[line["share"] == 0]["ratio"] == 1).all() and (line[line["share"] == 0]["saved"] == 0).all()
    last = line[line["share"] == 1].set_index(["algorithm", "rate"])
    gaps = (last.loc["SGD"]["ratio"] - 1).abs()
    assert gaps[RATES[0]] < 1e-3 and gaps.is_monotonic_increasing and gaps[RATES[-1]] > 0.05
    for row in (last.loc[("SGD", RATES[0])], last.loc[("normalized SGD", RATES[0])]):
        halves = row["batch_growth"] ** -np.arange(row["phases"])
        assert row["saved"] == pytest.approx(1 - halves.mean(), abs=2e-3)
    assert last.loc[("normalized SGD", RATES[-1]), "ratio"] > 2  # beyond Seesaw, where the rate it takes grows
    half = line[(line["algorithm"] == "normalized SGD") & np.isclose(line["share"], 0.5)]
    assert half["ratio"].max() < 1.15


def test_where_gradients_are_not_noise_seesaw_is_another_schedule_however_small_the_rate():
    def gap(noise, batch, lr, way):  # `way`: the sum of rates, if none was cut
        decay = Phases(lr, batch, (batch * round(way / lr / 24) * 8.0,) * 3, 2.0, 1.0)
        problem = power_law(20, 1.5, 2.0, noise)
        return seesaw(decay).risks(problem, True)[-1] / decay.risks(problem, True)[-1] - 1

    assert gap(0.3, 256, 0.02, 2.0) > 0.25 and gap(0.3, 256, 0.002, 2.0) > 0.25
    assert 0 < gap(100.0, 1, 0.02, 2.0) < 1e-3  # and where they are it is the same one


def test_without_noise_normalized_sgd_has_no_line():
    quiet = power_law(20, 1.5, 2.0, 0.0)
    assert set(along_line(quiet, 2, 2000)["algorithm"]) == {"SGD"} and by_first_batch(quiet, 2000).empty


def test_long_runs_are_cut_to_what_takes_seconds():
    line = along_line(power_law(4, 1.5, 2.0, 0.3), 2, 10**7, shares=(0.0, 1.0))
    assert (line["rows"] == 20_000).all()
    assert by_first_batch(power_law(4, 1.5, 2.0, 0.3), 2**15)["batch"].min() == 4


def test_few_rows_make_fewer_phases_and_too_few_none():
    assert along_line(PROBLEM, 2, 600)["phases"].unique().tolist() == [3]
    with pytest.raises(ValueError, match="60 rows are too few"):
        along_line(PROBLEM, 2, 60)


def test_seesaw_costs_most_where_noise_is_no_longer_most_of_the_gradient():
    found = by_first_batch(PROBLEM, 10_000)
    one = found[found["rate"] == RATES[1]].reset_index(drop=True)
    worst = one["ratio"].idxmax()
    assert one["ratio"][0] < 1.02 < 1.1 < one["ratio"][worst]
    assert one["noise"][0] > 0.9 and one["noise"][worst] < 0.5
    assert one["batch"].tolist() == [2**k for k in range(len(one))] and one["batch"].iloc[-1] * 4 * 4 <= 10_000 / 3
    assert by_first_batch(PROBLEM, 20).empty


def exact_points(points):
    """Rows as `check` has them, of runs whose measured risk is the exact one."""
    frames = []
    for point in points:
        steps = point.plan.steps()
        at = np.unique(np.linspace(1, len(steps.lr), 9).astype(int))
        tokens = np.append(steps.tokens_before[1:], point.plan.final_tokens)[at - 1]
        risk = exact_risk(point.config, at)
        frames.append(pd.DataFrame({
            "run_id": point.run_id, "of": "weights", "step": at, "tokens": tokens, "measured": risk, "error": 0.1 * risk
        }))  # fmt: skip
    return pd.concat(frames, ignore_index=True)


@pytest.mark.usefixtures("hydra_conf")
def test_runs_stand_over_the_exact_constant_batch_of_the_same_everything_else():
    more = [["schedule=cosine", "ramp.batch_size=4"], ["schedule=cosine", "ramp=seesaw", "ramp.batch_size=4"],
            ["schedule=cosine", "ramp=grow", "ramp.batch_size=4"], ["schedule=wsd", "ramp.batch_size=4"],
            ["schedule=linear", "ramp=seesaw", "ramp.batch_size=4"],
            ["schedule=cosine", "ramp=seesaw", "ramp.batch_size=8"],
            ["schedule=cosine", "ramp=step", "ramp.batch_sizes=[4,8]",
             "ramp.thresholds_in_tokens=[2000]", "seed=3", "eval.every_tokens=50"]]  # fmt: skip
    points = expand([[*LINEAR, *one] for one in more])
    constant, ramp, grown, stepped = (points[k].run_id for k in (0, 1, 2, 6))
    curves, measured = over_constant({point.run_id: point.config for point in points}, exact_points(points))
    assert set(curves["run_id"]) == set(measured["run_id"]) == {constant, ramp, grown, stepped}
    assert set(curves[~curves["ramp"]]["run_id"]) == {constant}
    own = curves[curves["run_id"] == constant]
    np.testing.assert_allclose(own["ratio"], 1.0, rtol=1e-12)
    for run, group in measured.groupby("run_id"):
        line = curves[curves["run_id"] == run]
        last = group.loc[group["tokens"].idxmax()]
        assert last["ratio"] == pytest.approx(line["ratio"].iloc[-1], rel=1e-12)
        assert last["error"] == pytest.approx(0.1 * last["ratio"])
    ends = curves.groupby("run_id")["ratio"].last()
    # for plain SGD it is the batch alone that is equivalent, up to the steps in which a ramp follows
    assert abs(ends[grown] - 1) < 0.07 < 0.1 < ends[ramp] - 1
    nothing = over_constant({point.run_id: point.config for point in points[3:5]}, exact_points(points[3:5]))
    assert nothing[0].empty and nothing[1].empty
