"""Rates, bounds and regimes: against exact risks, within constant factors, and in their exponents."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.problems import power_law
from optim.averaging import Tail
from scaling.theory.multipass import multipass_sgd_risk, sample_rows
from scaling.theory.regimes import (
    Terms,
    effective_steps,
    halving_rates,
    last_iterate_bound,
    multi_pass_rate,
    one_pass_rate,
    regime,
    tail_averaged_bound,
    useful_steps,
)
from scaling.theory.sgd import sgd_risk
from scaling.theory.stability import max_stable_lr

exponents = st.floats(1.1, 4.0)
counts = st.floats(1.0, 1e12)


@pytest.mark.parametrize(
    ("a", "b", "noise", "lr", "slopes"),
    [
        # one pass, all features (d = 1e6), log2 N = 8, 13, 18. For a > b theory says (1 - b) / a, less what the
        # logarithm in N / log N takes and d cuts off: -1/4, -1/5. For a < b it says 1 / a - 1 = -1/3 in the end.
        (2.0, 1.5, 1.0, 0.3, (-0.2317, -0.2342)),
        (1.5, 1.3, 0.1, 0.2, (-0.1904, -0.2020)),
        (1.5, 2.5, 1.0, 0.19, (-0.4035, -0.3188)),
    ],
)
def test_exact_risks_of_one_pass_fall_with_the_published_exponents(
    a: float, b: float, noise: float, lr: float, slopes: tuple[float, float]
) -> None:
    # arXiv:2406.08466, arXiv:2506.08415; `slopes` were measured here, of risk against N
    problem, samples = power_law(10**6, a, b, noise), 2 ** np.array([8, 13, 18])
    risks = np.log([float(sgd_risk(problem, halving_rates(lr, n), 1, tolerance=1e-3)) for n in samples.tolist()])
    found = np.diff(risks) / np.diff(np.log(samples))
    np.testing.assert_allclose(found, slopes, atol=1e-3)
    last = np.diff(risks)[-1] / np.diff(np.log([effective_steps(n) for n in samples.tolist()]))[-1]
    limit = max((1 - b) / a, 1 / a - 1)
    assert last == pytest.approx(limit, rel=0.12)
    exponent = regime(a, b, math.inf, 10**9).exponents
    assert sum(exponent.values()) == pytest.approx(limit)


def test_one_pass_is_within_constants_of_its_rate() -> None:
    for (a, b), features, (samples, batch_size), lr in itertools.product(
        ((2.0, 1.5), (1.5, 1.3), (1.5, 2.5)), (16, 1000), ((2**8, 1), (2**12, 1), (2**12, 8)), (0.1, 0.3)
    ):
        problem = power_law(10_000, a, b, 1.0).truncated(features)
        rates = halving_rates(lr, samples // batch_size)
        rate = one_pass_rate(a, b, features, samples, lr=lr, batch_size=batch_size)
        bias = float(sgd_risk(problem.bias(), rates, batch_size))
        variance = float(sgd_risk(problem.variance(), rates, batch_size)) / problem.noise_variance
        assert 0.6 < problem.approximation_error / rate.approximation < 3  # about 1 / (b - 1)
        assert bias < 2.1 * rate.bias
        if features > 16:  # else the features may be learned to the end
            assert 0.16 * rate.bias < bias
        assert 0.18 < variance / rate.variance < 0.6
        assert 0.16 < (problem.approximation_error + bias + variance) / rate.total < 2


def test_several_passes_are_within_constants_of_their_rate() -> None:
    for (a, b), features, samples, passes in itertools.product(
        ((2.0, 1.5), (1.5, 1.3)), (8, 256), (32, 64), (0.5, 1, 4, 16)
    ):
        problem, steps = power_law(256, a, b, 0.1).truncated(features), int(samples * passes)
        x, _ = sample_rows(problem, samples, seed=0)
        rate = multi_pass_rate(a, b, features, samples, steps, lr=0.2)
        bias, variance = (
            float(multipass_sgd_risk(p, x, None, halving_rates(0.2, steps), 1).population)
            for p in (problem.bias(), problem.variance())
        )
        assert 0.2 < variance / problem.noise_variance / rate.variance < 1.7
        assert bias < 2.4 * rate.bias
        if features > 8:
            assert 1.2 * rate.bias < bias


def test_several_passes_learn_with_a_larger_exponent_of_samples_than_one() -> None:
    # arXiv:2506.08415 at a > b: N^((1-b)/b) with L = N^(a/b) steps, N^((1-b)/a) in one pass: -1/3 and -1/4 here
    a, b, lr, samples = 2.0, 1.5, 0.4, (32, 128)
    problem = power_law(512, a, b, 0.1)

    def risk(count: int, steps: int) -> float:
        rates = halving_rates(lr, steps)
        rows = [sample_rows(problem, count, seed)[0] for seed in range(3)]
        return float(np.mean([multipass_sgd_risk(problem, x, None, rates, 1).population for x in rows]))

    def slope(risks: list[float]) -> float:
        return math.log(risks[1] / risks[0]) / math.log(samples[1] / samples[0])

    several = slope([risk(n, round(useful_steps(a, b, n))) for n in samples])
    one = slope([risk(n, n) for n in samples])
    assert several == pytest.approx((1 - b) / b, abs=0.04)
    assert one == pytest.approx((1 - b) / a, abs=0.04)


@pytest.mark.parametrize(("noise", "low"), [(1.0, 0.45), (0.0, 0.08)])
def test_tail_averages_are_within_constants_of_their_bound(noise: float, low: float) -> None:
    ratios = []
    for a, b, share, (steps, batch_size) in itertools.product(
        (1.5, 2.5), (1.5, 2.0, 3.0), (0.02, 0.05, 0.1, 0.25, 0.5), ((64, 1), (1024, 8))
    ):
        problem = power_law(100, a, b, noise)
        lr = share * max_stable_lr(problem, batch_size)
        exact = float(sgd_risk(problem, lr, batch_size, 2 * steps, average=Tail(0.5)))
        bound = tail_averaged_bound(problem, lr, steps, steps, batch_size)
        ratios.append(exact / bound.total)
        assert exact < 1.25 * (bound.bias + bound.variance)  # where b is not large the feedback does not count
    assert len(ratios) == 60
    assert min(ratios) > low and max(ratios) < 1.0


@pytest.mark.parametrize("share", [0.02, 0.5])
def test_the_bound_of_a_tail_average_holds_for_short_and_long_tails(share: float) -> None:
    for a, b, (steps, batch_size), before in itertools.product(
        (1.5, 2.5), (1.5, 5.0), ((1, 1), (64, 1), (1024, 8)), (0, 0.25, 4, 64)
    ):
        problem, burn_in = power_law(100, a, b, 1.0), int(before * steps)
        lr = share * max_stable_lr(problem, batch_size)
        bound = tail_averaged_bound(problem, lr, burn_in, steps, batch_size)
        average = Tail(burn_in / (burn_in + steps))
        exact, variance = (
            float(sgd_risk(p, lr, batch_size, burn_in + steps, average=average)) for p in (problem, problem.variance())
        )
        assert 0.2 * bound.total < exact < bound.total
        assert 0.19 * bound.variance < variance < 1.001 * bound.variance


@pytest.mark.parametrize("noise", [1.0, 0.0])
def test_last_iterates_are_within_constants_of_their_bound(noise: float) -> None:
    ratios = []
    for a, b, share, (steps, batch_size) in itertools.product(
        (1.5, 2.5), (1.5, 2.0, 3.0), (0.1, 0.5), ((256, 1), (2048, 8))
    ):
        problem = power_law(100, a, b, noise)
        lr = share * max_stable_lr(problem, batch_size)
        exact = float(sgd_risk(problem, halving_rates(lr, steps), batch_size))
        bound = last_iterate_bound(problem, lr, steps, batch_size)
        assert bound.bias < exact  # it is the risk of the mean path
        ratios.append(exact / bound.total)
    assert len(ratios) == 24
    assert min(ratios) > 0.19 and max(ratios) < 1.0


def test_the_bias_of_a_bound_forgets_its_start_in_the_burn_in() -> None:
    problem = power_law(50, 1.5, 2.0, 0.0)
    mean_path = [float(sgd_risk(problem, 0.2, 1e12, s + 64, average=Tail(s / (s + 64)))) for s in (0, 64, 512)]
    bounds = [tail_averaged_bound(problem, 0.2, s, 64).bias for s in (0, 64, 512)]
    ratios = np.array(mean_path) / bounds
    assert mean_path[2] < 0.1 * mean_path[0]
    assert ((1 - np.exp(-1)) ** 2 < ratios).all() and (ratios <= 1).all()


def test_feedback_covers_problems_without_noise_that_their_first_directions_dominate() -> None:
    # b large: the mean path is learned at once, and gradient noise of the first steps is all there is
    problem = power_law(300, 1.5, 5.0, 0.0)
    lr = 0.5 * max_stable_lr(problem, 1)
    exact = float(sgd_risk(problem, lr, 1, 2048, average=Tail(0.0)))
    bound = tail_averaged_bound(problem, lr, 0, 2048)
    assert exact > 10 * bound.bias
    assert 0.3 * bound.total < exact < bound.total
    assert bound.largest == "feedback"


@given(exponents, exponents, counts, counts, counts)
def test_a_regime_is_the_largest_term_of_the_powers(a: float, b: float, m: float, n: float, steps: float) -> None:
    terms = {
        "feature-limited": m ** (1 - b),
        "step-limited": steps ** ((1 - b) / a),
        "variance-limited": min(m, steps ** (1 / a)) / min(n, steps),
    }
    found = regime(a, b, m, n, steps)
    given = {"features": m, "samples": n, "steps": steps}
    value = math.prod(given[name] ** power for name, power in found.exponents.items())
    assert value == pytest.approx(terms[found.name], rel=1e-9) == pytest.approx(max(terms.values()), rel=1e-9)


@pytest.mark.parametrize(
    ("a", "b", "features", "samples", "steps", "name", "exponents"),
    [
        (2.0, 1.5, math.inf, 1e6, None, "step-limited", {"steps": -0.25}),
        (2.0, 1.5, math.inf, 1e6, 1e7, "step-limited", {"steps": -0.25}),  # more passes help up to 1e8 steps
        (2.0, 1.5, math.inf, 1e6, 1e9, "variance-limited", {"steps": 0.5, "samples": -1.0}),
        (2.0, 1.5, 1e2, 1e6, None, "feature-limited", {"features": -0.5}),
        (1.5, 2.5, math.inf, 1e6, None, "variance-limited", {"steps": 1 / 1.5, "samples": -1.0}),
        (1.5, 2.5, math.inf, 1e9, 1e6, "variance-limited", {"steps": 1 / 1.5 - 1}),  # not all rows are seen
        (1.5, 2.5, 1e3, 1e6, None, "variance-limited", {"features": 1.0, "samples": -1.0}),
        (1.5, 2.5, 1e3, 1e9, 1e6, "variance-limited", {"features": 1.0, "steps": -1.0}),
    ],
)
def test_regimes_are_named_for_what_limits_them(
    a: float, b: float, features: float, samples: float, steps: float | None, name: str, exponents: dict[str, float]
) -> None:
    found = regime(a, b, features, samples, steps)
    assert found.name == name
    assert found.exponents == pytest.approx(exponents)


@given(st.floats(1.2, 4.0), st.floats(0.05, 0.95), st.floats(1e2, 1e9))
def test_noise_takes_over_at_the_useful_steps(a: float, part: float, samples: float) -> None:
    b = 1 + part * (a - 1)
    steps = useful_steps(a, b, samples)
    assert steps > samples
    assert regime(a, b, math.inf, samples, steps * 0.999).name == "step-limited"
    assert regime(a, b, math.inf, samples, steps * 1.001).name == "variance-limited"


@given(exponents, exponents, counts, st.floats(1.0, 1e6), st.floats(0.01, 2.0))
def test_a_pass_in_batches_is_as_many_steps_on_the_rows(a: float, b: float, n: float, size: float, lr: float) -> None:
    size = min(size, n)
    one = one_pass_rate(a, b, math.inf, n, lr=lr, batch_size=size)
    steps = (n / size) / max(math.log2(n / size), 1)
    expected = Terms(0.0, (lr * steps) ** ((1 - b) / a), (lr * steps) ** (1 / a) / (size * steps))
    np.testing.assert_allclose(one, expected, rtol=1e-9)


@given(st.floats(1e-3, 1.0), st.integers(1, 5000))
def test_halved_rates_are_halved_at_equal_distances(lr: float, steps: int) -> None:
    rates = halving_rates(lr, steps)
    assert rates.shape == (steps,) and rates[0] == lr
    values, lengths = np.unique(rates, return_counts=True)
    np.testing.assert_array_equal(values[::-1], lr * 0.5 ** np.arange(len(values)))
    assert math.floor(math.log2(steps)) <= len(values) <= max(1, math.ceil(math.log2(steps))) or steps == 1
    assert (np.abs(lengths[1:] - effective_steps(steps)) < 1).all()
    assert lengths[0] < effective_steps(steps) + 1  # the last may be cut short


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: regime(1.0, 1.5, 10, 10), "a=1.0: the power law does not sum"),
        (lambda: regime(1.5, 0.5, 10, 10), "b=0.5: the power law does not sum"),
        (lambda: regime(1.5, 1.5, 0, 10), "features=0 must be at least 1"),
        (lambda: regime(1.5, 1.5, 10, math.inf), "samples=inf must be at least 1, and finite"),
        (lambda: regime(1.5, 1.5, 10, 10, 0), "steps=0 must be at least 1"),
        (lambda: useful_steps(1.5, 1.5, math.nan), "samples=nan"),
        (lambda: multi_pass_rate(1.5, 1.5, 10, 10, 10, lr=0.0), "lr=0.0 must be more than 0"),
        (lambda: one_pass_rate(1.5, 1.5, 10, 10, batch_size=0.5), "batch_size=0.5 must be at least 1"),
        (lambda: halving_rates(0.1, 0), "steps=0"),
        (lambda: tail_averaged_bound(power_law(3, 2, 2, 1), 0.1, -1, 3), "burn_in=-1"),
        (lambda: tail_averaged_bound(power_law(3, 2, 2, 1), 0.1, 0, 0), "averaged=0 at least 1"),
        (lambda: tail_averaged_bound(power_law(3, 2, 2, 1), 0.0, 0, 3), "lr=0.0 must be more than 0"),
        (lambda: tail_averaged_bound(power_law(3, 2, 2, 1), 3.0, 0, 3), "lr=3 at step 0 is unstable"),
        (lambda: last_iterate_bound(power_law(3, 2, 2, 1), 3.0, 3), "lr=3 at step 0 is unstable"),
    ],
)
def test_input_that_makes_no_sense_is_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
