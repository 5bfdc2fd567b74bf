import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scaling.fit import fit
from scaling.laws.parscale import ParScale

LAW = ParScale()
STACK, PILE = (dict(reference.params) for reference in LAW.references)
N, P = (x.ravel() for x in np.meshgrid(np.geomspace(5e8, 4e9, 6), [1.0, 2.0, 4.0, 8.0]))
TABLE = {"N": N, "P": P}

# QwenLM/ParScale, parametric_fit.py: a row for each P of 1, 2, 4, 8; a column for each model.
SIZES = (
    (535813376, 693753856, 1088376320, 1571472384, 2774773760, 4353203200),
    (538195842, 696738818, 1092762882, 1577522690, 2784937986, 4368529922),
    (540577412, 699722756, 1097148164, 1583571460, 2795100164, 4383854084),
    (545340552, 705690632, 1105918728, 1595669000, 2815424520, 4414502408),
)
LOSSES = {
    "stack": (
        (1.1722, 1.1496, 1.1131, 1.0817, 1.0451, 1.0213),
        (1.1507, 1.1262, 1.0940, 1.0623, 1.0244, 1.0025),
        (1.1354, 1.1124, 1.0808, 1.0490, 1.0126, 0.9906),
        (1.1231, 1.0997, 1.0688, 1.0383, 1.0016, 0.9794),
    ),
    "pile": (
        (2.1113, 2.0671, 2.0027, 1.9539, 1.8876, 1.8451),
        (2.0772, 2.0363, 1.9730, 1.9266, 1.8610, 1.8137),
        (2.0544, 2.0128, 1.9509, 1.9040, 1.8394, 1.7938),
        (2.0364, 1.9933, 1.9318, 1.8856, 1.8218, 1.7772),
    ),
}


@pytest.mark.parametrize("truth", [STACK, PILE])
def test_points_without_noise_give_the_law_back(truth, recovers):
    recovers(LAW, truth, TABLE)


@given(st.floats(0.3, 3.0), st.floats(0.1, 0.6), st.floats(0.2, 0.8), st.floats(0.05, 1.0))
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_other_constants_are_recovered_too(recovers, e, alpha, share, k):
    recovers(LAW, {"E": e, "A": 1.5e9 * (e * share) ** (1 / alpha), "alpha": alpha, "k": k}, TABLE)


def test_units_change_the_constants_and_nothing_else(respects_units):
    respects_units(LAW, STACK, TABLE)


@pytest.mark.parametrize(("corpus", "published"), [("stack", STACK), ("pile", PILE)])
def test_the_published_points_give_the_reference(corpus, published):
    table = pd.DataFrame({"N": np.ravel(SIZES), "P": np.repeat([1, 2, 4, 8], 6), "loss": np.ravel(LOSSES[corpus])})
    found = fit(LAW, table, starts=64)
    assert found.params == pytest.approx(published, rel=2e-6)
    assert found.r_squared > 0.997 and found.converged


@given(st.floats(1e7, 1e12), st.floats(1.0, 64.0), st.floats(1.01, 10.0))
@settings(max_examples=30, deadline=None)
def test_loss_falls_with_size_and_streams_towards_its_floor(n, p, factor):
    loss = LAW.predict(STACK, {"N": n, "P": p})
    assert STACK["E"] < LAW.predict(STACK, {"N": n * factor, "P": p}) < loss
    assert STACK["E"] < LAW.predict(STACK, {"N": n, "P": p * factor}) < loss


@given(st.floats(1e7, 1e12), st.floats(1.0, 64.0))
@settings(max_examples=30, deadline=None)
def test_streams_act_like_a_larger_model(n, p):
    larger = n * (STACK["k"] * np.log(p) + 1)
    assert LAW.predict(STACK, {"N": n, "P": p}) == pytest.approx(LAW.predict(STACK, {"N": larger, "P": 1.0}), rel=1e-12)


def test_less_than_one_stream_is_refused():
    table = pd.DataFrame(TABLE).assign(loss=1.0, P=0.5)
    with pytest.raises(ValueError, match=r"P=0.5 must be at least 1"):
        fit(LAW, table)
