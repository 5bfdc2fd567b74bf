import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.fit import Huber, Prior, fit
from scaling.laws.routed import Routed, effective_experts

LAW = Routed()
S_BASE, RL_R, HASH = (dict(reference.params) for reference in LAW.references)
SIZES, EXPERTS = (
    x.ravel() for x in np.meshgrid([1.5e7, 5.5e7, 1.3e8, 3.7e8, 1.3e9], [1.0, 2, 4, 8, 16, 32, 64, 128, 256, 512])
)
TABLE = pd.DataFrame({"N": SIZES, "E": EXPERTS})
sizes = st.floats(6, 12).map(lambda log: 10.0**log)
experts = st.floats(1, 2048)


@pytest.mark.parametrize("truth", [S_BASE, RL_R, HASH], ids=["S-BASE", "RL-R", "HASH"])
def test_exact_points_give_the_parameters_back(truth, recovers):
    recovers(LAW, truth, TABLE)


def test_units_change_parameters_as_the_law_says(respects_units):
    respects_units(LAW, S_BASE, TABLE)
    assert LAW.units == {"N", "loss"}


def test_a_table_in_other_units_has_the_same_fit():
    table = TABLE.assign(loss=LAW.predict(S_BASE, LAW.features(TABLE)) * np.exp(0.01 * np.sin(np.arange(len(TABLE)))))
    here, there = fit(LAW, table, starts=16), fit(LAW, table.assign(N=table.N / 1e6), starts=16)
    assert there.objective == pytest.approx(here.objective, rel=1e-9)
    assert there.params["c"] == pytest.approx(here.params["c"], rel=1e-6)
    assert there.params["b"] == pytest.approx(here.params["b"] + 6 * here.params["c"], rel=1e-6)


def test_a_parameter_that_units_shift_can_be_fixed_and_have_a_prior():
    table = TABLE.assign(loss=LAW.predict(S_BASE, LAW.features(TABLE)))
    fixed = fit(LAW, table, loss=Huber(), starts=16, fixed={"b": S_BASE["b"]})
    assert fixed.params == pytest.approx(S_BASE, rel=1e-6)
    prior = fit(LAW, table, loss=Huber(), starts=16, priors={"d": Prior(S_BASE["d"], 0.1)})
    assert prior.params == pytest.approx(S_BASE, rel=1e-6)
    profile = fit(LAW, table.assign(loss=table.loss.round(2)), starts=16).profile("b")
    assert profile.low < S_BASE["b"] < profile.high


def test_effective_parameters_of_a_small_model_with_many_experts():
    # Clark et al. 2022: N = 5M with 128 experts is worth about 55M dense; 51.8M from the coefficients of Table 3,
    # which have three decimals.
    assert LAW.effective_parameters(S_BASE, 5e6, 128) == pytest.approx(51.8e6, rel=1e-3)


def test_cutoff_of_s_base():
    # Clark et al. 2022: 937B for S-BASE; 10^(.108 / .009) from the rounded coefficients.
    assert LAW.cutoff(S_BASE) == pytest.approx(1e12, rel=1e-9)


@pytest.mark.parametrize(("p", "loss"), [(S_BASE, 2.891532557590016), (RL_R, 2.907599156004946), (HASH, 2.8991132875)])
def test_published_coefficients_give_this_loss_at_5m_and_128_experts(p, loss):
    # Arithmetic on Table 3 of Clark et al. 2022, in base 10.
    assert LAW.predict(p, {"N": 5e6, "E": 128.0}) == pytest.approx(loss, rel=1e-9)


@given(sizes, experts)
@settings(max_examples=30, deadline=None)
def test_the_dense_model_of_effective_parameters_has_the_same_loss(size, count):
    dense = LAW.effective_parameters(S_BASE, size, count)
    routed = LAW.predict(S_BASE, {"N": size, "E": count})
    assert LAW.predict(S_BASE, {"N": dense, "E": 1.0}) == pytest.approx(routed, rel=1e-9)


@given(experts, st.floats(1.01, 4))
@settings(max_examples=30, deadline=None)
def test_experts_saturate_between_start_and_maximum(count, factor):
    assert effective_experts(S_BASE, 1.0) == pytest.approx(S_BASE["E_start"], rel=1e-12)
    assert effective_experts(S_BASE, 1e12) == pytest.approx(S_BASE["E_max"], rel=1e-6)
    assert effective_experts(S_BASE, count) < effective_experts(S_BASE, count * factor) < S_BASE["E_max"]


@given(sizes, experts, st.floats(1.01, 4))
@settings(max_examples=30, deadline=None)
def test_experts_help_below_the_cutoff_and_harm_above(size, count, factor):
    few, many = (LAW.predict(RL_R, {"N": size, "E": e}) for e in (count, count * factor))
    if abs(np.log(size / LAW.cutoff(RL_R))) > 1e-3:
        assert (many < few) == (size < LAW.cutoff(RL_R))


def test_less_than_one_expert_is_refused():
    table = TABLE.assign(loss=3.0, E=TABLE.E / 4)
    with pytest.raises(ValueError, match=r"E = 0\.25 is below 1"):
        fit(LAW, table)
