import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.laws import batch
from scaling.laws.batch import OptimalTimescale, StepLawBatch, StepLawRate, StepsToTarget, timescale
from scaling.laws.power import PowerLaw

STEPS = StepsToTarget()
TRUTH = {"a": 1500.0, "b": 3.1e6}
BATCHES = {"B": 64.0 * 2.0 ** np.arange(9)}
PUBLISHED = [law for law in vars(batch).values() if isinstance(law, type) and issubclass(law, PowerLaw)]


def test_exact_steps_give_the_parameters_back(recovers):
    recovers(STEPS, TRUTH, BATCHES)


def test_units_change_parameters_as_the_law_says(respects_units):
    assert STEPS.units == {"steps", "B"}
    respects_units(STEPS, TRUTH, BATCHES)


@given(st.floats(10, 1e5), st.floats(1e3, 1e8), st.floats(1, 1e4), st.floats(0.01, 3.0))
@settings(max_examples=30, deadline=None)
def test_at_the_critical_batch_perfect_scaling_is_missed_by_the_overhead(a, b, reference, overhead):
    p = {"a": a, "b": b}
    critical = STEPS.critical_batch(p, reference, overhead)
    perfect = STEPS.predict(p, {"B": reference}) * reference / critical
    assert STEPS.predict(p, {"B": critical}) == pytest.approx((1 + overhead) * perfect, rel=1e-9)


@given(st.floats(10, 1e5), st.floats(1e3, 1e8), st.floats(1, 1e6))
@settings(max_examples=30, deadline=None)
def test_steps_fall_and_data_rise_with_the_batch_along_one_hyperbola(a, b, size):
    # McCandlish et al. 2018 (arXiv:1812.06162): (S / S_min - 1) (E / E_min - 1) = 1.
    p = {"a": a, "b": b}
    steps = STEPS.predict(p, {"B": size})
    assert (steps / a - 1) * (size * steps / b - 1) == pytest.approx(1, rel=1e-6)
    assert STEPS.predict(p, {"B": 2 * size}) < steps and STEPS.predict(p, {"B": 2 * size}) * 2 > steps


@pytest.mark.parametrize("law", [law for law in PUBLISHED if law.references], ids=lambda law: law.__name__)
def test_published_power_laws_are_recovered_and_respect_units(law, recovers, respects_units):
    law = law()
    rng = np.random.default_rng(0)
    table = {name: np.exp(rng.uniform(np.log(1e8), np.log(1e12), 8)) for name in law.x}
    truth = dict(law.references[0].params)
    assert set(truth) == set(law.names)
    recovers(law, truth, table, starts=8)
    respects_units(law, truth, table)


def test_the_step_law_at_one_published_setting():
    # Li et al. 2025, eta = 1.79 N^-.713 D^.307 and B = .58 D^.571 as reviews quote them; at N = 1e9 and D = 1e11:
    rate = 10 ** (np.log10(1.79) - 0.713 * 9 + 0.307 * 11)
    size = 10 ** (np.log10(0.58) + 0.571 * 11)
    law, batches = StepLawRate(), StepLawBatch()
    assert law.predict(law.references[0].params, {"N": 1e9, "D": 1e11}) == pytest.approx(rate, rel=1e-12)
    assert batches.predict(batches.references[0].params, {"D": 1e11}) == pytest.approx(size, rel=1e-12)
    assert 1e-3 < rate < 3e-3 and 1e6 < size < 2e6  # a peak rate and a batch in tokens as such models use


def test_the_best_weight_decay_gives_the_best_timescale_and_is_linear_in_the_batch():
    law = OptimalTimescale()
    p = law.references[0].params
    decay = law.weight_decay(p, 5e5, 2e-3, 1e9, 2e10)
    assert timescale(5e5, 2e-3, decay, 2e10) == pytest.approx(law.predict(p, {"TPP": 20.0}))
    assert law.weight_decay(p, 1e6, 2e-3, 1e9, 2e10) == pytest.approx(2 * decay)
    assert law.predict(p, {"TPP": 200.0}) < law.predict(p, {"TPP": 20.0})
