"""The expected risk of mini-batch SGD that draws from one fixed data set again and again: exact over the draws.

    problem, rows, answers, lr, batch_size --mean path and covariance--> risk on fresh rows, error on these rows

The mean of w over the draws is gradient descent on all rows. What the draws add is the covariance C of w around it,

    C' = (I - lr S) C (I - lr S) + lr^2 rho [ (1/n) sum_i (e_i^2 + x_i' C x_i) x_i x_i' - g g' - S C S ]

with S = X'X / n, and e = X w - y, g = X'e / n at the mean. rho is 1 / B for rows drawn with replacement, and
(n - B) / (B (n - 1)) for mini-batches of different rows. All of it happens in the span of the rows, in whose principal
coordinates S is diagonal; there min(n, d) numbers describe w. A step costs O(n min(n, d)^2).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse.linalg import LinearOperator, eigsh

from data.problems import Floats, LinearProblem
from scaling.theory.sgd import asked_steps, schedule_of
from scaling.theory.stability import check_batch_size, check_rates


class MultipassRisk(NamedTuple):
    """Expected over the draws, each in the shape of `at`."""

    population: Floats
    """excess risk E[(w - w*)' H (w - w*)], in squared units of y"""
    training: Floats
    """mean squared error on the data set's own rows, without a factor 1/2"""
    fluctuation: Floats
    """the part of `population` that comes from drawing mini-batches; the rest is gradient descent's on all rows"""


class _DataSet(NamedTuple):
    """X = left diag(singular) right', without its null directions: (n, r), (r,), (d, r)."""

    left: Floats
    singular: Floats
    right: Floats

    @property
    def coordinates(self) -> Floats:
        """The rows in the r principal coordinates, (n, r)."""
        return self.left * self.singular

    @property
    def curvature(self) -> Floats:
        """Eigenvalues of S = X'X / n, (r,)."""
        return self.singular**2 / len(self.left)


def sample_rows(problem: LinearProblem, count: int, seed: int) -> tuple[Floats, Floats]:
    """`count` rows X (count, d) and their answers y (count,), in the problem's coordinates."""
    if count < 1:
        raise ValueError(f"count={count} must be at least 1 row.")
    draw = np.random.default_rng(seed)
    rows = draw.standard_normal((count, problem.dimension)) * np.sqrt(problem.eigenvalues)
    return rows, rows @ problem.target + np.sqrt(problem.noise_variance) * draw.standard_normal(count)


def multipass_sgd_risk(
    problem: LinearProblem,
    rows: ArrayLike,
    answers: ArrayLike | None,
    lr: ArrayLike,
    batch_size: ArrayLike,
    steps: int | None = None,
    *,
    at: ArrayLike | None = None,
    replacement: bool = True,
) -> MultipassRisk:
    """After `at` steps (any shape; by default after all) from w = 0, given the `rows` (n, d) and `answers` (n,).

    Without answers (None) also expected over their noise, given the rows: gradient descent's part is then its bias plus
    its variance. `lr`, `batch_size`: a number, or one per step. `replacement`: every row of a mini-batch is drawn anew;
    without it the rows of one mini-batch differ, and the next is drawn from all rows again (n rows a batch are then
    gradient descent). Epochs, whose batches share no row, have no such recursion. The rows need not be Gaussian.
    ValueError for an unstable step, naming the largest stable rate on these rows.

    Source: derived in docs/theory.md; the split into gradient descent and fluctuation, and rho, are those of
    arXiv:2605.24316.
    """
    data, y = _checked(problem, rows, answers)
    run = schedule_of(lr, batch_size, steps, None)
    asked = asked_steps(at, len(run.lr))
    share = _share_of_draws(run.batch_size, len(data.left), replacement)
    _check_stable(data, run.lr, run.batch_size, share)

    z, s = data.coordinates, data.curvature
    # y in the span of the rows (with what gradient descent has learned of it), outside it, and noise yet to be drawn
    signal = data.singular * (data.right.T @ problem.target) if y is None else data.left.T @ y
    outside = np.zeros(len(z)) if y is None else y - data.left @ signal
    noise = problem.noise_variance if y is None else 0.0
    squares = data.left**2
    noise_outside = noise * np.maximum(1.0 - squares.sum(1), 0.0)
    metric = (data.right.T * problem.eigenvalues) @ data.right
    products = np.outer(s, s)

    covariance = np.zeros((len(s), len(s)))
    left_over, learned = np.ones(len(s)), np.zeros(len(s))  # of the signal; they sum to 1, each exact where it is small
    found = np.full((3, len(run.lr) + 1), np.nan)
    wanted = np.isin(np.arange(len(run.lr) + 1), asked)
    for step in range(int(asked.max(initial=0)) + 1):
        errors = (data.left @ (left_over * signal) + outside) ** 2 + noise * (squares @ left_over**2) + noise_outside
        errors += np.einsum("ik,ik->i", z @ covariance, z)
        if wanted[step]:
            path = learned / data.singular
            miss = data.right @ (path * signal) - problem.target
            descent = problem.eigenvalues @ miss**2 + noise * (path**2 @ metric.diagonal())
            fluctuation = np.vdot(metric, covariance)
            found[:, step] = descent + fluctuation + problem.approximation_error, errors.mean(), fluctuation
        if step == len(run.lr):
            break
        rate, kept = run.lr[step], 1.0 - run.lr[step] * s
        gradient = data.singular / len(z) * left_over  # per unit of signal
        drawn = (z.T * (errors / len(z))) @ z - np.outer(gradient * signal, gradient * signal) - products * covariance
        drawn[np.diag_indices(len(s))] -= noise * gradient**2
        covariance = np.outer(kept, kept) * covariance + rate**2 * share[step] * drawn
        learned = learned + rate * s * left_over
        left_over = kept * left_over
    return MultipassRisk(*found[:, asked])


def max_stable_multipass_lr(rows: ArrayLike, batch_size: float, *, replacement: bool = True) -> float:
    """The rate from which on the mean error on these `rows` (n, d), and so the risk, grows without bound.

    It is 2 / mu, mu being the largest eigenvalue of the positive map that takes C to the D with
    (S D + D S) / 2 = (1 - rho) S C S + (rho / n) sum_i (x_i' C x_i) x_i x_i' (derived in docs/theory.md).
    """
    data = _decomposed(np.asarray(rows, dtype=np.float64))
    share = _share_of_draws(np.array([batch_size], dtype=np.float64), len(data.left), replacement)
    return _limit(data, float(share[0]))


def _limit(data: _DataSet, share: float) -> float:
    """The symmetric form of the map, its largest eigenvalue found by Lanczos."""
    z, s = data.coordinates, data.curvature
    root = np.sqrt((s[:, None] + s) / 2.0)

    def applied(vector: Floats) -> Floats:
        c = vector.reshape(root.shape) / root
        drawn = (z.T * np.einsum("ik,ik->i", z @ c, z)) @ z / len(z)
        return (((1.0 - share) * np.outer(s, s) * c + share * drawn) / root).ravel()

    if len(s) == 1:
        return float(2.0 / applied(np.ones(1))[0])
    operator = LinearOperator((root.size, root.size), matvec=applied, dtype=np.float64)
    start = np.diag(root.diagonal()).ravel()  # not orthogonal to the eigenvector, which is positive semidefinite
    return float(2.0 / eigsh(operator, k=1, which="LA", v0=start, return_eigenvectors=False)[0])


def _check_stable(data: _DataSet, lr: Floats, batch_size: Floats, share: Floats) -> None:
    """The limit is computed only for the batch sizes of rates above one that is surely stable."""
    check_rates(lr)
    longest = (data.coordinates**2).sum(1).max()
    suspect = lr * ((1.0 - share) * data.curvature.max() + share * longest) >= 2.0
    unstable = []
    for now in np.unique(share[suspect]):
        limit = _limit(data, float(now))
        steps = np.flatnonzero((share == now) & (lr >= limit))
        unstable += [(int(steps[0]), limit)] if len(steps) else []
    if unstable:
        step, limit = min(unstable)
        raise ValueError(
            f"lr={lr[step]:.6g} at step {step} is unstable on these rows: with batch_size={batch_size[step]:g} the "
            f"mean error grows without bound from lr={limit:.6g} on. Use a smaller rate or a larger batch."
        )


def _share_of_draws(batch_size: Floats, count: int, replacement: bool) -> Floats:
    """rho: variance of the mean of a mini-batch of `count` rows, in units of a row's."""
    check_batch_size(batch_size)
    if replacement:
        return 1.0 / batch_size
    largest = batch_size.max(initial=1.0)
    if largest > count:
        raise ValueError(
            f"batch_size={largest:g} exceeds the {count} rows: without replacement use at most that, or draw with it."
        )
    return (count - batch_size) / (batch_size * max(count - 1, 1))


def _checked(problem: LinearProblem, rows: ArrayLike, answers: ArrayLike | None) -> tuple[_DataSet, Floats | None]:
    x = np.asarray(rows, dtype=np.float64)
    if x.ndim != 2 or x.shape[1] != problem.dimension:
        raise ValueError(f"rows must have the shape (n, {problem.dimension}), as the problem has, not {x.shape}.")
    data = _decomposed(x)
    if answers is None:
        return data, None
    y = np.asarray(answers, dtype=np.float64)
    if y.shape != (len(x),) or not np.isfinite(y).all():
        raise ValueError(f"answers must be one finite number for each of the {len(x)} rows, not {y.shape}.")
    return data, y


def _decomposed(rows: Floats) -> _DataSet:
    if rows.ndim != 2 or not np.isfinite(rows).all() or not rows.any():
        raise ValueError(f"rows must be finite numbers of shape (n, d), not all of them 0, not {rows.shape}.")
    left, singular, right = np.linalg.svd(rows, full_matrices=False)
    held = singular > singular[0] * max(rows.shape) * np.finfo(np.float64).eps
    return _DataSet(left[:, held], singular[held], right[held].T)
