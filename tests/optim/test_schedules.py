import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from optim.plan import Plan
from optim.ramps import ConstantBatch
from optim.schedules import (
    UBA,
    WSD,
    WSDS,
    Constant,
    Cosine,
    InverseSqrt,
    Linear,
    Power,
    QuarterCosine,
    Refined,
    Rex,
    Step,
)

FALLING = [
    Linear(0.1),
    Cosine(0.1),
    QuarterCosine(0.1),
    Rex(final=0.1),
    UBA(phi=0.7, final=0.1),
    Step(0.5, 5),
    InverseSqrt(0.1),
    Power(0.1, 0.7),
    Power(0.1, 0.7, plateau=True),
    *(WSD(0.3, shape, 0.1) for shape in ("linear", "exponential", "1-sqrt", "inverse-proportional")),
    Refined([1, 2, 3, 4], [3.0, 3.0, 3.0, 3.0]),
]
NAMES = [repr(schedule) for schedule in FALLING]
X = np.linspace(0, 1, 2001)


def integral(schedule):
    return quad(schedule, 0, 1, limit=200, points=(0.7,))[0]


@pytest.mark.parametrize("schedule", FALLING, ids=NAMES)
def test_a_schedule_starts_at_the_peak_and_never_rises(schedule):
    values = schedule(X)
    assert values[0] == pytest.approx(1, abs=1e-12) and (np.diff(values) <= 1e-12).all()


@pytest.mark.parametrize("schedule", FALLING, ids=NAMES)
@given(st.floats(0, 1))
def test_an_array_gives_what_its_numbers_give(schedule, x):
    assert schedule(np.array([x, x]))[1] == pytest.approx(float(schedule(x)), rel=1e-14)
    assert np.shape(schedule(x)) == ()


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Linear(), 1 / 2),
        (Cosine(0.0), 1 / 2),
        (QuarterCosine(), 2 / math.pi),
        (Rex(), 2 * (1 - math.log(2))),
        (Rex(d=0.9), 1 / 0.9 + 0.1 / 0.81 * math.log(0.1)),
        (Rex(d=0.0), 1 / 2),
        (UBA(phi=0.4), 1 / (1 + math.sqrt(0.2))),
        (UBA(phi=5.0, cycles=3), 1 / (1 + math.sqrt(2.5))),
        (WSD(0.3), 1 - 0.3 / 2),
        (WSD(0.3, "1-sqrt"), 1 - 2 * 0.3 / 3),
        (WSD(0.3, "exponential", 0.01), 0.7 + 0.3 * 0.99 / math.log(100)),
        (WSD(0.3, "inverse-proportional", 0.01), 0.7 + 0.3 * math.log(100) / 99),
        (Cosine(0.1), 0.1 + 0.9 / 2),
    ],
    ids=repr,
)
def test_the_area_under_a_schedule_is_the_closed_form(schedule, expected):
    """1 - area is what a ramp can save. Closed forms: Seesaw's Lemma 1 for the quarter cosine; the others by hand."""
    assert integral(schedule) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("schedule", [*FALLING[:5], *FALLING[9:13]], ids=[*NAMES[:5], *NAMES[9:13]])
def test_a_floor_is_where_a_schedule_ends(schedule):
    assert schedule(1.0) == pytest.approx(0.1)


def test_textbook_values():
    np.testing.assert_allclose(Cosine(0.1)([0, 0.5, 1]), [1, 0.55, 0.1])
    np.testing.assert_array_equal(Constant()([0, 0.3]), [1, 1])
    np.testing.assert_allclose(QuarterCosine()([0, 1 / 3, 2 / 3, 1]), [1, math.sqrt(3) / 2, 0.5, 0], atol=1e-15)
    np.testing.assert_allclose(Rex()([0.5]), [2 / 3])
    np.testing.assert_array_equal(Step(0.5, 4)([0, 0.24, 0.25, 0.74, 0.75, 1]), [1, 1, 0.5, 0.25, 0.125, 0.0625])
    np.testing.assert_allclose(WSD(0.5, "exponential", 0.01)([0.5, 0.75, 1]), [1, 0.1, 0.01])
    np.testing.assert_allclose(WSD(0.5, "inverse-proportional", 0.5)([0.5, 0.75, 1]), [1, 1 / 1.5, 0.5])
    np.testing.assert_allclose(WSD(0.5, "1-sqrt")([0.5, 0.625, 1]), [1, 0.5, 0])


def test_uba_with_phi_2_is_the_half_cosine_and_falls_earlier_as_phi_grows():
    np.testing.assert_allclose(UBA(phi=2.0, final=0.1)(X), Cosine(0.1)(X), rtol=1e-14)
    np.testing.assert_allclose(UBA(phi=1e-9)(X[:-10]), 1, atol=1e-3)
    assert (np.diff([UBA(phi)(0.5) for phi in (0.5, 1, 2, 4)]) < 0).all()


def test_each_cycle_of_uba_is_the_whole_schedule():
    one, three = UBA(phi=1.5, final=0.2), UBA(phi=1.5, final=0.2, cycles=3)
    np.testing.assert_allclose(three((X[:-1] + 1) / 3), one(X[:-1]), rtol=1e-9)
    assert three(1.0) == pytest.approx(0.2)


def test_scales_are_in_tokens_since_warmup():
    plan = Plan(10_000, 1, 2.0, InverseSqrt(500), ConstantBatch(1), warmup_tokens=1000)
    np.testing.assert_allclose(plan.lr([1000, 1500, 2500]), [2, 2 / math.sqrt(2), 1])
    plan = Plan(10_000, 1, 2.0, Power(500, 1.0, plateau=True), ConstantBatch(1), warmup_tokens=1000)
    np.testing.assert_allclose(plan.lr([1000, 1500, 2000, 6000]), [2, 2, 1, 0.2])
    plan = Plan(10_000, 1, 2.0, Power(500, 2.0), ConstantBatch(1), warmup_tokens=1000)
    np.testing.assert_allclose(plan.lr([1000, 1500, 2500]), [2, 0.5, 0.125])


def test_wsds_decays_before_each_budget_and_goes_on_at_the_peak():
    plan = Plan(8000, 1, 1.0, WSDS([2000, 4000], decay_fraction=0.1, final=0.2), ConstantBatch(1), 100)
    lr = plan.lr(np.arange(8000))
    for budget in (2000, 4000, 8000):
        decay = lr[budget - budget // 10 : budget]
        np.testing.assert_allclose(decay, 1 - 0.8 * np.arange(len(decay)) / len(decay))
    flat = np.r_[lr[100:1800], lr[2000:3600], lr[4000:7200]]
    assert (flat == 1).all()


@given(st.integers(100, 3000), st.integers(1, 60), st.data())
def test_a_wsds_run_is_at_its_peak_right_after_every_budget(samples, warmup, data):
    """Also where the way from tokens to progress and back loses a bit."""
    length = 128
    budget = data.draw(st.integers(samples // 3 + 30, samples // 2 + 40)) * length
    if not warmup * length < 0.9 * budget < budget < 0.9 * samples * length:
        return
    plan = Plan(samples * length, length, 2.0, WSDS([budget], 0.1), ConstantBatch(1), warmup * length)
    assert plan.at(budget).lr == 2.0 and plan.at(budget - length).lr < 2.0


@pytest.mark.parametrize("budgets", [[2000, 2100], [4000, 2000], [105], [7900]])
def test_budgets_whose_decays_overlap_are_refused(budgets):
    with pytest.raises(ValueError, match=r"schedule\.budgets=.*decay"):
        Plan(8000, 1, 1.0, WSDS(budgets, decay_fraction=0.1), ConstantBatch(1), 100)


@given(st.integers(3, 60), st.floats(0.01, 100), st.sampled_from([0.0, 0.05, 0.2]))
def test_a_constant_gradient_norm_refines_to_linear_decay(points, norm, warmup):
    refined = Refined(np.cumsum(np.arange(1.0, points + 1)), [norm] * points)
    plan = Plan(10_000, 1, 1.0, refined, ConstantBatch(1), int(warmup * 10_000))
    after = np.arange(int(warmup * 10_000), 10_000)
    np.testing.assert_allclose(plan.lr(after), (10_000 - after) / (10_000 - after[0]), atol=1e-9)


def test_refined_is_the_papers_sum_over_steps():
    """eta_t ~ w_t sum_{p > t} w_p, w = 1/G^2 (arXiv:2310.07831), here without smoothing, by the direct sum."""
    norms = 1 + np.random.default_rng(0).random(50)
    weights = norms**-2
    eta = np.array([weights[t] * weights[t + 1 :].sum() for t in range(50)])
    refined = Refined(np.arange(1, 51), norms, window=0.0)
    ratio = refined(np.arange(1, 50) / 50) / eta[:-1]
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-10)
    assert refined(X).max() <= 1 + 1e-12


def test_smoothing_removes_a_spike():
    norms = np.ones(41)
    spiked = norms.copy()
    spiked[20] = 1000.0
    np.testing.assert_array_equal(Refined(np.arange(1, 42), spiked)(X), Refined(np.arange(1, 42), norms)(X))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cosine(1.5), r"schedule\.final=1\.5"),
        (lambda: Linear(-0.1), r"schedule\.final=-0\.1"),
        (lambda: Rex(d=1.0), r"schedule\.d=1\.0"),
        (lambda: UBA(phi=0.0), r"schedule\.phi=0\.0 must be positive"),
        (lambda: UBA(phi=-1.0), r"schedule\.phi=-1"),
        (lambda: UBA(cycles=0), r"schedule\.cycles=0"),
        (lambda: Step(factor=0.0), r"schedule\.factor=0\.0"),
        (lambda: Step(cuts=0), r"schedule\.cuts=0"),
        (lambda: InverseSqrt(0.0), r"schedule\.scale=0\.0"),
        (lambda: Power(1.0, exponent=0.0), r"schedule\.exponent=0\.0"),
        (lambda: WSD(0.0), r"schedule\.decay_fraction=0\.0"),
        (lambda: WSD(0.2, "cubic"), r"schedule\.shape='cubic' is unknown: use linear"),
        (lambda: WSD(0.2, "exponential", 0.0), r"schedule\.final=0\.0: exponential decay never reaches 0"),
        (lambda: WSDS([1], 0.2, "inverse-proportional", 0.0), r"schedule\.final=0\.0: inverse-proportional"),
        (lambda: Refined([1, 2, 3], [1, 2]), r"schedule\.tokens has 3 values and schedule\.grad_norms 2"),
        (lambda: Refined([1, 3, 2], [1, 2, 3]), r"schedule\.tokens must be positive and increasing"),
        (lambda: Refined([1, 2, 3], [1, 0, 3]), r"schedule\.grad_norms must be positive"),
        (lambda: Refined([1, 2, 3], [1, 1, 3], window=1.0), r"schedule\.window=1\.0"),
    ],
)
def test_bad_settings_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()
