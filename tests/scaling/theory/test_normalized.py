"""Normalized SGD and Seesaw's theory."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.problems import power_law
from scaling.theory import max_stable_lr, sgd_risk
from scaling.theory.modes import exact_modes
from scaling.theory.normalized import effective_rates, normalized_sgd_risk
from scaling.theory.seesaw import Phases, diverges, noise_share, seesaw
from scaling.theory.stability import squared_gradient
from scaling.theory.stages import Stage

PROBLEM = power_law(64, 1.5, 2.0, 1.0)
ROWS = (5120.0,) * 5


def test_it_is_sgd_with_the_rates_that_its_own_state_gives():
    lr, batch = np.full(50, 0.2), np.full(50, 4.0)
    rates, risks = effective_rates(PROBLEM, lr, batch)
    np.testing.assert_allclose(sgd_risk(PROBLEM, rates, batch, at=np.arange(51)), risks, rtol=1e-12)
    modes = exact_modes(PROBLEM)
    r = modes.r
    for t in (0, 1, 2):
        assert rates[t] == pytest.approx(0.2 / squared_gradient(PROBLEM, r / PROBLEM.eigenvalues, 4) ** 0.5, rel=1e-12)
        r = Stage(modes, rates[t], 4).after(r, [1])[0]


def test_replicas_that_share_the_expected_norm_have_its_risk():
    problem, replicas, steps, lr, batch = power_law(3, 1.5, 2.0, 0.5), 60_000, 10, 0.15, 2
    rates, risks = effective_rates(problem, np.full(steps, lr), np.full(steps, batch))
    generator, w = np.random.default_rng(11), np.zeros((60_000, 3))
    for rate in rates:
        x = generator.standard_normal((replicas, batch, 3)) * np.sqrt(problem.eigenvalues)
        error = np.einsum("rbd,rd->rb", x, w - problem.target) - 0.5**0.5 * generator.standard_normal((replicas, batch))
        g = np.einsum("rb,rbd->rd", error, x) / batch
        assert rate == pytest.approx(lr / np.mean((g**2).sum(-1)) ** 0.5, rel=0.02)
        w = w - rate * g
    found = (w - problem.target) ** 2 @ problem.eigenvalues
    assert abs(found.mean() - risks[-1]) < 4 * found.std() / replicas**0.5


def test_a_ramp_that_is_too_steep_diverges_where_the_theory_says():
    """Batches that grow by 4 at a constant rate: in the third phase its rate, 2.08, is beyond the stable 1.94."""
    ramp, decay = Phases(0.4, 4, ROWS, 1.0, 4.0), Phases(0.4, 4, ROWS, 2.0, 1.0)
    assert ramp.alpha == decay.alpha == 2.0
    assert diverges(PROBLEM, ramp) == 2 and diverges(PROBLEM, decay) is None
    steps = ramp.steps
    blown = normalized_sgd_risk(
        PROBLEM, np.repeat(ramp.rates, steps), np.repeat(ramp.batches, steps), at=np.cumsum(steps), noise_only=True
    )
    assert blown[1] < 1 < 1e6 < blown[2] < blown[3]
    # with the whole norm it cannot: it stalls in a ring instead
    assert ramp.risks(PROBLEM, normalized=True)[-1] == pytest.approx(0.0443, abs=5e-5)
    assert decay.risks(PROBLEM, normalized=True)[-1] == pytest.approx(0.0113, abs=5e-5)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
def test_for_sgd_a_ramp_is_the_decay_within_the_factor_that_was_measured(share):
    """Largest and least ratio over 36 problems: 1.004, 1.064, 1.70 and 5.45 were found over 1008 of them."""
    most = {0.01: 1.0045, 0.1: 1.08, 0.5: 1.75, 0.9: 5.6}[share]
    ratios = []
    for a, b in ((1.2, 1.5), (1.5, 2.0), (3.0, 2.0)):
        for d in (8, 128):
            for batch in (1, 32):
                for noise in (0.01, 1.0, 100.0):
                    problem = power_law(d, a, b, noise)
                    lr, rows = share * max_stable_lr(problem, batch), (256.0 * batch,) * 5
                    ramp = Phases(lr, batch, rows, 1.0, 2.0).risks(problem)
                    ratios.append(ramp / Phases(lr, batch, rows, 2.0, 1.0).risks(problem))
    assert np.min(ratios) > 0.975 and np.max(ratios) < most
    assert share < 0.5 or np.max(ratios) > 1.3  # a constant factor, and a real one


def test_the_ramp_becomes_the_decay_as_the_rate_vanishes():
    """At fixed lr times steps, the gap falls with the rate: equivalence is of first order."""
    gaps = []
    for lr in (0.2, 0.1, 0.05):
        rows = (400.0 / lr,) * 4
        ramp, decay = (Phases(lr, 4, rows, *both).risks(PROBLEM) for both in ((1.0, 2.0), (2.0, 1.0)))
        gaps.append(np.abs(ramp / decay - 1).max())
    assert gaps[0] > 1.7 * gaps[1] > 1.7**2 * gaps[2] and gaps[2] < 0.02


@given(st.floats(1.05, 3.0), st.floats(1.0, 4.0))
@settings(max_examples=50, deadline=None)
def test_seesaw_keeps_what_normalized_sgd_sees(cut, growth):
    decay = Phases(0.1, 4, ROWS, cut, growth)
    ramp = seesaw(decay)
    assert ramp.alpha == pytest.approx(decay.alpha, rel=1e-12)
    assert ramp.lr_cut**2 == pytest.approx(ramp.batch_growth, rel=1e-12)
    assert diverges(PROBLEM, ramp) is None  # on the edge, where its rate stays as it was


def test_phases_see_equal_samples_whatever_their_batches():
    for growth in (1.0, 1.7, 4.0):
        phases = Phases(0.1, 3, (1000.0, 777.0, 1000.0, 450.0, 900.0), 1.1, growth)
        seen = np.cumsum(phases.steps * phases.batches)
        assert np.all(np.abs(seen - np.cumsum(phases.samples)) <= phases.batches / 2 + 1e-9)


def test_noise_of_the_answers_fades_from_the_gradient_past_the_critical_batch():
    small, large = (noise_share(PROBLEM, Phases(0.05, batch, ROWS[:2], 1.0, 1.0))[-1] for batch in (1, 512))
    assert small > 0.9 and large < 0.5


@pytest.mark.parametrize(("phases", "message"), [
    ((0.1, 4, (100.0,), 0.5, 2.0), "lr_cut=0.5"),
    ((0.1, 4, (100.0,), 2.0, 0.5), "batch_growth=0.5"),
    ((0.1, 0.5, (100.0,), 2.0, 1.0), "batch_size=0.5"),
    ((0.1, 4, (), 2.0, 1.0), "samples="),
    ((0.1, 4, (100.0, 0.0), 2.0, 1.0), "samples="),
    ((0.1, 4, (3.0, 9.0), 2.0, 1.0), "samples=3 of phase 0 are not one batch of 4"),
    ((0.1, 4, (9.0, 9.0), 1.0, 16.0), "samples=9 of phase 1 are not one batch of 64"),
    ((-0.1, 4, (9.0,), 1.0, 1.0), "lr=-0.1"),
    ((0.1, 4, (np.nan,), 1.0, 1.0), "samples="),
])  # fmt: skip
def test_phases_that_make_no_schedule_are_refused(phases, message):
    with pytest.raises(ValueError, match=message):
        Phases(*phases)


def test_without_noise_there_is_nothing_to_divide_by():
    still = power_law(4, 1.5, 2.0, 0.0)
    with pytest.raises(ValueError, match="noise_variance=0"):
        normalized_sgd_risk(still, 0.1, 1, 3, noise_only=True)
    with pytest.raises(ValueError, match="noise_variance=0"):
        diverges(still, Phases(0.1, 4, ROWS, 2.0, 1.0))
    assert np.isfinite(normalized_sgd_risk(still, 0.1, 1, 300))
