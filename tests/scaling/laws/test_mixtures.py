import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.fit import fit
from scaling.laws.mixtures import AdditiveMixture, JointMixture, optimal_weights

DOMAINS = ("web", "code", "math")
ADDITIVE, JOINT = AdditiveMixture(DOMAINS), JointMixture(DOMAINS)
TRUTH = {
    "E": 1.2, "C_web": 2.0, "gamma_web": 0.4, "C_code": 3.0, "gamma_code": 0.7, "C_math": 0.8, "gamma_math": 0.3,
    "A": 600.0, "alpha": 0.36, "B": 900.0, "beta": 0.33,
}  # fmt: skip
JOINT_TRUTH = {name: value for name, value in TRUTH.items() if name not in ("A", "B")} | {
    "CA_web": 700.0, "CA_code": 1500.0, "CA_math": 1000.0, "gammaA": 0.9,
    "CB_web": 3000.0, "CB_code": 2000.0, "CB_math": 8000.0, "gammaB": 0.8,
}  # fmt: skip


def design(mixtures=10, seed=0) -> pd.DataFrame:
    """Every third mixture has a domain without weight; 3 sizes times 3 budgets."""
    h = np.random.default_rng(seed).dirichlet(np.ones(3), mixtures)
    h[::3, 2] = 0.0
    h = np.concatenate([h / h.sum(axis=1, keepdims=True), np.eye(3)])
    rows = [(*mixture, n, d) for n in (2e8, 5e8, 1.5e9) for d in (4e9, 1e10, 4e10) for mixture in h]
    return pd.DataFrame(rows, columns=["h_web", "h_code", "h_math", "N", "D"])


def grid(law, params, n, d, steps=400):
    """The best of all mixtures of three domains in steps of 1 / `steps`, by brute force."""
    first, second = (x.ravel() for x in np.meshgrid(np.arange(steps + 1), np.arange(steps + 1)))
    h = np.stack([first, second, steps - first - second])[:, first + second <= steps] / steps
    loss = law.predict(params, {**dict(zip(law.weight_columns, h, strict=True)), "N": n, "D": d})
    return h[:, np.argmin(loss)], float(loss.min())


def predicted(law, params, weights, n, d):
    return float(law.predict(params, {f"h_{name}": share for name, share in weights.items()} | {"N": n, "D": d}))


def test_points_without_noise_give_the_additive_law_back(recovers):
    recovers(ADDITIVE, TRUTH, design())


def test_points_without_noise_give_the_joint_law_back(recovers):
    recovers(JOINT, JOINT_TRUTH, design(), starts=16)


@pytest.mark.parametrize(("law", "truth"), [(ADDITIVE, TRUTH), (JOINT, JOINT_TRUTH)], ids=["additive", "joint"])
def test_units_change_the_coefficients_and_nothing_else(law, truth, respects_units):
    respects_units(law, truth, design())


def test_the_joint_law_with_equal_domains_is_the_additive_one():
    same = {f"C{kind}_{i}": TRUTH[kind] ** (1 / 0.7) for kind in "AB" for i in DOMAINS}
    columns = ADDITIVE.features(design())
    joint = JOINT.predict(TRUTH | same | {"gammaA": 0.7, "gammaB": 0.7}, columns)
    np.testing.assert_allclose(joint, ADDITIVE.predict(TRUTH, columns), rtol=1e-12)


@given(st.floats(0.0, 0.5), st.floats(0.0, 0.5), st.floats(1e7, 1e11), st.floats(1e9, 1e12), st.floats(1.01, 100.0))
@settings(max_examples=30, deadline=None)
def test_loss_falls_with_size_and_data_at_any_mixture(web, code, n, d, factor):
    weights = {"web": web, "code": code, "math": 1.0 - web - code}
    for law, truth in ((ADDITIVE, TRUTH), (JOINT, JOINT_TRUTH)):
        loss = predicted(law, truth, weights, n, d)
        assert predicted(law, truth, weights, n * factor, d) < loss
        assert predicted(law, truth, weights, n, d * factor) < loss


def test_a_domain_without_weight_adds_nothing():
    weights = {"web": 0.4, "code": 0.6, "math": 0.0}
    two = AdditiveMixture(("web", "code"))
    assert predicted(ADDITIVE, TRUTH, weights, 1e9, 1e10) == predicted(two, TRUTH, weights, 1e9, 1e10)


@given(st.lists(st.floats(0.2, 5.0), min_size=4, max_size=4), st.floats(0.2, 0.8))
@settings(max_examples=10, deadline=None)
def test_with_one_exponent_the_best_weights_have_a_closed_form(worth, gamma):
    # The maximum of sum C_i h_i^gamma on the simplex: h_i proportional to C_i^(1 / (1 - gamma)).
    law = AdditiveMixture(("a", "b", "c", "d"))
    p = TRUTH | {f"C_{i}": c for i, c in zip("abcd", worth, strict=True)} | {f"gamma_{i}": gamma for i in "abcd"}
    expected = np.array(worth) ** (1 / (1 - gamma))
    found = optimal_weights(law, p, 1e9, 1e10)
    assert list(found.values()) == pytest.approx(expected / expected.sum(), abs=2e-6)


@pytest.mark.parametrize(("n", "d"), [(1e8, 1e9), (1e7, 1e12), (1e11, 1e9)])
@pytest.mark.parametrize(("law", "truth"), [(ADDITIVE, TRUTH), (JOINT, JOINT_TRUTH)], ids=["additive", "joint"])
def test_no_mixture_of_a_fine_grid_is_better(law, truth, n, d):
    found = optimal_weights(law, truth, n, d)
    best, loss = grid(law, truth, n, d)
    assert sum(found.values()) == pytest.approx(1.0, abs=1e-12) and min(found.values()) >= 0
    assert loss * (1 - 1e-4) < predicted(law, truth, found, n, d) <= loss * (1 + 1e-12)
    assert list(found.values()) == pytest.approx(best, abs=0.01)


def test_exponents_above_one_put_all_weight_on_the_best_domain():
    p = TRUTH | {f"gamma_{i}": 1.7 for i in DOMAINS} | {"C_math": 3.1}
    assert optimal_weights(ADDITIVE, p, 1e9, 1e10) == {"web": 0.0, "code": 0.0, "math": 1.0}


def test_the_search_finds_the_best_of_several_minima():
    # Math is worth most, but only by itself (gamma above 1): downhill from the middle lies a mixture of web and code.
    p = TRUTH | {"C_web": 2.0, "C_code": 2.0, "gamma_code": 0.5, "C_math": 4.5, "gamma_math": 4.0}
    found = optimal_weights(ADDITIVE, p, 1e9, 1e10)
    best, loss = grid(ADDITIVE, p, 1e9, 1e10)
    assert best[2] > 0.9 and list(found.values()) == pytest.approx(best, abs=0.005)
    assert predicted(ADDITIVE, p, found, 1e9, 1e10) <= loss


def test_the_best_mixture_moves_with_scale_in_the_joint_law_only():
    scales = ((1e8, 1e9), (1e11, 1e13))
    small, large = (optimal_weights(ADDITIVE, TRUTH, *scale) for scale in scales)
    assert list(small.values()) == pytest.approx(list(large.values()), abs=1e-5)
    small, large = (optimal_weights(JOINT, JOINT_TRUTH, *scale) for scale in scales)
    assert abs(small["web"] - large["web"]) > 0.1


def test_weights_that_do_not_sum_to_one_are_refused():
    table = design().assign(loss=2.0)
    table.loc[4, "h_web"] += 0.01
    with pytest.raises(ValueError, match=r"h_web \+ h_code \+ h_math is 1.01 in a row and must be 1"):
        fit(ADDITIVE, table)


def test_one_domain_is_no_mixture():
    with pytest.raises(ValueError, match="two or more different names"):
        AdditiveMixture(("web",))
    with pytest.raises(ValueError, match="two or more different names"):
        JointMixture(("web", "web"))
