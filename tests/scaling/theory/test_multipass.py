"""SGD on one data set again and again: against every sequence of mini-batches, simulation, and exact limits."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.problems import Floats, LinearProblem, power_law
from scaling.theory.multipass import max_stable_multipass_lr, multipass_sgd_risk, sample_rows
from scaling.theory.sgd import sgd_risk

DRAWS = [(1, True), (2, True), (3, True), (1, False), (2, False), (3, False)]


def batches_of(count: int, size: int, replacement: bool) -> list[list[int]]:
    """Every mini-batch that may be drawn; all are equally likely."""
    every = itertools.product(range(count), repeat=size) if replacement else itertools.combinations(range(count), size)
    return [list(batch) for batch in every]


def enumerated(
    problem: LinearProblem, x: Floats, y: Floats, rates: Sequence[float], batches: list[list[int]]
) -> tuple[float, float]:
    """(population, training) over every sequence of mini-batches."""
    w = np.zeros((1, problem.dimension))
    for rate in rates:
        w = np.concatenate([w - rate * (w @ x[b].T - y[b]) @ x[b] / len(b) for b in batches])
    return excess(problem, w).mean(), ((w @ x.T - y) ** 2).mean()


def excess(problem: LinearProblem, w: Floats) -> Floats:
    return (w - problem.target) ** 2 @ problem.eigenvalues + problem.approximation_error


@pytest.mark.parametrize("dimension", [2, 3, 6])
@pytest.mark.parametrize(("batch_size", "replacement"), DRAWS)
def test_risks_are_means_over_every_sequence_of_mini_batches(
    dimension: int, batch_size: int, replacement: bool
) -> None:
    problem = power_law(dimension + 1, 1.5, 2.0, 0.3).truncated(dimension)  # with an approximation error
    x, y = sample_rows(problem, 3, seed=1)
    rates = [0.2, 0.05, 0.3]
    expected = enumerated(problem, x, y, rates, batches_of(3, batch_size, replacement))
    found = multipass_sgd_risk(problem, x, y, rates, batch_size, replacement=replacement)
    np.testing.assert_allclose(found[:2], expected, rtol=1e-12)


def test_batch_sizes_may_change_from_step_to_step() -> None:
    problem = power_law(3, 1.5, 2.0, 0.3)
    x, y = sample_rows(problem, 3, seed=2)
    w = np.zeros((1, 3))
    for rate, size in ((0.2, 1), (0.4, 2), (0.1, 3)):
        w = np.concatenate([w - rate * (w @ x[b].T - y[b]) @ x[b] / size for b in batches_of(3, size, True)])
    found = multipass_sgd_risk(problem, x, y, [0.2, 0.4, 0.1], [1, 2, 3])
    assert found.population == pytest.approx(excess(problem, w).mean(), rel=1e-12)


@pytest.mark.parametrize("dimension", [2, 7])
def test_without_answers_the_risk_is_the_mean_over_their_noise(dimension: int) -> None:
    # risks are quadratic in the noise, so that signs in its place have the same mean: 2^n answers are all it takes
    problem = power_law(dimension, 1.5, 2.0, 0.7)
    x, _ = sample_rows(problem, 4, seed=3)
    signs = np.array(list(itertools.product([-1.0, 1.0], repeat=4))) * np.sqrt(problem.noise_variance)
    each = [multipass_sgd_risk(problem, x, x @ problem.target + noise, 0.2, 2, 9, at=[1, 4, 9]) for noise in signs]
    np.testing.assert_allclose(
        multipass_sgd_risk(problem, x, None, 0.2, 2, 9, at=[1, 4, 9]), np.mean(each, axis=0), rtol=1e-12
    )


@pytest.mark.parametrize("replacement", [True, False])
def test_risks_agree_with_simulated_runs(replacement: bool) -> None:
    problem, runs, size, steps = power_law(8, 1.5, 2.0, 0.5), 20_000, 4, 40
    x, y = sample_rows(problem, 20, seed=4)
    draw = np.random.default_rng(5)
    w = np.zeros((runs, 8))
    for _ in range(steps):
        b = draw.integers(20, size=(runs, size)) if replacement else draw.random((runs, 20)).argsort(1)[:, :size]
        errors = (x[b] @ w[:, :, None])[:, :, 0] - y[b]
        w -= 0.1 * (errors[:, None, :] @ x[b])[:, 0] / size
    found = multipass_sgd_risk(problem, x, y, 0.1, size, steps, replacement=replacement)
    for simulated, expected in ((excess(problem, w), found.population), (((w @ x.T - y) ** 2).mean(1), found.training)):
        error = simulated.std() / np.sqrt(runs)
        assert error < 0.005 * expected  # sharp enough to see the fluctuation
        assert abs(simulated.mean() - expected) < 4 * error
    assert found.fluctuation > 0.05 * found.population


@given(st.integers(2, 9), st.integers(1, 9), st.integers(0, 10**6))
def test_mini_batches_of_all_rows_without_replacement_are_gradient_descent(n: int, dimension: int, seed: int) -> None:
    problem = power_law(dimension, 1.5, 2.0, 0.5)
    x, y = sample_rows(problem, n, seed)
    rates = np.linspace(0.9, 0.1, 12) * max_stable_multipass_lr(x, n, replacement=False)
    w = np.zeros(dimension)
    for rate in rates:
        w = w - rate * x.T @ (x @ w - y) / n
    found = multipass_sgd_risk(problem, x, y, rates, n, replacement=False)
    expected = (excess(problem, w), ((x @ w - y) ** 2).mean(), 0.0)
    # where rows are few, the training loss falls to rounding
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-15 * (y**2).mean())


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 6), st.booleans(), st.integers(0, 10**6))
def test_noiseless_and_noise_alone_add_up(n: int, dimension: int, size: int, replacement: bool, seed: int) -> None:
    problem = power_law(dimension + 2, 1.4, 1.8, 0.6).truncated(dimension)
    x, _ = sample_rows(problem, n, seed)
    size = min(size, n)
    lr = 0.5 * max_stable_multipass_lr(x, size, replacement=replacement)
    whole, bias, variance = (
        multipass_sgd_risk(p, x, None, lr, size, 15, replacement=replacement)
        for p in (problem, problem.bias(), problem.variance())
    )
    total = bias.population + variance.population + problem.approximation_error
    assert whole.population == pytest.approx(total, rel=1e-10)
    assert whole.training == pytest.approx(bias.training + variance.training, rel=1e-10)
    assert whole.fluctuation == pytest.approx(bias.fluctuation + variance.fluctuation, rel=1e-8, abs=1e-14)


@given(st.permutations(range(7)), st.integers(1, 4), st.booleans(), st.integers(0, 10**6))
def test_the_order_of_rows_and_coordinates_does_not_matter(
    order: list[int], size: int, replacement: bool, seed: int
) -> None:
    problem = power_law(7, 1.5, 2.0, 0.5)
    x, y = sample_rows(problem, 7, seed)
    lr = 0.5 * max_stable_multipass_lr(x, size, replacement=replacement)
    found = multipass_sgd_risk(problem, x, y, lr, size, 10, replacement=replacement)
    moved = LinearProblem(problem.eigenvalues[order], problem.target[order], 0.5)
    for other, rows, answers in ((problem, x[order], y[order]), (moved, x[:, order], y)):
        shuffled = multipass_sgd_risk(other, rows, answers, lr, size, 10, replacement=replacement)
        np.testing.assert_allclose(shuffled, found, rtol=1e-9, atol=1e-13)


@given(st.integers(2, 4), st.integers(1, 5), st.integers(0, 10**6))
def test_rows_that_are_copied_equally_often_change_nothing_with_replacement(copies: int, n: int, seed: int) -> None:
    problem = power_law(4, 1.5, 2.0, 0.5)
    x, y = sample_rows(problem, n, seed)
    lr = 0.5 * max_stable_multipass_lr(x, 2)
    assert max_stable_multipass_lr(np.tile(x, (copies, 1)), 2) == pytest.approx(2 * lr, rel=1e-9)
    np.testing.assert_allclose(
        multipass_sgd_risk(problem, np.tile(x, (copies, 1)), np.tile(y, copies), lr, 2, 10),
        multipass_sgd_risk(problem, x, y, lr, 2, 10),
        rtol=1e-9,
        atol=1e-13,
    )


@given(st.floats(0.1, 10.0), st.floats(0.1, 10.0), st.integers(0, 10**6))
def test_units_of_rows_and_answers_scale_out(of_x: float, of_y: float, seed: int) -> None:
    problem = power_law(4, 1.5, 2.0, 0.5)
    x, y = sample_rows(problem, 6, seed)
    lr = 0.5 * max_stable_multipass_lr(x, 2)
    scaled = LinearProblem(problem.eigenvalues * of_x**2, problem.target * of_y / of_x, 0.5 * of_y**2)
    np.testing.assert_allclose(
        multipass_sgd_risk(scaled, x * of_x, y * of_y, lr / of_x**2, 2, 10),
        np.array(multipass_sgd_risk(problem, x, y, lr, 2, 10)) * of_y**2,
        rtol=1e-9,
    )


def test_small_steps_fluctuate_as_the_published_share_of_the_draws() -> None:
    # arXiv:2605.24316: 1 / B with replacement, (n - B) / (B (n - 1)) without
    problem, n = power_law(5, 1.5, 2.0, 0.5), 10
    x, y = sample_rows(problem, n, seed=6)
    single = multipass_sgd_risk(problem, x, y, 1e-6, 1, 100).fluctuation
    for size in (2, 5, 9):
        with_it, without = (
            multipass_sgd_risk(problem, x, y, 1e-6, size, 100, replacement=r).fluctuation for r in (True, False)
        )
        assert with_it / single == pytest.approx(1 / size, rel=1e-3)
        assert without / single == pytest.approx((n - size) / (size * (n - 1)), rel=1e-3)


def test_many_rows_are_as_good_as_fresh_ones() -> None:
    # 60 draws from 4000 rows meet few rows twice; a data set's own chance remains, hence several
    problem = power_law(6, 1.5, 2.0, 0.5)
    at = [1, 5, 20, 60]
    expected = sgd_risk(problem, 0.15, 1, 60, at=at)
    found = np.array(
        [multipass_sgd_risk(problem, sample_rows(problem, 4000, s)[0], None, 0.15, 1, 60, at=at)[0] for s in range(20)]
    )
    error = found.std(0) / np.sqrt(20)
    assert (error < 0.01 * expected).all()
    assert (np.abs(found.mean(0) - expected) < 4 * error + 0.015 * expected).all()


def test_without_noise_more_directions_than_rows_are_learned_to_the_end() -> None:
    problem = power_law(12, 1.2, 1.5, 0.0)
    x, y = sample_rows(problem, 5, seed=7)
    lr = 0.5 * max_stable_multipass_lr(x, 1)
    found = multipass_sgd_risk(problem, x, y, lr, 1, 4000, at=[10, 4000])
    nearest = np.linalg.pinv(x) @ y
    assert found.training[1] < 1e-12 < found.training[0]
    assert found.fluctuation[1] < 1e-12 < found.fluctuation[0]
    assert found.population[1] == pytest.approx(excess(problem, nearest), rel=1e-9)


def test_rows_that_span_few_directions_teach_only_those() -> None:
    problem = power_law(4, 1.5, 2.0, 0.2)
    x, _ = sample_rows(problem, 6, seed=8)
    x[:, 2] = 0.0
    x[:, 3] = x[:, 1]
    y = x @ problem.target
    expected = enumerated(problem, x, y, [0.2, 0.3], batches_of(6, 2, True))
    np.testing.assert_allclose(multipass_sgd_risk(problem, x, y, [0.2, 0.3], 2)[:2], expected, rtol=1e-12)


@pytest.mark.parametrize(("batch_size", "replacement"), DRAWS)
def test_at_the_limit_the_second_moments_neither_grow_nor_decay(batch_size: int, replacement: bool) -> None:
    x, _ = sample_rows(power_law(3, 1.3, 2.0, 0.2), 5, seed=9)

    def radius(lr: float) -> float:
        steps = [np.eye(3) - lr * x[b].T @ x[b] / batch_size for b in batches_of(5, batch_size, replacement)]
        return np.abs(np.linalg.eigvals(np.mean([np.kron(s, s) for s in steps], axis=0))).max()

    limit = max_stable_multipass_lr(x, batch_size, replacement=replacement)
    assert radius(limit) == pytest.approx(1.0, abs=1e-10)
    assert radius(limit * 0.99) < 1.0 < radius(limit * 1.01)


@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 10**6))
def test_larger_batches_and_different_rows_allow_larger_rates(n: int, dimension: int, seed: int) -> None:
    x, _ = sample_rows(power_law(dimension, 1.5, 2.0, 0.5), n, seed)
    anew = [max_stable_multipass_lr(x, size) for size in range(1, n + 1)]
    apart = [max_stable_multipass_lr(x, size, replacement=False) for size in range(1, n + 1)]
    slack = 1 - 1e-9
    assert all(np.diff(anew) >= -1e-9 * anew[-1]) and all(np.diff(apart) >= -1e-9 * apart[-1])
    assert all(b >= a * slack for a, b in zip(anew, apart, strict=True))
    assert anew[0] == pytest.approx(apart[0], rel=1e-9)
    assert apart[-1] == pytest.approx(2 * n / np.linalg.norm(x, 2) ** 2, rel=1e-9)  # gradient descent's


def test_an_unstable_step_is_refused_with_the_largest_stable_rate() -> None:
    problem = power_law(4, 1.5, 2.0, 0.5)
    x, y = sample_rows(problem, 8, seed=10)
    limit = max_stable_multipass_lr(x, 2)
    rates = np.full(9, 0.1)
    rates[[5, 7]] = limit * 1.0001
    with pytest.raises(ValueError, match=rf"at step 5 is unstable.*batch_size=2.*from lr={limit:.6g} on"):
        multipass_sgd_risk(problem, x, y, rates, 2)
    sizes = np.where(np.arange(9) < 6, 2, 1)  # the later step is the worse one, the first is named
    with pytest.raises(ValueError, match=rf"at step 5 is unstable.*batch_size=2.*from lr={limit:.6g} on"):
        multipass_sgd_risk(problem, x, y, rates, sizes)
    with pytest.raises(ValueError, match=r"at step 5 is unstable.*batch_size=1"):
        multipass_sgd_risk(problem, x, y, rates, 3 - sizes)
    assert np.isfinite(multipass_sgd_risk(problem, x, y, limit * 0.9999, 2, 200)).all()
    assert np.isfinite(multipass_sgd_risk(problem, x, y, rates, 8, replacement=False)).all()


def test_answers_come_in_the_shape_asked_for() -> None:
    problem = power_law(4, 1.5, 2.0, 0.5).truncated(3)
    x, y = sample_rows(problem, 8, seed=11)
    every = multipass_sgd_risk(problem, x, y, 0.1, 1, 6, at=np.arange(7))
    asked = multipass_sgd_risk(problem, x, y, 0.1, 1, 6, at=[[6, 0], [2, 2]])
    last = multipass_sgd_risk(problem, x, y, 0.1, 1, 6)
    for whole, some, end in zip(every, asked, last, strict=True):
        np.testing.assert_array_equal(some, whole[[[6, 0], [2, 2]]])
        assert np.shape(end) == () and end == whole[6]
    assert every.population[0] == pytest.approx(problem.initial_risk)
    assert every.training[0] == pytest.approx((y**2).mean())
    assert every.fluctuation[0] == 0


def test_sampled_rows_have_the_moments_of_the_problem() -> None:
    problem, n = power_law(3, 1.5, 2.0, 0.4), 40_000
    x, y = sample_rows(problem, n, seed=12)
    np.testing.assert_allclose(x.T @ x / n, np.diag(problem.eigenvalues), atol=4 * np.sqrt(2 / n))
    assert ((y - x @ problem.target) ** 2).mean() == pytest.approx(0.4, abs=4 * 0.4 * np.sqrt(2 / n))
    assert (sample_rows(problem, n, seed=12)[1] == y).all() and not (sample_rows(problem, n, seed=13)[1] == y).any()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rows": np.ones((4, 2))}, r"rows must have the shape \(n, 3\)"),
        ({"rows": np.zeros((4, 3))}, "not all of them 0"),
        ({"rows": np.full((4, 3), np.nan)}, "rows must be finite"),
        ({"answers": np.ones(3)}, "each of the 4 rows"),
        ({"answers": np.full(4, np.inf)}, "one finite number"),
        ({"lr": -0.1}, "lr=-0.1: a learning rate must be 0 or more"),
        ({"lr": np.nan}, "lr=nan"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"batch_size": 5, "replacement": False}, "batch_size=5 exceeds the 4 rows"),
        ({"at": 9}, "at=9"),
    ],
)
def test_input_that_makes_no_sense_is_named(changed: dict[str, object], message: str) -> None:
    x = np.arange(12.0).reshape(4, 3) / 10
    given = {"rows": x, "answers": np.ones(4), "lr": 0.01, "batch_size": 1, "steps": 3} | changed
    with pytest.raises(ValueError, match=message):
        multipass_sgd_risk(power_law(3, 1.5, 2.0, 0.5), **given)  # type: ignore[arg-type]


def test_no_rows_cannot_be_sampled() -> None:
    with pytest.raises(ValueError, match="count=0"):
        sample_rows(power_law(3, 1.5, 2.0, 0.5), 0, seed=0)
