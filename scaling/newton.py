"""Many small minimisations at once: a damped Newton method on exact Hessians, batched over problems.

All starting points of a fit, and all its bootstrap replicates, are problems of the same few parameters. Each
carries its own damping (Levenberg-Marquardt; Nocedal and Wright, Numerical Optimization, 2nd ed., chapters 3.4 and
10.3), its Hessian's eigenvalues are replaced by their absolute values so that every step descends, and parameters
that a bound holds are left out of the step. Problems that are done leave the batch.

The damping is measured in a metric that comes with the objective: the curvature of a quadratic that touches the
robust loss from above (Huber and Ronchetti, Robust Statistics, 2nd ed., chapter 7.8). With little damping a step is
Newton's; with more it is one of iteratively reweighted least squares. That is what carries it over the kinks of a
nearly absolute loss, where plain damping zigzags.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from scaling.progress import track

# objective(theta (k, p), which (k,)) -> value (k,), gradient (k, p), Hessian and metric (k, p, p) of problems `which`
Objective = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]

_METRIC_FLOOR = 1e-10  # of the metric's largest diagonal entry: keeps it definite where the data say nothing
_EIGENVALUE_FLOOR = 1e-10  # of the metric: below it, rounding has eaten the curvature
_DAMPING = (1e-12, 1e12)


@dataclass(frozen=True)
class Minima:
    """Where each problem ended: `theta` (k, p), `value` (k,), projected `gradient` (k, p), `converged` (k,)."""

    theta: np.ndarray
    value: np.ndarray
    gradient: np.ndarray
    converged: np.ndarray
    iterations: int


def minimise(
    objective: Objective,
    theta: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
    *,
    tolerance: float = 1e-12,
    floor: float = 0.0,
    max_iterations: int = 400,
    chunk: int = 128,
    progress: str = "",
) -> Minima:
    """Minimise every problem from its row of `theta` (k, p) within the box `lower`, `upper`, (p,) or (k, p).

    A problem is converged when the decrease that its undamped Newton step promises is below `tolerance` times its
    objective plus `floor` (an objective that means nothing any more), or when rounding allows no further decrease.
    Problems advance in chunks that fit the processor's cache. `progress` names the work on a terminal, if it is long.
    """
    lower, upper = np.broadcast_to(lower, theta.shape), np.broadcast_to(upper, theta.shape)
    chunks = [slice(at, min(at + chunk, len(theta))) for at in range(0, len(theta), chunk)]
    parts = [
        _minimise(objective, theta[part], np.arange(part.start, part.stop), lower[part], upper[part],
                  tolerance, floor, max_iterations)
        for part in track(chunks, progress)
    ]  # fmt: skip
    join = lambda field: np.concatenate([getattr(part, field) for part in parts])  # noqa: E731
    return Minima(join("theta"), join("value"), join("gradient"), join("converged"), max(p.iterations for p in parts))


def _minimise(
    objective: Objective,
    start: np.ndarray,
    which: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
    tolerance: float,
    floor: float,
    max_iterations: int,
) -> Minima:
    theta = np.clip(start, lower, upper)
    value, gradient, hessian, metric = objective(theta, which)
    damping = np.ones(len(theta))
    converged = np.zeros(len(theta), bool)
    active = np.flatnonzero(np.isfinite(value))  # a start outside the law's domain goes nowhere
    iteration = 0
    while len(active) and iteration < max_iterations:
        iteration += 1
        step, promise = _steps(
            theta[active],
            gradient[active],
            hessian[active],
            metric[active],
            damping[active],
            lower[active],
            upper[active],
        )
        done = promise <= tolerance * np.abs(value[active]) + floor
        converged[active[done]] = True
        active, step = active[~done], step[~done]
        if not len(active):
            break
        trial = np.clip(theta[active] + step, lower[active], upper[active])
        new_value, new_gradient, new_hessian, new_metric = objective(trial, which[active])
        move = trial - theta[active]
        model = np.einsum("kp,kp->k", gradient[active], move)
        model += 0.5 * np.einsum("kp,kpq,kq->k", move, hessian[active], move)
        fall = value[active] - new_value
        better = fall > 0  # NaN counts as worse
        good = better & (fall > 0.75 * -model)
        poor = ~better | (fall < 0.25 * -model)
        factor = np.where(good, 0.2, np.where(~better, 8.0, np.where(poor, 2.0, 0.7)))
        damping[active] = np.clip(damping[active] * factor, *_DAMPING)
        # A step so short that it no longer changes the objective: as far as float64 goes.
        stuck = ~better & (damping[active] >= _DAMPING[1])
        accept = active[better]
        theta[accept], value[accept], gradient[accept] = trial[better], new_value[better], new_gradient[better]
        hessian[accept], metric[accept] = new_hessian[better], new_metric[better]
        converged[active[stuck]] = True
        active = active[~stuck]
    held = _held(theta, gradient, lower, upper)
    return Minima(theta, value, np.where(held, 0.0, gradient), converged, iteration)


def _held(theta: np.ndarray, gradient: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """(k, p): a bound stops the descent of this parameter."""
    return ((theta <= lower) & (gradient > 0)) | ((theta >= upper) & (gradient < 0))


def _steps(
    theta: np.ndarray,
    gradient: np.ndarray,
    hessian: np.ndarray,
    metric: np.ndarray,
    damping: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The damped steps (k, p), and the decrease (k,) that the undamped ones promise."""
    held = _held(theta, gradient, lower, upper)
    gradient = np.where(held, 0.0, gradient)
    either = held[:, :, None] | held[:, None, :]
    hessian, metric = np.where(either, 0.0, hessian), np.where(either, 0.0, metric)
    size = np.einsum("kpp->kp", metric).max(axis=1)
    size = np.where(size > 0, size, 1.0)[:, None, None]
    # In coordinates where the metric is the identity: root root' = metric.
    root = np.linalg.cholesky(metric + _METRIC_FLOOR * size * np.eye(theta.shape[1]))
    inverse = np.linalg.inv(root)
    values, vectors = np.linalg.eigh(inverse @ hessian @ inverse.transpose(0, 2, 1))
    basis = inverse.transpose(0, 2, 1) @ vectors
    values = np.maximum(np.abs(values), _EIGENVALUE_FLOOR)
    along = np.einsum("kpq,kp->kq", basis, gradient)
    step = -np.einsum("kpq,kq->kp", basis, along / (values + damping[:, None]))
    return np.where(held, 0.0, step), 0.5 * (along**2 / values).sum(axis=1)
