import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scaling.laws.kaplan import Kaplan, KaplanData, KaplanSize

N, D = (x.ravel() for x in np.meshgrid(np.geomspace(1e6, 1e9, 5), np.geomspace(1e8, 1e11, 5)))
TABLE = {"N": N, "D": D}
LAWS = (KaplanSize(), KaplanData(), Kaplan())
PUBLISHED = dict(Kaplan().references[0].params)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name)
def test_points_without_noise_give_the_law_back(law, recovers):
    recovers(law, dict(law.references[0].params), TABLE)


@given(st.floats(0.04, 0.4), st.floats(0.04, 0.4), st.floats(1.5, 6.0), st.floats(1.5, 6.0))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_other_exponents_are_recovered_too(recovers, alpha_n, alpha_d, loss_n, loss_d):
    truth = {"Nc": 3e7 * loss_n ** (1 / alpha_n), "Dc": 3e9 * loss_d ** (1 / alpha_d)}
    rel = 1e-5 / min(alpha_n, alpha_d)  # a scale is a loss to the power 1/alpha, and so much less exact
    recovers(Kaplan(), truth | {"alpha_N": alpha_n, "alpha_D": alpha_d}, TABLE, rel=rel)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name)
def test_units_change_the_constants_and_nothing_else(law, respects_units):
    respects_units(law, dict(law.references[0].params), TABLE)


@given(st.floats(1e6, 1e11), st.floats(1e8, 1e13), st.floats(1.01, 100.0))
@settings(max_examples=30, deadline=None)
def test_loss_falls_with_size_and_data_and_lies_above_both_limits(n, d, factor):
    law = Kaplan()
    loss = law.predict(PUBLISHED, {"N": n, "D": d})
    assert law.predict(PUBLISHED, {"N": n * factor, "D": d}) < loss
    assert law.predict(PUBLISHED, {"N": n, "D": d * factor}) < loss
    assert loss > KaplanSize().predict(PUBLISHED, {"N": n}) and loss > KaplanData().predict(PUBLISHED, {"D": d})


def test_the_joint_law_becomes_the_other_two():
    law, beyond = Kaplan(), 1e40
    assert law.predict(PUBLISHED, {"N": 1e9, "D": beyond}) == pytest.approx(KaplanSize().predict(PUBLISHED, {"N": 1e9}))
    assert law.predict(PUBLISHED, {"N": beyond, "D": 1e9}) == pytest.approx(KaplanData().predict(PUBLISHED, {"D": 1e9}))


def test_values_of_the_published_constants():
    # By hand from Kaplan et al. 2020, equations 1.1 and 1.2: (8.8e13 / 1e9)^.076, (5.4e13 / 1e10)^.095.
    assert KaplanSize().predict(KaplanSize().references[0].params, {"N": 1e9}) == pytest.approx(2.3756, abs=1e-4)
    assert KaplanData().predict(KaplanData().references[0].params, {"D": 1e10}) == pytest.approx(2.2624, abs=1e-4)


@pytest.mark.parametrize("n", [1e7, 1e9, 1e11])
def test_overfitting_is_two_per_cent_at_the_data_that_the_paper_asks_for(n):
    # Kaplan et al. 2020, section 4.2 (recalled): overfitting stays below 0.02 from about D = 5e3 N^0.74 on.
    enough = Kaplan().predict(PUBLISHED, {"N": n, "D": 5e3 * n**0.74})
    assert enough / KaplanSize().predict(PUBLISHED, {"N": n}) - 1 == pytest.approx(0.02, abs=0.003)
