"""One-pass SGD: the recursion against quadrature and simulation, and every fast way against the recursion."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.problems import LinearProblem, power_law
from optim.averaging import EWA, GrowingWindow, HalfLife, Tail
from optim.plan import Plan
from optim.ramps import Seesaw
from optim.schedules import WSD, Cosine
from scaling.theory import max_stable_lr, sgd_risk, stationary_risk
from scaling.theory.modes import binned_modes, exact_modes
from scaling.theory.recursion import blocked, plain
from scaling.theory.stages import Stage


@st.composite
def problems(draw, most=6):
    d = draw(st.integers(1, most))
    eigenvalues = draw(st.lists(st.floats(0.01, 3.0), min_size=d, max_size=d))
    target = draw(st.lists(st.floats(-2.0, 2.0), min_size=d, max_size=d))
    return LinearProblem(np.array(eigenvalues), np.array(target), draw(st.sampled_from([0.0, 0.1, 5.0])))


@st.composite
def runs(draw, most_steps=40):
    """A problem and stable steps that all differ."""
    problem, steps = draw(problems()), draw(st.integers(1, most_steps))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    batch_size = generator.choice([1, 2, 5, 64], steps).astype(float)
    limits = {b: max_stable_lr(problem, b) for b in set(batch_size.tolist())}
    lr = generator.uniform(0, 0.95, steps) * [limits[b] for b in batch_size.tolist()]
    return problem, lr, batch_size


def second_moments(problem, lr, batch_size):
    """Risks by the full matrix E[delta delta'], from E[x x' C x x'] = 2 H C H + tr(H C) H for Gaussian x."""
    h = np.diag(problem.eigenvalues)
    c = np.outer(problem.target, problem.target)
    risks = [np.trace(h @ c)]
    for rate, batch in zip(lr, batch_size, strict=True):
        once = h @ c @ h
        mean_of_squares = (2 * once + np.trace(h @ c) * h) / batch + (1 - 1 / batch) * once
        c = c - rate * (h @ c + c @ h) + rate**2 * (mean_of_squares + problem.noise_variance / batch * h)
        risks.append(np.trace(h @ c))
    return np.array(risks)


@given(runs())
@settings(max_examples=40, deadline=None)
def test_the_recursion_of_the_diagonal_is_that_of_the_whole_matrix(run):
    problem, lr, batch_size = run
    found = sgd_risk(problem, lr, batch_size, at=np.arange(len(lr) + 1))
    np.testing.assert_allclose(found, second_moments(problem, lr, batch_size), rtol=1e-11)


def one_step_by_quadrature(problem, w, lr):
    """E over one Gaussian row and its noise of the risk after a step from w, by Gauss-Hermite nodes."""
    z, weight = np.polynomial.hermite_e.hermegauss(12)
    weight = weight / weight.sum()
    x1, x2, e = np.meshgrid(z, z, z, indexing="ij")
    mass = np.einsum("i,j,k->ijk", weight, weight, weight)
    x = np.stack([x1, x2]) * np.sqrt(problem.eigenvalues)[:, None, None, None]
    error = np.tensordot(w - problem.target, x, 1) - np.sqrt(problem.noise_variance) * e
    after = (w - problem.target)[:, None, None, None] - lr * error * x
    return float((mass * np.tensordot(problem.eigenvalues, after**2, 1)).sum())


@pytest.mark.parametrize("noise", [0.0, 0.7])
def test_a_step_has_the_risk_that_quadrature_gives(noise):
    problem = LinearProblem(np.array([1.3, 0.4]), np.array([0.8, -1.1]), noise)
    expected = one_step_by_quadrature(problem, np.zeros(2), 0.3)
    assert sgd_risk(problem, 0.3, 1, 1) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("name", "draw", "kurtosis"), [
    ("gaussian", lambda g, shape: g.standard_normal(shape), 3.0),
    ("signs", lambda g, shape: g.choice([-1.0, 1.0], shape), 1.0),
])  # fmt: skip
def test_simulated_runs_have_the_mean_risk(name, draw, kurtosis):
    """Weight decay, an average and another distribution of rows among them; |z| < 4 for a seed chosen once."""
    problem, replicas, steps = power_law(4, 1.5, 2.0, 0.5), 40_000, 12
    lr, batch_size, decay = np.linspace(0.15, 0.02, steps), np.array([1, 2, 3] * 4), 0.3
    average = EWA(0.7)
    generator = np.random.default_rng(7)
    w = np.zeros((replicas, 4))
    decayed, mean = w.copy(), w.copy()
    for t in range(steps):
        x = draw(generator, (replicas, batch_size[t], 4)) * np.sqrt(problem.eigenvalues)
        y = x @ problem.target + np.sqrt(0.5) * generator.standard_normal((replicas, batch_size[t]))

        def gradient(at, x=x, y=y):
            return np.einsum("rbd,rb->rd", x, np.einsum("rbd,rd->rb", x, at) - y) / x.shape[1]

        w = w - lr[t] * gradient(w)
        decayed = decayed - lr[t] * (gradient(decayed) + decay * decayed)
        mean = 0.7 * mean + 0.3 * decayed
    mean /= 1 - 0.7**steps
    for at, expected in (
        (w, sgd_risk(problem, lr, batch_size, kurtosis=kurtosis)),
        (decayed, sgd_risk(problem, lr, batch_size, kurtosis=kurtosis, weight_decay=decay)),
        (mean, sgd_risk(problem, lr, batch_size, kurtosis=kurtosis, weight_decay=decay, average=average)),
    ):
        risks = (at - problem.target) ** 2 @ problem.eigenvalues
        z = (risks.mean() - expected) / (risks.std() / replicas**0.5)
        assert abs(z) < 4, (name, z)


@given(problems(4), st.integers(0, 2**32))
@settings(max_examples=12, deadline=None)
def test_chosen_problems_agree_with_simulation(problem, seed):
    """Small rates, where risks are not heavy-tailed. |z| < 5 for whatever problem hypothesis chooses."""
    replicas, steps, batch = 4000, 15, 2
    lr = 0.1 * max_stable_lr(problem, batch)
    generator = np.random.default_rng(seed)
    w = np.zeros((replicas, problem.dimension))
    for _ in range(steps):
        x = generator.standard_normal((replicas, batch, problem.dimension)) * np.sqrt(problem.eigenvalues)
        error = np.einsum("rbd,rd->rb", x, w - problem.target)
        error -= np.sqrt(problem.noise_variance) * generator.standard_normal(error.shape)
        w = w - lr / batch * np.einsum("rb,rbd->rd", error, x)
    risks = (w - problem.target) ** 2 @ problem.eigenvalues
    expected = sgd_risk(problem, lr, batch, steps)
    assert abs(risks.mean() - expected) <= 5 * risks.std() / replicas**0.5 + 1e-12


# ---------------------------------------------------------------------------------------------------- properties


@given(runs())
@settings(max_examples=40, deadline=None)
def test_bias_and_variance_add_up(run):
    problem, lr, batch_size = run
    at = np.arange(len(lr) + 1)
    lr = 0.6 * lr  # decay takes some of what is stable
    for more in ({}, {"average": EWA(0.8)}, {"weight_decay": 0.2 * problem.eigenvalues.min()}):
        whole = sgd_risk(problem, lr, batch_size, at=at, **more)
        parts = [sgd_risk(part, lr, batch_size, at=at, **more) for part in (problem.bias(), problem.variance())]
        np.testing.assert_allclose(sum(parts), whole, rtol=1e-12, atol=1e-300)


@given(runs(), st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_the_order_of_eigenvalues_does_not_matter(run, seed):
    problem, lr, batch_size = run
    order = np.random.default_rng(seed).permutation(problem.dimension)
    other = LinearProblem(problem.eigenvalues[order], problem.target[order], problem.noise_variance)
    assert sgd_risk(other, lr, batch_size) == pytest.approx(sgd_risk(problem, lr, batch_size), rel=1e-12)


@given(runs())
@settings(max_examples=30, deadline=None)
def test_equal_eigenvalues_may_be_rotated_into_each_other(run):
    """A direction split in two of the same eigenvalue, its target shared by Pythagoras, and one of no target."""
    problem, lr, batch_size = run
    l, w = problem.eigenvalues, problem.target
    wide = LinearProblem(np.append(l, l[0]), np.append(w, 0.0), problem.noise_variance)
    lr = lr * 0.3  # a direction more is more noise
    turned = LinearProblem(
        wide.eigenvalues, np.append(w * np.r_[0.6, np.ones(len(w) - 1)], 0.8 * w[0]), wide.noise_variance
    )
    assert sgd_risk(turned, lr, batch_size) == pytest.approx(sgd_risk(wide, lr, batch_size), rel=1e-12)


@given(runs())
@settings(max_examples=30, deadline=None)
def test_blocks_of_steps_are_the_steps(run):
    problem, lr, batch_size = run
    modes = exact_modes(problem)
    risks, r = blocked(modes, modes.r, lr, batch_size)
    np.testing.assert_allclose(risks, plain(modes, lr, batch_size), rtol=1e-12)
    assert r.sum() == pytest.approx(risks[-1], rel=1e-12)


@given(problems(), st.floats(0.001, 0.95), st.sampled_from([1.0, 3.0, 100.0]), st.integers(1, 300))
@settings(max_examples=50, deadline=None)
def test_a_jump_is_its_steps(problem, share, batch, steps):
    lr = share * max_stable_lr(problem, batch)
    modes = exact_modes(problem)
    expected = plain(modes, np.full(steps, lr), np.full(steps, batch))
    at = np.array([0, 1, steps // 2, steps])
    found = Stage(modes, lr, batch).after(modes.r, at).sum(-1)
    np.testing.assert_allclose(found, expected[at], rtol=1e-10, atol=1e-13 * expected[0])


@given(problems(), st.floats(0.001, 0.95), st.sampled_from([1.0, 8.0]), st.integers(2, 200), st.floats(0, 0.9))
@settings(max_examples=50, deadline=None)
def test_the_closed_form_of_tail_averages_is_the_weighted_recursion(problem, share, batch, steps, start):
    lr = np.full(steps, share * max_stable_lr(problem, batch))
    modes, batches = exact_modes(problem), np.full(steps, batch)
    weights = Tail(start).weights(np.arange(steps + 1) * batch)
    expected = plain(modes, lr, batches, weights)
    begins = int(np.flatnonzero(weights)[0])
    stage = Stage(modes, lr[0], batch)
    counts = np.arange(1, steps - begins + 1)
    found = stage.mean_risk(stage.after(modes.r, [begins + 1])[0], counts)
    np.testing.assert_allclose(found, expected[begins + 1 :], rtol=1e-9, atol=1e-13 * expected[-1])
    assert np.isnan(expected[: begins + 1]).all()


@pytest.mark.parametrize("average", [EWA(0.9), HalfLife(20.0), GrowingWindow(3.0), Tail(0.4)])
def test_an_average_is_the_weights_of_its_iterates(average):
    """E[(sum_t a_t delta_t)^2] from all pairs of iterates, E[delta_t delta_u] = (1 - lr l)^(u - t) c_t."""
    problem, lr, batch, steps = power_law(5, 1.5, 2.0, 0.3), 0.2, 2, 30
    modes = exact_modes(problem)
    c = [Stage(modes, lr, batch).after(modes.r, [t])[0] / problem.eigenvalues for t in range(steps + 1)]
    shares = np.eye(steps + 1)[0]
    for t, a in enumerate(average.weights(np.arange(steps + 1) * batch), 1):
        shares *= 1 - a
        shares[t] += a
    m = 1 - lr * problem.eigenvalues
    expected = sum(
        shares[t] * shares[u] * float(problem.eigenvalues @ (m ** abs(u - t) * c[min(t, u)]))
        for t in range(steps + 1)
        for u in range(steps + 1)
    )
    assert shares.sum() == pytest.approx(1.0)
    assert sgd_risk(problem, lr, batch, steps, average=average) == pytest.approx(expected, rel=1e-11)


def test_risk_follows_from_renewal():
    """S_t = F_t + sum over u < t of K_(t-1-u) (S_u + noise), and the kernel K sums to rho (Volterra's form)."""
    problem, lr, batch, steps = power_law(20, 1.5, 2.0, 0.4), 0.15, 2, 60
    l = problem.eigenvalues
    d = 1 - 2 * lr * l + (1 + 1 / batch) * lr**2 * l**2
    t = np.arange(200_000)[:, None]
    kernel = lr**2 / batch * (l**2 * d ** t[:steps]).sum(-1)
    risks = []
    for u in range(steps + 1):
        past = sum(kernel[u - 1 - v] * (risks[v] + 0.4) for v in range(u))
        risks.append(float((l * problem.target**2) @ d**u) + past)
    np.testing.assert_allclose(sgd_risk(problem, lr, batch, steps, at=np.arange(steps + 1)), risks, rtol=1e-12)


def test_the_limit_of_small_steps_is_a_differential_equation():
    """dc/dtau = -2 l c + theta l^2 c + theta l (S + noise): halving lr and B at fixed lr / B halves the error."""
    from scipy.integrate import solve_ivp

    problem, theta, end = power_law(6, 1.5, 2.0, 0.5), 0.02, 4.0
    l = problem.eigenvalues

    def slope(_, c):
        return -2 * l * c + theta * l**2 * c + theta * l * (l @ c + 0.5)

    limit = l @ solve_ivp(slope, (0, end), problem.target**2, rtol=1e-11, atol=1e-13).y[:, -1]
    errors = [abs(sgd_risk(problem, lr, lr / theta, round(end / lr)) / limit - 1) for lr in (0.16, 0.08, 0.04)]
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.15) and errors[1] / errors[2] == pytest.approx(2, rel=0.15)


# ---------------------------------------------------------------------------------------------------- few for many


@pytest.mark.parametrize(("a", "b"), [(1.2, 1.5), (1.5, 2.0), (3.0, 1.5), (1.5, 6.0)])
def test_bins_keep_to_the_tolerance(a, b):
    problem = power_law(20_000, a, b, 0.1)
    x = np.arange(3000) / 3000
    lr, at = 0.4 * (1 + np.cos(np.pi * x)) / 2, np.array([1, 10, 100, 1000, 3000])
    batch_size = np.where(x < 0.5, 4, 16)
    modes = exact_modes(problem)
    exact = plain(modes, lr, batch_size)[at]
    for tolerance in (1e-3, 1e-7):
        np.testing.assert_allclose(sgd_risk(problem, lr, batch_size, at=at, tolerance=tolerance), exact, rtol=tolerance)


def test_bins_have_the_moments_of_their_eigenvalues():
    problem = power_law(3000, 1.3, 1.8, 0.1)
    modes, l = binned_modes(problem, 12), problem.eigenvalues
    assert len(modes.r) == 12 + 4 * 12 and (modes.q >= 0).all() and (modes.r >= 0).all()
    for power in range(4):
        assert modes.q @ modes.rates**power == pytest.approx((l**2 * l**power).sum(), rel=1e-12)
        assert modes.r @ modes.rates**power == pytest.approx((l * problem.target**2 * l**power).sum(), rel=1e-12)


def test_twice_the_bins_have_a_sixteenth_of_the_error():
    problem, steps = power_law(50_000, 1.5, 2.0, 0.1), 2000
    lr, batch = np.full(steps, 0.2), np.full(steps, 4.0)
    risks = [float(blocked(m, m.r, lr, batch)[0][-1]) for m in (binned_modes(problem, n) for n in (16, 32, 64, 256))]
    errors = [abs(risk / risks[-1] - 1) for risk in risks[:-1]]
    assert errors[0] > 10 * errors[1] > 100 * errors[2] > 0


def test_a_jump_of_binned_modes_is_their_steps():
    problem, steps = power_law(3000, 1.5, 2.0, 0.1), 500
    modes = binned_modes(problem, 16)
    assert len(modes.r) < 100 and modes.r.sum() == pytest.approx(problem.initial_risk, rel=1e-12)
    expected = plain(modes, np.full(steps, 0.1), np.full(steps, 2.0))
    found = Stage(modes, 0.1, 2.0).after(modes.r, np.array([0, 1, 77, 500])).sum(-1)
    np.testing.assert_allclose(found, expected[[0, 1, 77, 500]], rtol=1e-11)


# ---------------------------------------------------------------------------------------------------- how it is asked


def test_a_plan_gives_rates_and_batches():
    plan = Plan(4096 * 8, 8, 0.2, Cosine(), Seesaw(batch_size=4), warmup_tokens=2048)
    steps = plan.steps()
    problem = power_law(30, 1.5, 2.0, 0.1)
    at = np.array([[0, 1], [50, plan.serial_steps]])
    found = sgd_risk(problem, plan=plan, at=at)
    np.testing.assert_array_equal(found, sgd_risk(problem, steps.lr, steps.batch_size, at=at))
    assert found.shape == (2, 2) and found[0, 0] == pytest.approx(problem.initial_risk)
    with_average = sgd_risk(problem, plan=plan, average=HalfLife(800.0))  # in the plan's tokens: 100 sequences
    rows = sgd_risk(problem, steps.lr, steps.batch_size, average=HalfLife(100.0))
    assert with_average == pytest.approx(rows, rel=1e-12)


def test_stretches_of_equal_steps_are_jumped_between_others_that_are_not():
    """A warm-up, two long constant stages and a decay, asked at every edge, against the plain recursion."""
    problem = power_law(25, 1.5, 2.0, 0.2)
    plan = Plan(40_000, 1, 0.3, WSD(), Seesaw(batch_size=2), warmup_tokens=500)
    lr, batch_size = plan.steps().lr, plan.steps().batch_size
    edges = np.flatnonzero(np.diff(lr) != 0)[::37]
    at = np.unique(np.concatenate([edges, edges + 1, [0, len(lr)]]))
    np.testing.assert_allclose(
        sgd_risk(problem, lr, batch_size, at=at), plain(exact_modes(problem), lr, batch_size)[at], rtol=1e-10
    )


def test_a_tail_average_has_its_tolerance_too():
    problem = power_law(300, 1.5, 2.0, 1.0)
    exact = sgd_risk(problem, 0.1, 1, 3000, average=Tail(0.5))
    assert sgd_risk(problem, 0.1, 1, 3000, average=Tail(0.5), tolerance=1e-4) == pytest.approx(exact, rel=1e-4)


def test_what_the_features_cannot_reach_is_in_every_risk():
    """A sketch of all features is the problem itself; of fewer, an error that no step removes."""
    problem = power_law(8, 1.5, 2.0, 0.3)
    generator = np.random.default_rng(0)
    whole = problem.sketched(generator.standard_normal((8, 8)))
    assert whole.approximation_error == pytest.approx(0.0, abs=1e-12)
    assert whole.initial_risk == pytest.approx(problem.initial_risk, rel=1e-10)
    part, cut = problem.sketched(np.eye(8)[:3]), problem.truncated(3)
    np.testing.assert_allclose(np.sort(part.eigenvalues), np.sort(cut.eigenvalues), rtol=1e-12)
    missed = float((np.arange(4, 9) ** -2.0).sum())
    assert part.approximation_error == pytest.approx(missed) == cut.approximation_error
    assert part.noise_variance == pytest.approx(0.3 + missed) and cut.initial_risk == pytest.approx(
        problem.initial_risk
    )
    settled = sgd_risk(cut, 1e-3, 1, 10**6)
    assert settled > missed and settled == pytest.approx(stationary_risk(cut, 1e-3, 1), rel=1e-6)
    assert settled == pytest.approx(missed + sgd_risk(power_law(3, 1.5, 2.0, 0.3 + missed), 1e-3, 1, 10**6), rel=1e-12)


def test_sgd_on_a_sketch_has_the_risk_that_simulation_gives():
    problem, replicas, steps, lr = power_law(6, 1.5, 2.0, 0.2), 40_000, 12, 0.05
    generator = np.random.default_rng(5)
    sketch = generator.standard_normal((3, 6))
    small = problem.sketched(sketch)
    w = np.zeros((replicas, 3))
    for _ in range(steps):
        x = generator.standard_normal((replicas, 6)) * np.sqrt(problem.eigenvalues)
        features, y = x @ sketch.T, x @ problem.target + 0.2**0.5 * generator.standard_normal(replicas)
        w = w - lr * ((features * w).sum(-1) - y)[:, None] * features
    left = w @ sketch - problem.target
    risks = left**2 @ problem.eigenvalues
    assert abs(risks.mean() - sgd_risk(small, lr, 1, steps)) < 4 * risks.std() / replicas**0.5


@pytest.mark.parametrize("gap", [1e-9, 1e-12])
def test_a_tail_average_is_exact_up_to_the_edge_of_stability_and_at_a_rate_of_zero(gap):
    problem, steps = power_law(30, 1.5, 2.0, 0.1), 2000
    for lr in ((1 - gap) * max_stable_lr(problem, 4), 0.0):
        weights = Tail(0.5).weights(np.arange(steps + 1) * 4.0)
        expected = plain(exact_modes(problem), np.full(steps, lr), np.full(steps, 4.0), weights)[-1]
        assert sgd_risk(problem, lr, 4, steps, average=Tail(0.5)) == pytest.approx(expected, rel=1e-10)


def test_no_step_leaves_the_risk_of_the_start():
    problem = power_law(4, 1.5, 2.0, 0.1)
    for found in (sgd_risk(problem, 0.1, 4, 0), sgd_risk(problem, [], []), sgd_risk(problem, 0.1, 4, 9, at=0)):
        assert found == pytest.approx(problem.initial_risk)


def test_a_billion_steps_end_in_the_stationary_risk():
    problem = power_law(300, 1.5, 2.0, 0.1)
    assert sgd_risk(problem, 0.1, 1, 10**9) == pytest.approx(stationary_risk(problem, 0.1, 1), rel=1e-10)


@pytest.mark.parametrize(("asked", "message"), [
    ({"lr": 0.1, "batch_size": 1}, "say how many steps"),
    ({"lr": 0.1, "steps": 3}, "give lr and batch_size"),
    ({"lr": [0.1, 0.2], "batch_size": 1, "steps": 3}, r"lr has the shape \(2,\)"),
    ({"lr": 0.1, "batch_size": 0.5, "steps": 3}, "batch_size=0.5 must be at least 1 row"),
    ({"lr": -0.1, "batch_size": 1, "steps": 3}, "lr=-0.1"),
    ({"lr": np.nan, "batch_size": 1, "steps": 3}, "lr=nan"),
    ({"lr": 0.1, "batch_size": 1, "steps": 3, "at": 4}, "at=4.*0 to the run's 3"),
    ({"lr": 0.1, "batch_size": 1, "steps": 3, "at": 1.5}, "at=1.5"),
    ({"lr": 0.1, "batch_size": 1, "steps": 3, "weight_decay": -1}, "weight_decay=-1"),
    ({"lr": [0.1, 0.1, 0.6], "batch_size": [1, 1, 1]}, r"lr=0.6 at step 2 is unstable.*lr=0.531957"),
    ({"lr": 0.1, "plan": "given"}, "a plan gives lr"),
    ({"lr": 1.25, "batch_size": 4, "steps": 3, "weight_decay": 0.3}, "is unstable: .*from lr=1.1"),
    ({"lr": 0.1, "batch_size": 1, "steps": 3, "kurtosis": 0.5}, "kurtosis=0.5"),
    ({"lr": 0.1, "batch_size": 1, "steps": 3, "weight_decay": np.inf}, "weight_decay=inf"),
])  # fmt: skip
def test_what_cannot_be_asked_is_refused(asked, message):
    with pytest.raises(ValueError, match=message):
        sgd_risk(power_law(300, 1.5, 2.0, 0.1), **asked)
