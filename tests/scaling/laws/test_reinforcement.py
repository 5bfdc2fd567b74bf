import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.fit import fit
from scaling.laws.reinforcement import DataEfficiency, ScaleRL

SCALE_RL = {"R_0": 0.36, "A": 0.64, "C_mid": 9.9e3, "B": 1.78}
HOURS = {"C": np.geomspace(1.5e3, 1e5, 20)}
DATA = {"D_min": 8e4, "beta": 1e10, "alpha": 0.5}
RATIOS = {"s": np.array([0.25, 0.5, 1, 2, 4, 8, 16])}
CASES = {
    "ScaleRL": (ScaleRL(), SCALE_RL, HOURS),
    "ScaleRL, shallow": (ScaleRL(), {"R_0": 0.1, "A": 0.9, "C_mid": 3e4, "B": 0.6}, HOURS),
    "data": (DataEfficiency(), DATA, RATIOS),
    "data, steep": (DataEfficiency(), {"D_min": 3e5, "beta": 2e4, "alpha": 1.3}, RATIOS),
}
hours = st.floats(1, 8).map(lambda log: 10.0**log)


@pytest.mark.parametrize("case", CASES)
def test_exact_points_give_the_parameters_back(case, recovers):
    recovers(*CASES[case])


@pytest.mark.parametrize("case", CASES)
def test_units_change_parameters_as_the_law_says(case, respects_units):
    respects_units(*CASES[case])


def test_a_run_that_starts_at_no_reward_is_fitted():
    truth = SCALE_RL | {"R_0": 0.0}
    table = {"C": np.geomspace(1.0, 1e5, 30)}
    reward = ScaleRL().predict(truth, table)
    reward[0] = 0.0
    found = fit(ScaleRL(), pd.DataFrame({**table, "reward": reward}), starts=32)
    assert found.params == pytest.approx(truth, rel=1e-4, abs=1e-6)


@given(hours, st.floats(1.01, 10))
@settings(max_examples=30, deadline=None)
def test_reward_rises_from_start_to_ceiling_with_half_the_gain_at_the_middle(compute, factor):
    law = ScaleRL()
    low, high = (law.predict(SCALE_RL, {"C": c}) for c in (compute, compute * factor))
    assert SCALE_RL["R_0"] < low < high < SCALE_RL["A"]
    assert law.predict(SCALE_RL, {"C": SCALE_RL["C_mid"]}) == pytest.approx(0.5, rel=1e-12)
    assert law.predict(SCALE_RL, {"C": 1e-6}) == pytest.approx(SCALE_RL["R_0"], rel=1e-9)
    assert law.predict(SCALE_RL, {"C": 1e15}) == pytest.approx(SCALE_RL["A"], rel=1e-9)


def test_far_beyond_the_middle_the_gap_to_the_ceiling_is_a_power_law_in_compute():
    gap = [SCALE_RL["A"] - ScaleRL().predict(SCALE_RL, {"C": c}) for c in (1e8, 1e9)]
    assert np.log10(gap[0] / gap[1]) == pytest.approx(SCALE_RL["B"], rel=1e-5)


def test_percentages_are_refused():
    reward = 100 * ScaleRL().predict(SCALE_RL, HOURS)
    with pytest.raises(ValueError, match="divide percentages by 100"):
        fit(ScaleRL(), pd.DataFrame({**HOURS, "reward": reward}))


@given(st.floats(0.1, 50), st.floats(1.01, 10))
@settings(max_examples=30, deadline=None)
def test_more_updates_need_less_data_down_to_the_least(ratio, factor):
    few, many = (DataEfficiency().predict(DATA, {"s": s}) for s in (ratio, ratio * factor))
    assert DATA["D_min"] < many < few
    assert DataEfficiency().predict(DATA, {"s": 1e30}) == pytest.approx(DATA["D_min"], rel=1e-9)


def test_at_s_equal_to_beta_the_second_term_is_one_datum():
    assert DataEfficiency().predict(DATA, {"s": DATA["beta"]}) == pytest.approx(DATA["D_min"] + 1, rel=1e-12)


def test_compute_is_ten_flops_per_parameter_transition_and_update():
    # C = 10 N B(s) s D_J(s) (Rybkin et al. 2025), with D_J(4) = 8e4 + (1e10 / 4)^.5 = 130000 at these numbers.
    flops = DataEfficiency().compute(DATA, ratio=4.0, size=5e6, batch=256)
    assert flops == pytest.approx(10 * 5e6 * 256 * 4 * 130_000, rel=1e-12)
