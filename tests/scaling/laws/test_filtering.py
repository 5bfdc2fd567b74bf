import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.laws.filtering import Filtering, effective_utility, mixed_error

PAPER, CODE = Filtering(), Filtering(scales_floor=True)
POOLS = [dict(reference.params) for reference in PAPER.references]
N, U = (x.ravel() for x in np.meshgrid(np.geomspace(3e6, 6e8, 24), [12.8e6, 128e6]))
TABLE = {"n": N, "U": U}
POOL = 12_800_000  # samples in each of the published pools


def error(n, u, p=POOLS[0], law=PAPER):
    return law.predict(p, law.features({"n": n, "U": u}))


def published_mixture(count, n):
    b = [pool["b"] for pool in POOLS[:count]]
    return mixed_error(POOLS[:count], n, POOL, (0.025 / 1e5) ** np.mean(b), 0.1, scales_floor=True)


@pytest.mark.parametrize("law", [PAPER, CODE], ids=["paper", "code"])
@pytest.mark.parametrize("pool", range(4))
def test_points_without_noise_give_the_law_back(law, pool, recovers):
    recovers(law, POOLS[pool], TABLE)


@pytest.mark.parametrize("law", [PAPER, CODE], ids=["paper", "code"])
def test_units_change_the_coefficients_and_nothing_else(law, respects_units):
    respects_units(law, POOLS[0], TABLE)


@pytest.mark.parametrize(
    ("n", "one", "two", "four"),
    [
        (10_000_000, 0.963633735674371, 0.9775938048056806, 0.9979291054154941),
        (32_000_000, 0.8175287362543828, 0.8416394371545322, 0.8832256945650481),
        (128_000_000, 0.7127099872429347, 0.7040003405525712, 0.7587190166530328),
        (640_000_000, 0.6882421336379344, 0.6144756496831194, 0.6486410534845561),
    ],
)
def test_values_of_the_authors_code(n, one, two, four):
    # locuslab/scaling_laws_data_filtering, objective.py, func_effective_utility_aggregation for the best 1, 2 and 4
    # pools of results/parameter_values.jsonl, tmars_imagenet1k_utility (c times the number of pools, d = 0.1).
    assert error(n, POOL, law=CODE) == pytest.approx(one, rel=1e-12)
    assert [published_mixture(k, n) for k in (1, 2, 4)] == pytest.approx([one, two, four], rel=1e-12)


def test_the_best_filter_loosens_with_compute():
    best = [int(np.argmin([published_mixture(k, n) for k in (1, 2, 3, 4)])) + 1 for n in (32e6, 128e6, 640e6)]
    assert best == sorted(best) and best[0] == 1 and best[-1] > 1


@given(st.floats(1e6, 1e9), st.floats(1e6, 1e9), st.floats(1.01, 20.0))
@settings(max_examples=50, deadline=None)
def test_error_never_rises_with_samples_or_a_larger_pool(n, u, factor):
    here = error(n, u) * (1 + 1e-13)
    assert POOLS[0]["d"] < error(n * factor, u) <= here
    assert error(n, u * factor) <= here


@given(st.floats(1e6, 1e9), st.floats(1.0, 50.0))
@settings(max_examples=30, deadline=None)
def test_the_first_epoch_is_a_power_law(n, factor):
    p = POOLS[0]
    assert error(n, n * factor) == pytest.approx(p["a"] * n ** p["b"] + p["d"], rel=1e-13)


@given(st.floats(1e6, 1e8), st.floats(1.0, 30.0))
@settings(max_examples=30, deadline=None)
def test_a_utility_that_lasts_makes_repeated_samples_fresh(pool, epochs):
    p = POOLS[0] | {"tau": 1e12}
    assert error(pool * epochs, pool, p) == pytest.approx(p["a"] * (pool * epochs) ** p["b"] + p["d"], rel=1e-9)


def test_a_utility_that_is_gone_at_once_makes_repetition_useless():
    p = POOLS[0] | {"tau": 1e-2}
    assert error(20 * POOL, POOL, p) == pytest.approx(error(POOL, POOL, p), rel=1e-12)


@given(st.floats(1e6, 1e8), st.integers(1, 20))
@settings(max_examples=30, deadline=None)
def test_the_error_does_not_jump_where_an_epoch_ends(pool, epoch):
    ends = epoch * pool
    assert error(ends * (1 - 1e-9), pool) == pytest.approx(error(ends * (1 + 1e-9), pool), rel=1e-8)


def test_the_codes_form_scales_the_floor_and_the_papers_does_not():
    p = POOLS[0] | {"d": 0.5}
    assert error(1e11, POOL, p, PAPER) > 0.5 > error(1e11, POOL, p | {"a": 1e-3}, CODE)
    np.testing.assert_array_equal(error(N, U, p | {"d": 0.0}, PAPER), error(N, U, p | {"d": 0.0}, CODE))
    assert PAPER.formula != CODE.formula and CODE.spec()["scales_floor"] is True


def test_a_mixture_of_one_pool_is_the_pool():
    p = POOLS[1]
    np.testing.assert_allclose(mixed_error([p], N, POOL, p["a"], p["d"]), error(N, POOL, p), rtol=1e-13)


def test_equal_pools_mixed_are_one_pool_that_wears_out_more_slowly():
    # Two pools of b and tau, seen by turns: the epoch of the mixture is twice as long, the half-life in it doubled.
    b, tau = -0.2, 3.0
    assert effective_utility([b, b], [tau, tau], np.array([1, 7])) == pytest.approx([b, b / 2])
    assert effective_utility([b, 0.0], [tau, tau], 1) == pytest.approx(b / 2)
    p = {"a": 5.0, "b": b, "d": 0.1}
    mixed = mixed_error([{"b": b, "tau": tau}] * 2, N, POOL, 5.0, 0.1)
    np.testing.assert_allclose(mixed, error(N, 2 * POOL, p | {"tau": 2 * tau}), rtol=1e-12)
