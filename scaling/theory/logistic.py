"""Gradient descent on logistic regression with steps of any size: what it does, and what is proved of it.

    problem, lr --logistic_gd | adaptive_gd--> log-losses and iterates
    problem, penalty --logistic_optimum--> w*, and from its curvature the rate above which nothing settles there

The loss is mean_i log(1 + exp(-<z_i, w>)) + penalty / 2 |w|^2 with z_i = y_i x_i, and w_0 = 0. On separable data a
large rate makes it oscillate, then fall for good, and much faster than a rate that never lets it rise (Wu et al.,
arXiv:2402.15926). Losses are kept as logarithms, so one far below the smallest float is still exact.

Bounds are for |z_i| <= 1; for a larger `problem.radius` R they hold with margin / R and lr R^2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import brentq, nnls
from scipy.special import expit, log_expit, logsumexp, softmax

from data.problems import Floats
from data.separable import LogisticProblem

Loss = Literal["logistic", "exponential"]

STABLE = 1.2564312086261697
"""The positive root of e^x = 1 + 2 x: a step from a loss of at most STABLE / lr does not raise it."""

_NEWTON_STEPS = 200
_SURE = 1e-8  # Newton decrement, relative to the loss, from which on full steps converge quadratically


class Descent(NamedTuple):
    """After `steps` (k,): `log_losses` (k,) at the `iterates` (k, d), and `means` (k, d) of the iterates before."""

    steps: np.ndarray
    log_losses: Floats
    """infinite once an iterate has left the floating-point range; its row of iterates is nan"""
    iterates: Floats
    means: Floats
    """of w_0 to w_(t-1); w_0 for t = 0"""

    @property
    def losses(self) -> Floats:
        return np.exp(self.log_losses)


class Optimum(NamedTuple):
    """Where the penalised loss is least."""

    w: Floats
    loss: float


class Margin(NamedTuple):
    """`margin` = min_i <z_i, direction>, the largest there is over unit vectors."""

    margin: float
    direction: Floats


def log_loss(problem: LogisticProblem, w: ArrayLike, *, penalty: float = 0.0, loss: Loss = "logistic") -> Floats:
    """Logarithm of the loss, penalty included, at w (..., d), in the shape (...)."""
    w = np.asarray(w, dtype=np.float64)
    found = _log_mean(-(w @ problem.signed.T), loss)
    if penalty:
        with np.errstate(divide="ignore", over="ignore"):
            found = np.logaddexp(found, np.log(penalty / 2.0) + np.log((w**2).sum(-1)))
    return found


def logistic_gd(
    problem: LogisticProblem,
    lr: ArrayLike,
    steps: int | None = None,
    *,
    penalty: float = 0.0,
    at: ArrayLike | None = None,
) -> Descent:
    """Full-batch gradient descent on the penalised loss, after `at` steps (k,), by default after each from 0 on.

    `lr`: a number, or one per step; any size. The penalty's gradient is part of the step.
    """
    _check_penalty(penalty)
    return _descend(problem, "logistic", lambda v: expit(v) / len(v), _rates(lr, steps), at, penalty)


def adaptive_gd(
    problem: LogisticProblem,
    lr: ArrayLike,
    steps: int | None = None,
    *,
    loss: Loss = "logistic",
    at: ArrayLike | None = None,
) -> Descent:
    """Gradient descent whose rate adapts to the loss L: lr / L on the exponential loss mean exp(-<z, w>), and
    lr / (1 - exp(-L)) on the logistic, as follows from descending -l^-1(L), for the loss l of a row.

    That rates adapt to the current risk is from Zhang et al., arXiv:2504.04105; that its rate on the logistic loss is
    this one is recalled, and not checked against the paper. `adaptive_bound` is proved for the exponential loss alone;
    on the logistic loss runs exceed it: at n = 100 their averages still erred after 4 / margin^2 steps.
    """
    if loss not in _ADAPTIVE:
        raise ValueError(f'loss={loss!r} must be "logistic" or "exponential".')
    return _descend(problem, loss, _ADAPTIVE[loss], _rates(lr, steps), at, 0.0)


def monotone_from(losses: ArrayLike, tolerance: float = 1e-12) -> int:
    """The step from which on losses (T,) of consecutive steps, or their logarithms, never rise: the end of the phase at
    the edge of stability. T - 1 where the last of them rises or is infinite. Relative rises below `tolerance` are
    rounding.
    """
    values = np.asarray(losses, dtype=np.float64)
    if values.ndim != 1 or not values.size:
        raise ValueError(f"losses must be those of consecutive steps (T,), not of shape {values.shape}.")
    before, after = values[:-1], values[1:]
    rises = np.flatnonzero(~(after <= before + tolerance * np.maximum(np.abs(before), np.abs(after))) | np.isinf(after))
    return int(rises[-1]) + 1 if len(rises) else 0


def logistic_optimum(problem: LogisticProblem, penalty: float) -> Optimum:
    """The minimiser of the penalised loss, by Newton's method, to rounding.

    With penalty = 0 the one of least norm; ValueError where there is none, which is where the data are separable.
    """
    return logistic_optima(problem, [penalty])[0]


def logistic_optima(problem: LogisticProblem, penalties: ArrayLike) -> list[Optimum]:
    """Of each penalty (k,), each solved from the one before."""
    rows, basis = _span(problem)
    a, found = np.zeros(rows.shape[1]), []
    for penalty in np.asarray(penalties, dtype=np.float64).tolist():
        _check_penalty(penalty)
        a = _newton(rows, penalty, a)
        w = a @ basis
        found.append(Optimum(w, float(np.exp(log_loss(problem, w, penalty=penalty)))))
    return found


def sharpness(problem: LogisticProblem, w: ArrayLike, penalty: float = 0.0) -> float:
    """The largest eigenvalue of the penalised loss's Hessian at w (d,). It is largest of all at w = 0."""
    v = -(problem.signed @ np.asarray(w, dtype=np.float64))
    scaled = np.sqrt(expit(v) * expit(-v) / problem.samples)[:, None] * problem.signed
    return float(np.linalg.norm(scaled, 2) ** 2) + penalty


def critical_lr(problem: LogisticProblem, penalty: float) -> float:
    """2 / sharpness at the optimum. Below it the optimum attracts what comes near, above it nothing can settle there.

    That runs from w_0 = 0 do come near is not proved in general. On separable data it grows as 1 / (penalty log(1 /
    penalty)) (Wu et al., arXiv:2506.02336).
    """
    return 2.0 / sharpness(problem, logistic_optimum(problem, penalty).w, penalty)


def max_margin(problem: LogisticProblem) -> Margin:
    """The largest margin and its direction, where the iterates of gradient descent point in the end.

    Its length is that of the convex hull's point nearest 0, found as nonnegative least squares (least distance
    programming of Lawson and Hanson). Certified: the two differ by at most 1e-8 of the margin. ValueError where the
    data are not separable, or by less than 1e-8 of the radius.
    """
    radius = problem.radius or 1.0
    system = np.vstack([problem.signed.T / radius, np.ones(problem.samples)])
    weights, _ = nnls(system, np.append(np.zeros(problem.dimension), 1.0), maxiter=30 * problem.samples + 100)
    bound = float(np.linalg.norm(weights @ problem.signed / max(weights.sum(), 1e-300)))  # of a point of the hull
    if bound <= 1e-8 * radius:
        raise ValueError("no direction separates these data, not by 1e-8 of their radius: there is no margin.")
    support = problem.signed[weights > 0] / bound
    direction = np.linalg.lstsq(support, np.ones(len(support)))[0]  # the least with <z, w> = 1 on the support
    direction /= np.linalg.norm(direction)
    margin = float((problem.signed @ direction).min())
    if bound - margin > 1e-8 * bound:
        raise ValueError(f"the margin is between {margin:.12g} and {bound:.12g}, and no more is known: use fewer rows.")
    return Margin(margin, direction)


def average_loss_bound(margin: float, lr: float, steps: ArrayLike) -> Floats:
    """Bounds the mean loss of the iterates w_0 to w_(t-1) of `logistic_gd` without penalty, t = `steps` of any shape.

    Proved for every constant lr: (1 + (log x + lr / 2)^2 / 2) / x, for x = margin^2 lr t from 1 on (derivation in
    docs/theory.md; the shape is that of Wu et al., arXiv:2402.15926). Small for lr well below margin^2 t.
    """
    _check_bound(margin, lr)
    x = margin**2 * lr * np.asarray(steps, dtype=np.float64)
    least = np.maximum(x, 1.0)
    return 1.0 / least + (np.log(least) + lr / 2.0) ** 2 / (2.0 * x)


def phase_bound(margin: float, samples: int, lr: float) -> float:
    """Steps by which the loss of `logistic_gd` without penalty has begun to fall for good: of order max(lr, n) /
    margin^2, as in Wu et al., arXiv:2402.15926, with constants proved in docs/theory.md.

    By then a mean chance of error G = mean 1 / (1 + exp(<z, w>)) was below 1 / (2 n), so that every row was right and
    the loss below 2 log(2) G, and that was below STABLE / lr. An upper bound: phases measured are often far shorter.
    """
    _check_bound(margin, lr)
    enough = min(1.0 / (2.0 * samples), STABLE / (2.0 * np.log(2.0) * lr))

    def excess(log_x: float) -> float:
        q = max(log_x, 0.0) + lr / 2.0
        return float(np.log(q + np.sqrt(q**2 + 2.0)) - log_x - np.log(enough))

    high = 1.0
    while excess(high) > 0:
        high *= 2.0
    return float(np.exp(brentq(excess, -60.0, high))) / (margin**2 * lr)


def adaptive_bound(margin: float, lr: float, steps: ArrayLike) -> Floats:
    """Bounds the logarithm of the exponential loss at `means` of `adaptive_gd`, and of its best iterate before: -lr / 2
    (margin^2 t - 1), for any lr, however large. It falls below 0 after 1 / margin^2 steps.

    The logarithm of the exponential loss is convex and changes by at most |w - w'| (derivation in docs/theory.md; the
    statement is that of Zhang et al., arXiv:2504.04105).
    """
    _check_bound(margin, lr)
    return -lr / 2.0 * (margin**2 * np.asarray(steps, dtype=np.float64) - 1.0)


def _log_mean(v: Floats, loss: Loss) -> Floats:
    """Logarithm of the mean over the last axis of exp(v), or of log(1 + exp(v)), which is exp(v) far below 0."""
    if loss == "logistic":
        v = np.where(v < -37.0, v, np.log(np.logaddexp(0.0, np.maximum(v, -37.0))))
    return logsumexp(v, axis=-1) - np.log(v.shape[-1])


def _adaptive_logistic(v: Floats) -> Floats:
    log_total = float(_log_mean(v, "logistic"))
    log_share = np.log(-np.expm1(-np.exp(log_total))) if log_total > -37.0 else log_total  # of 1 - exp(-L)
    return np.exp(log_expit(v) - np.log(len(v)) - log_share)


_ADAPTIVE: dict[Loss, Callable[[Floats], Floats]] = {"exponential": softmax, "logistic": _adaptive_logistic}


def _descend(
    problem: LogisticProblem,
    loss: Loss,
    weights: Callable[[Floats], Floats],
    rates: Floats,
    at: ArrayLike | None,
    penalty: float,
) -> Descent:
    """w <- w + lr (sum_i weights_i z_i - penalty w), with weights of v = -z w."""
    steps = len(rates)
    asked = np.arange(steps + 1) if at is None else np.asarray(at)
    if asked.ndim != 1 or (asked % 1 != 0).any() or (asked < 0).any() or (asked > steps).any():
        raise ValueError(f"at={asked} must be whole numbers (k,) of steps, from 0 to the run's {steps}.")
    asked = asked.astype(np.int64)
    iterates, means = (np.full((len(asked), problem.dimension), np.nan) for _ in range(2))
    z, w, total = problem.signed, np.zeros(problem.dimension), np.zeros(problem.dimension)
    places: dict[int, list[int]] = {}
    for place, step in enumerate(asked.tolist()):
        places.setdefault(step, []).append(place)
    with np.errstate(over="ignore", invalid="ignore"):
        for t in range(int(asked.max(initial=0)) + 1):
            if t in places:
                iterates[places[t]], means[places[t]] = w, total / max(t, 1)
            if t == steps or not np.isfinite(w).all():
                break
            total += w
            w = w + rates[t] * (weights(-(z @ w)) @ z - penalty * w)
    finite = np.isfinite(iterates).all(axis=1)
    iterates[~finite] = np.nan
    log_losses = np.full(len(asked), np.inf)
    log_losses[finite] = log_loss(problem, iterates[finite], penalty=penalty, loss=loss)
    return Descent(asked, log_losses, iterates, means)


def _rates(lr: ArrayLike, steps: int | None) -> Floats:
    """One per step (T,)."""
    rates = np.asarray(lr, dtype=np.float64)
    count = steps if steps is not None else rates.size
    if rates.ndim > 1 or (rates.ndim == 0 and steps is None) or (rates.ndim and rates.size != count) or count < 0:
        raise ValueError(f"lr has the shape {rates.shape}, steps={steps}: give a number and steps, or one per step.")
    if not (np.isfinite(rates) & (rates >= 0)).all():
        raise ValueError(f"lr={rates}: a learning rate must be 0 or more, and finite.")
    return np.broadcast_to(rates, (count,))


def _span(problem: LogisticProblem) -> tuple[Floats, Floats]:
    """Rows in an orthonormal basis of what they span (n, r), and the basis (r, d): the minimiser lies there."""
    left, singular, basis = np.linalg.svd(problem.signed, full_matrices=False)
    kept = singular > 1e-13 * singular[0]
    return left[:, kept] * singular[kept], basis[kept]


def _newton(z: Floats, penalty: float, a: Floats) -> Floats:
    """The minimiser over a (r,) of the loss of rows z (n, r)."""

    def value(a: Floats) -> float:
        return float(np.logaddexp(0.0, -(z @ a)).mean() + penalty / 2.0 * (a @ a))

    now, last = value(a), np.inf
    for _ in range(_NEWTON_STEPS):
        wrong = expit(-(z @ a))
        gradient = penalty * a - wrong @ z / len(z)
        curvature = (z.T * (wrong * (1.0 - wrong) / len(z))) @ z
        curvature[np.diag_indices_from(curvature)] += penalty
        try:
            step = cho_solve(cho_factor(curvature), gradient)
        except np.linalg.LinAlgError:
            break
        decrement = float(gradient @ step)
        if decrement <= _SURE * now:
            if decrement >= last / 4.0:  # as good as it gets
                return a
            a, last = a - step, decrement
            now = value(a)
            continue
        size, trial = 1.0, value(a - step)
        while not trial <= now - 1e-4 * size * decrement and size > 1e-12:
            size /= 2.0
            trial = value(a - size * step)
        a, now = a - size * step, trial
    raise ValueError(
        f"penalty={penalty:g}: no minimiser was found in {_NEWTON_STEPS} Newton steps. Separable data have none "
        "without a penalty; use a larger one."
    )


def _check_penalty(penalty: float) -> None:
    if not 0 <= penalty < np.inf:
        raise ValueError(f"penalty={penalty} must be 0 or more, and finite.")


def _check_bound(margin: float, lr: float) -> None:
    if not 0 < margin <= 1:
        raise ValueError(f"margin={margin} must be above 0 and at most 1: give it in units of the problem's radius.")
    if not 0 < lr < np.inf:
        raise ValueError(f"lr={lr} must be above 0, and finite: give it times the problem's radius^2.")
