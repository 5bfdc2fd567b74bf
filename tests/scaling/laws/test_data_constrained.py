from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.fit import fit
from scaling.laws.chinchilla import Chinchilla
from scaling.laws.data_constrained import DataConstrained

PUBLISHED = Path(__file__).parents[4] / "shared" / "published" / "datablations" / "c4_repeat_runs_fit182.csv"
LAW, TIED = DataConstrained(), DataConstrained(tied=True)
C4 = dict(LAW.references[0].params)
REPETITION = ("R_D", "R_N")
N, D, U = (
    x.ravel() for x in np.meshgrid(np.geomspace(1e7, 1e10, 5), np.geomspace(1e9, 1e12, 6), np.geomspace(1e8, 1e11, 4))
)
TABLE = {"N": N, "D": D, "U": U}


def loss(n, d, u, p=C4, law=LAW):
    return law.predict(p, law.features({"N": n, "D": d, "U": u}))


@pytest.fixture(scope="module")
def published():
    if not PUBLISHED.exists():
        pytest.skip(f"needs the published table {PUBLISHED.name}, which is not part of the repository")
    return pd.read_csv(PUBLISHED)


@pytest.fixture(scope="module")
def repetition_fit(published):
    return fit(LAW, published, fixed={name: value for name, value in C4.items() if name not in REPETITION})


@pytest.mark.parametrize("changed", [{}, {"beta": 0.29, "R_D": 6.0, "R_N": 20.0}])
def test_points_without_noise_give_the_law_back(changed, recovers):
    recovers(LAW, C4 | changed, TABLE)


def test_points_without_noise_give_the_tied_law_back(recovers):
    found = recovers(TIED, dict(TIED.references[0].params), TABLE)
    assert "beta" not in found.params


def test_tied_is_the_law_with_equal_exponents():
    p = dict(TIED.references[0].params)
    np.testing.assert_array_equal(loss(N, D, U, p, TIED), loss(N, D, U, p | {"beta": p["alpha"]}))
    assert "beta" not in TIED.formula and TIED.spec()["tied"] is True


@pytest.mark.parametrize("law", [LAW, TIED])
def test_units_change_the_coefficients_and_nothing_else(law, respects_units):
    respects_units(law, dict(law.references[0].params), TABLE)


def test_values_of_the_authors_readme():
    # huggingface/datablations, README.md: models of Figure 1 (right).
    assert loss(6.34e9, 242e9, 25e9) == pytest.approx(2.2256440889984477, rel=1e-15)
    assert loss(8.67e9, 178e9, 25e9) == pytest.approx(2.2269634075087867, rel=1e-15)


def test_the_best_allocation_of_the_authors_readme():
    # huggingface/datablations, README.md: 227B tokens and 6.8B parameters at the FLOPs of 8.67B and 178B, 25B unique.
    d = np.geomspace(60e9, 530e9, 4000)
    n = 8.67e9 * 178e9 / d
    best = int(np.argmin(loss(n, d, np.full_like(d, 25e9))))
    assert d[best] == pytest.approx(227e9, rel=5e-3) and n[best] == pytest.approx(6.8e9, rel=5e-3)


@given(st.floats(1e7, 1e11), st.floats(1e9, 1e13), st.floats(1e8, 1e12), st.floats(1.01, 30.0))
@settings(max_examples=50, deadline=None)
def test_loss_never_rises_with_size_tokens_or_distinct_tokens(n, d, u, factor):
    here = loss(n, d, u) * (1 + 1e-14)
    assert loss(n * factor, d, u) <= here
    assert loss(n, d * factor, u) <= here
    assert loss(n, d, u * factor) <= here


@given(st.floats(1e7, 1e11), st.floats(1e9, 1e13), st.floats(1.0, 1e3))
@settings(max_examples=30, deadline=None)
def test_less_than_an_epoch_is_as_good_as_exactly_one(n, d, factor):
    assert loss(n, d, d * factor) == loss(n, d, d)


@given(st.floats(1e7, 1e11), st.floats(1e9, 1e13), st.floats(1e8, 1e12))
@settings(max_examples=30, deadline=None)
def test_repetition_that_costs_nothing_is_the_chinchilla_law(n, d, u):
    # 1 - exp(-x) in place of -expm1(-x) rounds x = 1e-15 by tens of per cent: this is what keeps the limit clean.
    chinchilla = Chinchilla().predict(C4, {"N": n, "D": d})
    assert loss(n, d, u, C4 | {"R_D": 1e16, "R_N": 1e16}) == pytest.approx(chinchilla, rel=1e-12)
    assert loss(n, d, u) >= chinchilla * (1 - 1e-14)


@given(st.floats(0.2, 0.5), st.floats(0.2, 0.5), st.floats(1e18, 1e24), st.floats(1.0, 50.0))
@settings(max_examples=30, deadline=None)
def test_parameters_beyond_the_compute_optimal_size_are_worth_less(alpha, beta, flops, times):
    p = C4 | {"alpha": alpha, "beta": beta}
    n, d = Chinchilla().compute_optimal(p, flops)
    worth = n * (1 + p["R_N"] * (1 - np.exp(-(times - 1) / p["R_N"])))
    assert loss(n * times, d, d, p) == pytest.approx(Chinchilla().predict(p, {"N": worth, "D": d}), rel=1e-9)
    assert loss(n / times, d, d, p) == pytest.approx(Chinchilla().predict(p, {"N": n / times, "D": d}), rel=1e-12)


@given(st.floats(1e7, 1e11), st.floats(1e9, 1e12))
@settings(max_examples=30, deadline=None)
def test_data_repeated_for_ever_are_worth_a_fixed_number_of_epochs(n, u):
    most = u * (1 + C4["R_D"])
    for_ever = loss(n, u * 1e6, u) - loss(n, u, u)
    fresh = C4["B"] * (most ** -C4["beta"] - u ** -C4["beta"])
    assert for_ever == pytest.approx(fresh, rel=1e-9)


def test_published_runs_have_several_minima_of_which_the_published_one_is_not_the_best(published, repetition_fit):
    minima = repetition_fit.minima
    assert len(minima) >= 3 and repetition_fit.converged
    pairs = [tuple(minimum["params"][name] for name in REPETITION) for minimum in minima]
    # 15.387756 and 5.309743 in huggingface/datablations, utils/parametric_fit.ipynb, as far as their optimiser went
    assert any(pair == pytest.approx((15.387756, 5.309743), rel=2e-3) for pair in pairs[1:])
    assert any("other minima come within 10 %" in words for words in repetition_fit.warnings)
    measured = published["loss"].to_numpy()
    left = measured - loss(*(published[name].to_numpy() for name in ("N", "D", "U")))
    assert 1 - (left**2).sum() / ((measured - measured.mean()) ** 2).sum() == pytest.approx(0.7722, abs=5e-5)


def test_published_runs_leave_the_worth_of_repeated_data_open(repetition_fit):
    profile = repetition_fit.profile("R_D")
    plateau = profile.table[profile.table["R_D"].between(15, 300)]["objective"]
    assert len(plateau) >= 8 and plateau.max() < 1.003 * repetition_fit.objective
    assert profile.flat and profile.high == np.inf and 1 < profile.low < 15
    steep = profile.table[profile.table["R_D"] < 2]["objective"]
    assert steep.min() > 1.1 * repetition_fit.objective


def test_the_bootstrap_names_what_published_runs_do_not_tell(repetition_fit):
    assert "R_D" in repetition_fit.bootstrap(100).unidentified
