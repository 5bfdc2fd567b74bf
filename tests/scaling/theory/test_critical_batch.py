"""The critical batch size of linear problems: its parts against the recursion, its growth against theory."""

import numpy as np
import pytest

from data.problems import power_law
from optim.averaging import Tail
from scaling.theory import max_stable_lr, sgd_risk
from scaling.theory.critical import best_risk, critical_batch_size, critical_batch_size_at, steps_to

PROBLEM = power_law(20, 1.5, 2.5, 1.0)


def test_the_best_risk_is_the_least_over_rates_of_the_averaged_second_half():
    samples, batch = 512, 4
    rates = np.geomspace(1e-3, 0.98, 60) * max_stable_lr(PROBLEM, batch)
    every = [float(sgd_risk(PROBLEM, lr, batch, samples // batch, average=Tail(0.5))) for lr in rates]
    found = best_risk(PROBLEM, batch, samples)
    assert found.value == pytest.approx(min(every), rel=2e-3) and found.value <= min(every) * (1 + 1e-9)
    assert found.lr == pytest.approx(rates[int(np.argmin(every))], rel=0.1)


def test_steps_to_a_target_are_the_fewest_over_rates():
    batch, target = 4, 0.03
    found = steps_to(PROBLEM, batch, target)
    fewest = int(np.ceil(found.value))
    rates = np.geomspace(0.02, 0.98, 40) * max_stable_lr(PROBLEM, batch)

    def best(steps):
        return min(float(sgd_risk(PROBLEM, lr, batch, steps, average=Tail(0.5))) for lr in rates)

    assert best(fewest + 2) <= target < best(fewest - 2)


def test_at_the_critical_batch_a_fifth_more_samples_are_needed():
    found = critical_batch_size(PROBLEM, 0.02)
    needed = found * steps_to(PROBLEM, found, 0.02).value
    assert needed == pytest.approx(1.2 * steps_to(PROBLEM, 1.0, 0.02).value, rel=1e-3)
    assert critical_batch_size(PROBLEM, 0.02, overhead=1.0) > found > 1


@pytest.mark.parametrize(("share", "overhead"), [(0.7, 0.2), (0.5, 0.2), (0.3, 1.0)])
def test_a_critical_batch_of_a_few_rows_is_found_by_a_scan_too(share, overhead):
    problem = power_law(5, 1.5, 2.0, 0.1)
    target = share * problem.initial_risk
    found = critical_batch_size(problem, target, overhead)
    allowed = (1 + overhead) * steps_to(problem, 1.0, target).value
    needed = {batch: batch * steps_to(problem, batch, target).value for batch in (0.99 * found, 1.01 * found)}
    assert 1 < found < 40 and needed[0.99 * found] < allowed < needed[1.01 * found]


def test_the_approximation_error_is_part_of_the_target():
    truncated = power_law(100, 1.5, 2.5, 1.0).truncated(20)
    from_above = critical_batch_size(truncated, 0.02 + truncated.approximation_error)
    noisier = power_law(20, 1.5, 2.5, 1.0 + truncated.approximation_error)
    assert from_above == pytest.approx(critical_batch_size(noisier, 0.02), rel=1e-3)


def test_it_grows_with_the_samples_as_theory_says():
    """B* ~ n^(1 - a / b) where b > a: 0.5 for a = 1.5, b = 3 (0.592 to 0.503 were measured for n = 2^10 ... 2^18)."""
    problem = power_law(80, 1.5, 3.0, 1.0)
    first, last = (critical_batch_size_at(problem, 2.0**k) for k in (10, 13))
    assert np.log(last / first) / np.log(8) == pytest.approx(0.55, abs=0.06)


def test_where_bias_rules_it_does_not_grow():
    """b < a: steps are what counts, and a larger batch only makes fewer of them."""
    problem = power_law(80, 2.5, 1.3, 0.01)
    first, last = (critical_batch_size_at(problem, 2.0**k) for k in (10, 13))
    assert last < first < 10


def test_without_noise_it_is_about_the_trace_over_the_largest_eigenvalue():
    """With rates near 2 B / (tr H + (B + 1) l_1), the samples B / lr double at B = tr H / l_1 + 3: up to a constant."""
    for a in (1.05, 2.0):
        problem = power_law(30, a, 2.0, 0.0)
        expected = problem.eigenvalues.sum() / problem.eigenvalues.max() + 3
        assert expected / 3 < critical_batch_size(problem, 0.1, overhead=1.0) < 3 * expected


def test_samples_that_leave_no_room_are_refused():
    for samples, smallest in ((-1.0, 1.0), (10.0, 100.0), (np.inf, 1.0)):
        with pytest.raises(ValueError, match="samples="):
            critical_batch_size_at(PROBLEM, samples, smallest=smallest)
    with pytest.raises(ValueError, match="is not reached in"):
        critical_batch_size(PROBLEM, 1e-14)


@pytest.mark.parametrize(("asked", "message"), [
    ({"target_risk": 5.0}, "target_risk=5 must lie between"),
    ({"target_risk": 0.0}, "target_risk=0 must lie between"),
    ({"target_risk": 0.1, "overhead": 0.0}, "overhead=0"),
    ({"target_risk": 0.1, "smallest": 0.5}, "batch_size=0.5"),
])  # fmt: skip
def test_targets_that_cannot_be_reached_are_refused(asked, message):
    with pytest.raises(ValueError, match=message):
        critical_batch_size(PROBLEM, **asked)
